"""How many positions the head computes at a time: the loss and the plan of memory ask the same rule. No torch."""

MOST_BYTES = 256 * 1024**2  # of fp32 logits that are alive together
CACHED_BYTES = 4 * 1024**2  # of those that a processor's caches hold: for scores on a CPU, which keep nothing of them


def positions_per_chunk(vocabulary_rows: int, most_bytes: int = MOST_BYTES) -> int:
    """Labelled positions whose fp32 logits fit: of `MOST_BYTES` 441 for a vocabulary of 151,936 rows; at least one."""
    return max(most_bytes // (4 * vocabulary_rows), 1)


def count_chunks(positions: int, vocabulary_rows: int, most_bytes: int = MOST_BYTES) -> int:
    """Chunks of about equal size for so many labelled positions; one where there is none, with nothing in it."""
    return max(-(-positions // positions_per_chunk(vocabulary_rows, most_bytes)), 1)
