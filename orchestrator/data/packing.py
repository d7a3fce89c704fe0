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

    `costs` is (steps, rows). Costliest first, a row for every rank in each turn, the costlier ones to the ranks that
    have the least so far (longest processing time first, Graham 1969, with as many rows for every rank). Rows of the
    same turn cost about the same, so the ranks' micro-batches do too: ranks wait for each other in every layer.
    """
    steps, rows = costs.shape
    costliest_first = np.argsort(-costs, axis=1, kind="stable")
    sums = np.zeros((steps, ranks), costs.dtype)
    dealt = np.empty((steps, ranks, rows // ranks), np.int64)
    for turn in range(rows // ranks):
        hand = costliest_first[:, turn * ranks : (turn + 1) * ranks]
        poorest_first = np.argsort(sums, axis=1, kind="stable")
        np.put_along_axis(dealt[:, :, turn], poorest_first, hand, axis=1)
        spent = np.take_along_axis(sums, poorest_first, axis=1) + np.take_along_axis(costs, hand, axis=1)
        np.put_along_axis(sums, poorest_first, spent, axis=1)
    return dealt.reshape(steps, rows)
