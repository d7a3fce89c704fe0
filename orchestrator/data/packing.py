"""Which examples share a row, and which rows a rank: planned on lengths alone. NumPy only."""

from bisect import bisect_left, insort

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """(examples,) int64 the row of each example: best fit decreasing, rows numbered in the order they are opened.

    The longest examples come first, and each goes to the fullest row that has room for it, else opens one. Examples of
    one length are interchangeable, and so are rows with equally much room: they are served together, so Python's work
    grows with the different lengths and not with the examples. No length may be 0 or above `capacity`.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    with_room: dict[int, list[int]] = {}  # rows by the tokens that still fit
    rooms: list[int] = []  # the keys of it, ascending
    placed: list[int] = []  # the row of each example, longest first
    opened = 0

    def leave(room: int, rows: list[int]) -> None:
        if room and rows:
            if room not in with_room:
                insort(rooms, room)
                with_room[room] = []
            with_room[room] += rows

    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist()):
        while count:
            at = bisect_left(rooms, length)
            if at == len(rooms):
                new = -(-count // (capacity // length))
                leave(capacity, list(range(opened, opened + new)))
                opened += new
            room = rooms.pop(at)
            rows = with_room.pop(room)
            each = room // length  # a row that got one is the fullest that has room for the next
            full, rest = divmod(count, each)
            placed += rows[:full] * each
            leave(room - each * length, rows[:full])
            last = rows[full : full + 1] if rest else []
            placed += last * rest
            leave(room - rest * length, last)
            leave(room, rows[full + len(last) :])
            count -= each * len(rows[:full]) + rest * len(last)
    row_of = np.empty(len(lengths), np.int64)
    row_of[longest_first] = placed
    return row_of


def deal(costs: np.ndarray, ranks: int) -> np.ndarray:
    """(steps, rows) int64 an order of each step's rows in which equal contiguous shares cost nearly the same.

    `costs` is (steps, rows). Longest processing time first (Graham 1969) with as many rows for every rank: costliest
    first, each to the rank that has the least so far and still has room. A share falls in cost, so the ranks' micro-
    batches are about alike too: ranks wait for each other in every layer.
    """
    steps, rows = costs.shape
    share, lines = rows // ranks, np.arange(steps)
    costliest_first = np.argsort(-costs, axis=1, kind="stable")
    sums, taken = np.zeros((steps, ranks)), np.zeros((steps, ranks), np.int64)
    dealt = np.empty((steps, ranks, share), np.int64)
    for row in costliest_first.T[: ranks * share]:
        rank = np.argmin(np.where(taken < share, sums, np.inf), axis=1)
        dealt[lines, rank, taken[lines, rank]] = row
        sums[lines, rank] += costs[lines, row]
        taken[lines, rank] += 1
    return dealt.reshape(steps, ranks * share)
