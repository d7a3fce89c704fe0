"""Chunks of actions: what a row is asked, answered by its own action and those of the next rows of its episode.

A chunk ends with its episode, where numbered steps leave one out, and with its file. What would come then is neither
learned nor scored, as LeRobot's ACT leaves it out of its loss by `action_is_pad`; OpenVLA-OFT drops such rows whole.
Sources: huggingface/lerobot, policies/act/modeling_act.py; moojink/openvla-oft,
prismatic/vla/datasets/rlds/traj_transforms.py, chunk_act_obs.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise, repeat
from typing import Any

from orchestrator.data.examples import Example
from orchestrator.data.sources.containers import Rows
from orchestrator.data.sources.rows import Columns, RowError, Step, step_of


@dataclass(frozen=True)
class Chunk:
    """A row's step, or why there is none, and the actions ahead of it in its episode."""

    step: Step | RowError
    ahead: tuple[tuple[float, ...], ...] = ()

    def of(self, example: Example) -> Example:
        """The example of the row. Raises RowError."""
        if isinstance(self.step, RowError):
            raise self.step
        return replace(example, ahead=self.ahead, episode=self.step.episode)


def chunks_of(rows: Rows, behind: Rows, chunk: int, columns: Columns) -> Iterator[tuple[int, Any, Chunk]]:
    """(number, row, what stands ahead of it) of each row of a span; `behind` are the rows after it in its file.

    `chunk` is at least 2.
    """
    waiting: deque[tuple[int, Any, Step | RowError]] = deque()
    within = 0  # how many of them are the span's
    for is_within, (number, row) in chain(zip(repeat(True), rows), zip(repeat(False), islice(behind, chunk - 1))):
        waiting.append((number, row, _read(row, columns)))
        within += is_within
        if within and len(waiting) == chunk:
            yield _first(waiting)
            within -= 1
    while within:
        yield _first(waiting)
        within -= 1


def _first(waiting: deque[tuple[int, Any, Step | RowError]]) -> tuple[int, Any, Chunk]:
    """Taken out."""
    chunk = _chunk_of([step for _, _, step in waiting])
    number, row, _ = waiting.popleft()
    return number, row, chunk


def _read(row: Any, columns: Columns) -> Step | RowError:
    try:
        return row if isinstance(row, RowError) else step_of(row, columns)
    except RowError as error:
        return error


def _chunk_of(steps: Sequence[Step | RowError]) -> Chunk:
    """Of the first of some rows."""
    first = steps[0]
    ahead: list[tuple[float, ...]] = []
    for before, step in pairwise(steps):
        if isinstance(before, RowError) or isinstance(step, RowError):
            break
        try:
            if not before.leads_to(step):
                break
        except RowError as error:  # of the others when they are first
            return Chunk(error if before is first else first, tuple(ahead))
        ahead.append(step.action)
    return Chunk(first, tuple(ahead))
