"""The order of a run, as far as a plan must know it: what changes it for everybody. Imports nothing.

Examples are shuffled by content, seed and epoch alone. A recipe that packs fills its rows from one block of that stream
after the other: a block holds the same examples for every tokenizer, and only within it does the tokenizer decide which
of them share a row. So candidates that have read equally many blocks have read the same examples.
"""

PACKED_ORDER = 2  # raise it when the same data, seed and lengths come to be packed into other rows, or in another order


SMALLEST_BLOCK, LARGEST_BLOCK = 256, 16_384  # examples
BLOCKS_OF_AN_EPOCH = 16  # at least, where that leaves more than the smallest


def examples_of_a_block(sequence_length: int, examples: int) -> int:
    """How many examples of the shuffled stream are packed together, of so many in all: the window.

    Rows are left open at the end of each block, so a block has to fill many: with lengths of a log-normal distribution
    the largest fills 99.9 % where a row holds several examples; `benchmarks/packing.py` measures it. But candidates
    have read the same examples only when they have read equally many blocks, so a block is a small part of an epoch.
    """
    largest = max(LARGEST_BLOCK, 8 * sequence_length)
    return min(largest, max(SMALLEST_BLOCK, examples // BLOCKS_OF_AN_EPOCH))
