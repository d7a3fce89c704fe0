"""What planning needs of every row, without the row: its content's digest, its group, what a model learns from it.

A scanned span has a form in bytes, which scanning processes write to their parents and caches keep.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from orchestrator.data.examples import Example
from orchestrator.data.sources.containers import Span, number_of_first_row, rows_of
from orchestrator.data.sources.rows import Columns, DataFormat, RowError, read_row
from orchestrator.errors import SpecProblem

DIGEST = np.dtype("S16")  # compares as bytes do: all are of one length
MOST_FAULTS = 10  # described, of a span


@dataclass(frozen=True)
class Reading:
    """How rows become examples."""

    format: DataFormat
    columns: Columns = ()


@dataclass(frozen=True)
class Fault:
    """A row that is no example; `row` counts from 0 within the span."""

    row: int
    path: str
    message: str


@dataclass(frozen=True)
class Scanned:
    """The examples of a span in order, as arrays."""

    span: Span
    digests: np.ndarray  # (examples,) S16
    learnable_bytes: np.ndarray  # (examples,) int64
    groups: tuple[str, ...]  # in the order in which they first occur
    group_numbers: np.ndarray  # (examples,) int32, places in `groups`
    actions: np.ndarray  # (examples, dimensions) float64; of other data without a dimension
    faults: tuple[Fault, ...] = ()  # the first ones
    more_faults: int = 0

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def dimensions(self) -> int:
        """Of each action; 0 where there are none."""
        return int(self.actions.shape[1])

    def problems(self) -> list[SpecProblem]:
        """The faults with the rows' numbers in their file, from 1."""
        if not self.faults:
            return []
        first = number_of_first_row(self.span)
        return [SpecProblem(self.span.file, one.message, one.path, first + one.row) for one in self.faults]

    def other_length(self, dimensions: int) -> SpecProblem:
        """What is wrong with actions of `dimensions` numbers in front of these."""
        message = (
            f"'action' has {_numbers(self.dimensions)} from here on, and those before it have {dimensions}; "
            "repair the step, or split the data by robot"
        )
        return SpecProblem(self.span.file, message, "action", number_of_first_row(self.span))


def examples_of(span: Span, reading: Reading) -> Iterator[tuple[int, Example | RowError]]:
    """The rows of a span, read. Raises OSError."""
    group = Path(span.file).name
    for number, row in rows_of(span):
        try:
            yield number, row if isinstance(row, RowError) else read_row(row, reading.format, reading.columns, group)
        except RowError as error:
            yield number, error


def scan(span: Span, reading: Reading) -> Scanned:
    """Reads a span and keeps what planning needs. Raises OSError."""
    digests, sizes, numbers = [], [], []
    actions: list[tuple[float, ...]] = []
    groups: dict[str, int] = {}
    faults: list[Fault] = []
    for number, found in examples_of(span, reading):
        if isinstance(found, RowError):
            faults.append(Fault(number, found.path, str(found)))
            continue
        if actions and len(found.action) != len(actions[0]):
            lengths = f"{_numbers(len(found.action))}, and those before it have {len(actions[0])}"
            message = f"'action' has {lengths}; repair the step, or split the data by robot"
            faults.append(Fault(number, "action", message))
            continue
        actions.append(found.action)
        digests.append(found.content_digest)
        sizes.append(found.learnable_bytes)
        numbers.append(groups.setdefault(found.group, len(groups)))
    return Scanned(
        span,
        np.array(digests, DIGEST),
        np.array(sizes, np.int64),
        tuple(groups),
        np.array(numbers, np.int32),
        _table(actions),
        tuple(faults[:MOST_FAULTS]),
        len(faults[MOST_FAULTS:]),
    )


def scan_examples(examples: Iterable[Example]) -> Scanned:
    """The same of examples that are in memory."""
    groups: dict[str, int] = {}
    listed = list(examples)
    numbers = [groups.setdefault(example.group, len(groups)) for example in listed]
    return Scanned(
        Span("", 0, len(listed)),
        np.array([example.content_digest for example in listed], DIGEST),
        np.array([example.learnable_bytes for example in listed], np.int64),
        tuple(groups),
        np.array(numbers, np.int32),
        _table([example.action for example in listed]),
    )


def _table(actions: Sequence[tuple[float, ...]]) -> np.ndarray:
    """(examples, dimensions) float64."""
    return np.array(actions, np.float64).reshape(len(actions), len(actions[0]) if actions else 0)


def _numbers(count: int) -> str:
    return "1 number" if count == 1 else f"{count} numbers"


def write_scanned(stream: BinaryIO, scanned: Scanned) -> None:
    """A line of JSON, then the arrays."""
    head = {
        "span": asdict(scanned.span),
        "examples": len(scanned),
        "dimensions": scanned.dimensions,
        "groups": scanned.groups,
        "faults": [asdict(fault) for fault in scanned.faults],
        "more_faults": scanned.more_faults,
    }
    stream.write(json.dumps(head).encode() + b"\n")
    for array in (scanned.digests, scanned.learnable_bytes, scanned.group_numbers, scanned.actions):
        stream.write(array.tobytes())


def read_scanned(stream: BinaryIO) -> Scanned | None:
    """What `write_scanned` wrote; None at the end. Raises EOFError where it is cut off."""
    line = stream.readline()
    if not line:
        return None
    head = json.loads(line)

    def array(dtype: np.dtype, columns: int = 1) -> np.ndarray:
        size = head["examples"] * columns * dtype.itemsize
        data = stream.read(size)
        if len(data) != size:
            raise EOFError
        return np.frombuffer(data, dtype)

    digests, sizes, numbers = array(DIGEST), array(np.dtype(np.int64)), array(np.dtype(np.int32))
    actions = array(np.dtype(np.float64), head["dimensions"]).reshape(head["examples"], head["dimensions"])
    faults = tuple(Fault(**fault) for fault in head["faults"])
    groups = tuple(head["groups"])
    return Scanned(Span(**head["span"]), digests, sizes, groups, numbers, actions, faults, head["more_faults"])
