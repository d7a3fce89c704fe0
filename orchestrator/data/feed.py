"""The order of a run and its batches: pure functions of (data, seed, step), whatever the number of workers."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.data.prepare import TokenizedDataset

IGNORED = -100
OPEN_ROWS = 64  # packing looks back over this many unfinished rows


@dataclass(frozen=True)
class Batch:
    """Rows of equal length, right-padded. Labels are already shifted: `labels[b, t]` is the target after token t."""

    input_ids: np.ndarray  # (B, T) int64
    position_ids: np.ndarray  # (B, T) int64; starts again at 0 with every packed example
    labels: np.ndarray  # (B, T) int64; IGNORED where nothing is learned


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

    def batch(self, rows: Sequence[tuple[int, ...]], pad_token_id: int) -> Batch:
        """Tensors of some rows, padded to the longest of them."""
        return make_batch([[self._cut(index) for index in row] for row in rows], pad_token_id)

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

    def _cut(self, index: int) -> tuple[np.ndarray, np.ndarray]:
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


def make_batch(rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], pad_token_id: int) -> Batch:
    """Concatenates the (token ids, target mask) pairs of each row and pads on the right.

    No attention mask is made: with causal attention right padding cannot reach a real token, and packed examples are
    kept apart by position ids that start again (transformers drops that separation when any mask is passed).
    """
    width = max(sum(len(ids) for ids, _ in row) for row in rows)
    input_ids = np.full((len(rows), width), pad_token_id, np.int64)
    position_ids = np.empty((len(rows), width), np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    for line, row in enumerate(rows):
        start, count = 0, 0
        for ids, is_target in row:
            end, count = start + len(ids), len(ids)
            input_ids[line, start:end] = ids
            position_ids[line, start:end] = np.arange(count)
            labels[line, start : end - 1] = np.where(is_target[1:], ids[1:], IGNORED)
            start = end
        position_ids[line, start:] = np.arange(count, count + width - start)  # padding continues the last example
    return Batch(input_ids, position_ids, labels)


def as_one_row(batch: Batch) -> Batch:
    """The same batch with all rows in one: position ids start again with every row, as with every packed example."""
    return Batch(*(array.reshape(1, -1) for array in (batch.input_ids, batch.position_ids, batch.labels)))


def _generator(data_digest: str, seed: int, epoch: int) -> np.random.Generator:
    key = hashlib.sha256(f"{data_digest} {seed} {epoch}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))
