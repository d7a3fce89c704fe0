"""The order of a run and its batches: pure functions of (data, seed, step), whatever the number of workers."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from backbones.inputs import Example
from orchestrator.data.order import examples_of_a_block
from orchestrator.data.packing import deal, pack
from orchestrator.data.prepare import TokenizedDataset


@dataclass(frozen=True)
class StepWork:
    """One optimizer step: `global_batch_size` rows, each a tuple of examples, and what they hold in total."""

    rows: tuple[tuple[int, ...], ...]
    examples: int
    tokens: int  # input tokens without padding
    targets: int
    learnable_bytes: int


@dataclass(frozen=True)
class Rows:
    """Rows one after the other: row i holds `examples[bounds[i]:bounds[i + 1]]`."""

    examples: np.ndarray  # (examples,) int64
    bounds: np.ndarray  # (rows + 1,) int64

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def part(self, start: int, stop: int | None = None) -> "Rows":
        """The rows from one to another."""
        bounds = self.bounds[start : None if stop is None else stop + 1]
        return Rows(self.examples[bounds[0] : bounds[-1]], bounds - bounds[0])

    def followed_by(self, others: "Rows") -> "Rows":
        """These and then the others."""
        bounds = np.concatenate([self.bounds, others.bounds[1:] + self.bounds[-1]])
        return Rows(np.concatenate([self.examples, others.examples]), bounds)


@dataclass(frozen=True)
class Feed:
    """The training stream of a cell.

    The order of examples depends on the data's content, the seed and the epoch alone, so every candidate of a
    comparison reads the same examples in the same order. Packing moves them within blocks of that stream, which are
    the same for every candidate; only how it groups them depends on the tokenizer.
    """

    data: TokenizedDataset
    kept: np.ndarray  # (examples,) int64
    data_digest: str
    seed: int
    global_batch_size: int
    sequence_length: int
    packing: bool
    ranks: int = 1  # shares of a step that ranks compute; packed rows are dealt so that these cost the same

    def steps(self, start: int = 0) -> Iterator[StepWork]:
        """The steps of the run without end, from the one behind `start` steps.

        Blocks before that are packed, which gives their number of rows, and passed over.
        """
        size = self.global_batch_size
        waiting = Rows(np.empty(0, np.int64), np.zeros(1, np.int64))
        for rows in self._rows(start * size):
            waiting = waiting.followed_by(rows)
            whole = len(waiting) // size * size
            yield from self._works(waiting.part(0, whole))
            waiting = waiting.part(whole)

    def examples(self, rows: Sequence[tuple[int, ...]]) -> list[list[Example]]:
        """The examples of some rows, cut to the recipe's length: what a backbone collates."""
        return [[self._cut(index) for index in row] for row in rows]

    @cached_property
    def _lengths(self) -> np.ndarray:
        """(examples,) int64 tokens of each example, as they are before any is cut."""
        return self.data.lengths

    def _read(self, examples: np.ndarray) -> np.ndarray:
        """(examples,) int64 tokens that are read of some examples."""
        return np.asarray(np.minimum(self._lengths[examples], self.sequence_length))

    def _rows(self, passed: int) -> Iterator[Rows]:
        """The rows of each block behind the first `passed` rows of the run."""
        epoch = 0
        if not self.packing:  # as many rows in every epoch
            epoch, passed = divmod(passed, len(self.kept))
        for block, turns in self._blocks(epoch):
            row_of = pack(self._read(block), self.sequence_length) if self.packing else np.arange(len(block))
            count = int(row_of.max(initial=-1)) + 1
            if passed < count:
                rows = self._in_turn(block, row_of, turns) if self.packing else Rows(block, np.arange(count + 1))
                yield rows.part(passed)
            passed = max(passed - count, 0)

    def _blocks(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The kept examples of each block from an epoch on, in the order of the stream, and a number drawn for each."""
        is_kept = np.zeros(len(self.data), np.bool_)
        is_kept[self.kept] = True
        size = examples_of_a_block(self.sequence_length, len(self.data))
        while True:
            # All are shuffled and then the kept ones taken: what one candidate drops must not reorder the rest.
            shuffled = _generator(self.data_digest, self.seed, epoch).permutation(len(self.data))
            for start in range(0, len(shuffled), size):
                block = shuffled[start : start + size]
                turns = _generator(self.data_digest, self.seed, epoch, start).permutation(len(block))
                yield block[is_kept[block]], turns[is_kept[block]]
            epoch += 1

    def _in_turn(self, block: np.ndarray, row_of: np.ndarray, turns: np.ndarray) -> Rows:
        """The rows of a block in the order in which they leave it.

        Packing opens rows by falling length, so they are shuffled, or training would meet long examples first. A row
        leaves by the number that was drawn for its longest example: with any tokenizer at about the same time.
        """
        longest_first = np.argsort(-self._read(block), kind="stable")
        _, first = np.unique(row_of[longest_first], return_index=True)
        place = np.empty(len(first), np.int64)
        place[np.argsort(turns[longest_first[first]])] = np.arange(len(first))
        place_of = place[row_of]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(place_of))])
        return Rows(block[np.argsort(place_of, kind="stable")], bounds)

    def _works(self, rows: Rows) -> Iterator[StepWork]:
        """The steps that some rows make; their number is a multiple of the global batch."""
        if not len(rows):
            return
        counts = self._counts(rows.examples)
        per_step = (-1, self.global_batch_size)
        tokens, targets, learnable_bytes, squares = (
            np.add.reduceat(count, rows.bounds[:-1]).reshape(per_step) for count in (*counts, counts[0] ** 2)
        )
        lines = np.arange(len(rows)).reshape(per_step)
        if self.packing and self.ranks > 1:
            lines = np.take_along_axis(lines, deal(squares, self.ranks), axis=1)
        examples, bounds = rows.examples.tolist(), rows.bounds.tolist()
        for step, places in enumerate(lines.tolist()):
            step_rows = tuple(tuple(examples[bounds[place] : bounds[place + 1]]) for place in places)
            yield StepWork(
                rows=step_rows,
                examples=sum(map(len, step_rows)),
                tokens=int(tokens[step].sum()),
                targets=int(targets[step].sum()),
                learnable_bytes=int(learnable_bytes[step].sum()),
            )

    def _counts(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(examples,) int64 each: tokens, targets and learnable bytes of some examples, without what is cut."""
        targets, learnable_bytes = self.data.targets[examples], self.data.learnable_bytes[examples]
        for place in np.flatnonzero(self._lengths[examples] > self.sequence_length).tolist():
            lost_targets, lost_bytes = self._lost(int(examples[place]))
            targets[place] -= lost_targets
            learnable_bytes[place] -= lost_bytes
        return self._read(examples), targets, learnable_bytes

    def _lost(self, index: int) -> tuple[int, int]:
        """Target tokens and learnable bytes behind the cut; the bytes in proportion to the text tokens there."""
        _, is_target, is_scored = self.data.example(index)
        scored, behind = (int(np.count_nonzero(part)) for part in (is_scored, is_scored[self.sequence_length :]))
        lost_targets = int(np.count_nonzero(is_target[self.sequence_length :]))
        return lost_targets, round(float(self.data.learnable_bytes[index] * (behind / max(scored, 1))))

    def _cut(self, index: int) -> Example:
        input_ids, is_target, _ = self.data.example(index)
        end = self.sequence_length  # that no example with images passes: parity drops those
        return Example(input_ids[:end], is_target[:end], self.data.images(index))


def _generator(*parts: str | int) -> np.random.Generator:
    key = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))
