"""The order of a run, as far as a plan must know it: what changes it for everybody. Imports nothing.

Examples are shuffled by content, seed and epoch alone. A recipe that packs fills its rows from one block of that stream
after the other: a block holds the same examples for every tokenizer, and only within it does the tokenizer decide which
of them share a row. So candidates that have read equally many blocks have read the same examples.
"""

PACKED_ORDER = 2  # raise it when the same data, seed and lengths come to be packed into other rows, or in another order


def examples_of_a_block(sequence_length: int) -> int:
    """How many examples of the shuffled stream are packed together: the window.

    Rows are left open at the end of each block, so a block has to fill many. With lengths of a log-normal distribution
    this many fill 99.9 % where a row holds several examples; `benchmarks/packing.py` measures it.
    """
    return max(16_384, 8 * sequence_length)
