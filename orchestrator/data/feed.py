"""The order of a run and its batches: pure functions of (data, seed, step), whatever the number of workers."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from backbones.inputs import Example
from orchestrator.data.prepare import TokenizedDataset

OPEN_ROWS = 64  # packing looks back over this many unfinished rows


@dataclass(frozen=True)
class StepWork:
    """One optimizer step: `global_batch_size` rows, each a tuple of examples, and what they hold in total."""

    rows: tuple[tuple[int, ...], ...]
    examples: int
    tokens: int  # input tokens without padding
    targets: int
    learnable_bytes: int


@dataclass(frozen=True)
class Feed:
    """The training stream of a cell.

    The order of examples depends on the data's content, the seed and the epoch alone, so every candidate of a
    comparison reads the same examples in the same order; only how packing groups them depends on the tokenizer.
    """

    data: TokenizedDataset
    kept: np.ndarray  # (examples,) int64
    data_digest: str
    seed: int
    global_batch_size: int
    sequence_length: int
    packing: bool

    def steps(self) -> Iterator[StepWork]:
        """The steps of the run, from the first, without end."""
        rows = self._rows()
        while True:
            yield self._work(tuple(next(rows) for _ in range(self.global_batch_size)))

    def examples(self, rows: Sequence[tuple[int, ...]]) -> list[list[Example]]:
        """The examples of some rows, cut to the recipe's length: what a backbone collates."""
        return [[self._cut(index) for index in row] for row in rows]

    def _rows(self) -> Iterator[tuple[int, ...]]:
        epoch = 0
        while True:
            # All are shuffled and then the kept ones taken: what one candidate drops must not reorder the rest.
            shuffled = _generator(self.data_digest, self.seed, epoch).permutation(len(self.data))
            order = shuffled[np.isin(shuffled, self.kept)]
            if self.packing:
                yield from pack(order, np.minimum(self.data.lengths, self.sequence_length), self.sequence_length)
            else:
                yield from ((int(index),) for index in order)
            epoch += 1

    def _work(self, rows: tuple[tuple[int, ...], ...]) -> StepWork:
        examples = np.array([index for row in rows for index in row])
        lengths = np.minimum(self.data.lengths[examples], self.sequence_length)
        cut = examples[self.data.lengths[examples] > self.sequence_length]
        lost = [self._lost(index) for index in cut]
        return StepWork(
            rows=rows,
            examples=len(examples),
            tokens=int(lengths.sum()),
            targets=int(self.data.targets[examples].sum()) - sum(targets for targets, _ in lost),
            learnable_bytes=int(self.data.learnable_bytes[examples].sum()) - sum(count for _, count in lost),
        )

    def _lost(self, index: int) -> tuple[int, int]:
        """Target tokens and learnable bytes behind the cut; the bytes in proportion to the text tokens there."""
        _, is_target, is_scored = self.data.example(index)
        behind = is_scored[self.sequence_length :].sum() / max(int(is_scored.sum()), 1)
        return int(is_target[self.sequence_length :].sum()), round(float(self.data.learnable_bytes[index] * behind))

    def _cut(self, index: int) -> Example:
        input_ids, is_target, _ = self.data.example(index)
        return input_ids[: self.sequence_length], is_target[: self.sequence_length]


def pack(order: np.ndarray, lengths: np.ndarray, capacity: int) -> Iterator[tuple[int, ...]]:
    """Best fit over a window: each example goes to the fullest open row with room, else opens a new one.

    Rows leave in the order they were opened, so examples keep their place in the stream up to the window. Every
    example of `order` appears in exactly one row and no row exceeds `capacity` tokens.
    """
    rows: list[list[int]] = []
    used: list[int] = []
    for index in map(int, order):
        length = int(lengths[index])
        fitting = [slot for slot, full in enumerate(used) if full + length <= capacity]
        if fitting:
            slot = max(fitting, key=used.__getitem__)
            rows[slot].append(index)
            used[slot] += length
        else:
            rows.append([index])
            used.append(length)
        if len(rows) > OPEN_ROWS:
            yield tuple(rows.pop(0))
            used.pop(0)
    yield from map(tuple, rows)


def _generator(data_digest: str, seed: int, epoch: int) -> np.random.Generator:
    key = hashlib.sha256(f"{data_digest} {seed} {epoch}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))
