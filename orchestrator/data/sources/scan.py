"""What planning needs of every row, without the row: its content's digest, its group, what a model learns from it.

A scanned span has a form in bytes, which scanning processes write to their parents and caches keep.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from orchestrator.data.examples import Example
from orchestrator.data.images.files import ImageReader
from orchestrator.data.sources import lerobot
from orchestrator.data.sources.chunks import Chunk, chunks_of
from orchestrator.data.sources.containers import LEROBOT, Span, number_of_first_row, rows_behind, rows_of
from orchestrator.data.sources.hub import PREFIX
from orchestrator.data.sources.rows import Columns, DataFormat, RowError, read_row
from orchestrator.errors import SpecProblem

DIGEST = np.dtype("S16")  # compares as bytes do: all are of one length
MOST_FAULTS = 10  # described, of a span
READERS = 8  # at most, of a span's images at a time
ROWS_OF_A_BATCH = 64  # that they read before any is passed on


@dataclass(frozen=True)
class Reading:
    """How rows become examples."""

    format: DataFormat
    columns: Columns = ()
    chunk: int = 1  # actions of an answer


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
    images: np.ndarray  # (examples,) int32, how many each has
    image_sizes: np.ndarray  # (images, 2) int32, width and height
    stamps: tuple[tuple[str, int, int], ...] = ()  # of the files of images: path, size, time of change
    episodes: tuple[tuple[str, int], ...] = ()  # of chunks: each in turn, and its first row from 0 within the span
    faults: tuple[Fault, ...] = ()  # the first ones
    more_faults: int = 0

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def dimensions(self) -> int:
        """Of each action; 0 where there are none."""
        return int(self.actions.shape[1])

    @property
    def has_images(self) -> bool:
        """Whether every example has an image; if not, none has."""
        return bool(len(self.images) and self.images[0])

    @property
    def is_current(self) -> bool:
        """Whether the files of images are as they were."""
        return all(_stamp(Path(file)) == (file, size, changed) for file, size, changed in self.stamps)

    def problems(self) -> list[SpecProblem]:
        """The faults with the rows' numbers in their file, from 1."""
        if not self.faults:
            return []
        first = _first_row(self.span)
        return [SpecProblem(self.span.file, one.message, one.path, first + one.row) for one in self.faults]

    def other_length(self, dimensions: int) -> SpecProblem:
        """What is wrong with actions of `dimensions` numbers in front of these."""
        message = (
            f"'action' has {_numbers(self.dimensions)} from here on, and those before it have {dimensions}; "
            "repair the step, or split the data by robot"
        )
        return SpecProblem(self.span.file, message, "action", _first_row(self.span))

    def again(self, row: int, episode: str, elsewhere: bool) -> SpecProblem:
        """What is wrong with an episode that begins at a row and was there before, in its file or `elsewhere`."""
        how, remedy = "is there again, after rows of others", "sort the rows by episode and step"
        if elsewhere:
            how = "is in another file too"
            remedy = "give each file's episodes their own names, or write what is one episode into one file"
        rule = "chunks of actions are made of an episode's rows one after the other in one file"
        message = f"{episode} {how}; {rule}: {remedy}"
        return SpecProblem(self.span.file, message, "episode", _first_row(self.span) + row)

    def without_images(self, expects: bool) -> SpecProblem:
        """What is wrong with a span behind others that have images (`expects`), or have none."""
        return SpecProblem(self.span.file, _of_two_kinds(expects), "images", _first_row(self.span))


def examples_of(span: Span, reading: Reading, is_checked: bool = False) -> Iterator[tuple[int, Example | RowError]]:
    """The rows of a span, read, and their images decoded where they are checked. Raises OSError."""
    images = ImageReader(None if span.suffix in (PREFIX, LEROBOT) else Path(span.file).parent, is_checked)
    group = Path(span.file).name

    def read(row: Any, chunk: Chunk | None) -> Example | RowError:
        try:
            if isinstance(row, RowError):
                return row
            example = read_row(row, reading.format, reading.columns, group, images)
            return example if chunk is None else chunk.of(example)
        except RowError as error:
            return error

    rows = _rows_with_chunks(span, reading)
    for number, *row in rows:
        found = read(*row)
        yield number, found
        if isinstance(found, Example) and found.images:
            break
    with ThreadPoolExecutor(min(os.cpu_count() or 1, READERS)) as readers:  # pillow and hashes leave Python's lock
        while batch := list(islice(rows, ROWS_OF_A_BATCH)):
            numbers, listed, chunks = zip(*batch, strict=True)
            yield from zip(numbers, readers.map(read, listed, chunks), strict=True)


def _rows_with_chunks(span: Span, reading: Reading) -> Iterator[tuple[int, Any, Chunk | None]]:
    rows = lerobot.steps_of(span, dict(reading.columns)) if span.suffix == LEROBOT else rows_of(span)
    if reading.chunk == 1:
        return ((number, row, None) for number, row in rows)
    return chunks_of(rows, rows_behind(span), reading.chunk, reading.columns)


def scan(span: Span, reading: Reading) -> Scanned:
    """Reads a span and keeps what planning needs. Raises OSError."""
    digests, sizes, numbers = [], [], []
    actions: list[tuple[float, ...]] = []
    groups: dict[str, int] = {}
    faults: list[Fault] = []
    seen: list[int] = []
    image_sizes: list[tuple[int, int]] = []
    stamps: dict[tuple[str, int, int], None] = {}
    episodes: list[tuple[str, int]] = []
    for number, found in examples_of(span, reading, is_checked=True):
        if isinstance(found, RowError):
            faults.append(Fault(number, found.path, str(found)))
            continue
        if actions and len(found.action) != len(actions[0]):
            lengths = f"{_numbers(len(found.action))}, and those before it have {len(actions[0])}"
            message = f"'action' has {lengths}; repair the step, or split the data by robot"
            faults.append(Fault(number, "action", message))
            continue
        pictures = found.images
        if seen and bool(pictures) != bool(seen[0]):
            faults.append(Fault(number, "images", _of_two_kinds(bool(seen[0]))))
            continue
        seen.append(len(pictures))
        for image in pictures:
            image_sizes.append((image.width, image.height))
            if isinstance(image.source, Path):
                stamps[_stamp(image.source)] = None
        if found.episode and found.episode != (episodes[-1][0] if episodes else ""):
            episodes.append((found.episode, number))
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
        np.array(seen, np.int32),
        _sizes(image_sizes),
        tuple(stamps),
        tuple(episodes),
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
        np.array([len(example.images) for example in listed], np.int32),
        _sizes([(image.width, image.height) for example in listed for image in example.images]),
    )


def _table(actions: Sequence[tuple[float, ...]]) -> np.ndarray:
    """(examples, dimensions) float64."""
    return np.array(actions, np.float64).reshape(len(actions), len(actions[0]) if actions else 0)


def _first_row(span: Span) -> int:
    return lerobot.first_step(span) if span.suffix == LEROBOT else number_of_first_row(span)


def _sizes(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """(images, 2) int32."""
    return np.array(sizes, np.int32).reshape(len(sizes), 2)


def _stamp(file: Path) -> tuple[str, int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return str(file), -1, -1
    return str(file), found.st_size, found.st_mtime_ns


def _of_two_kinds(expects: bool) -> str:
    here, before = ("no image", "some") if expects else ("an image", "none")
    return f"the row has {here}, and those before it have {before}; every row needs one, or none: repair or remove it"


def _numbers(count: int) -> str:
    return "1 number" if count == 1 else f"{count} numbers"


def write_scanned(stream: BinaryIO, scanned: Scanned) -> None:
    """A line of JSON, then the arrays."""
    head = {
        "span": asdict(scanned.span),
        "examples": len(scanned),
        "dimensions": scanned.dimensions,
        "images": len(scanned.image_sizes),
        "stamps": scanned.stamps,
        "episodes": scanned.episodes,
        "groups": scanned.groups,
        "faults": [asdict(fault) for fault in scanned.faults],
        "more_faults": scanned.more_faults,
    }
    stream.write(json.dumps(head).encode() + b"\n")
    arrays = scanned.digests, scanned.learnable_bytes, scanned.group_numbers, scanned.actions
    for array in (*arrays, scanned.images, scanned.image_sizes):
        stream.write(array.tobytes())


def read_scanned(stream: BinaryIO) -> Scanned | None:
    """What `write_scanned` wrote; None at the end. Raises EOFError where it is cut off."""
    line = stream.readline()
    if not line:
        return None
    head = json.loads(line)

    def array(dtype: np.dtype, columns: int = 1, lines: str = "examples") -> np.ndarray:
        size = head[lines] * columns * dtype.itemsize
        data = stream.read(size)
        if len(data) != size:
            raise EOFError
        return np.frombuffer(data, dtype)

    digests, sizes, numbers = array(DIGEST), array(np.dtype(np.int64)), array(np.dtype(np.int32))
    actions = array(np.dtype(np.float64), head["dimensions"]).reshape(head["examples"], head["dimensions"])
    images, image_sizes = array(np.dtype(np.int32)), array(np.dtype(np.int32), 2, "images").reshape(-1, 2)
    stamps = tuple((file, size, changed) for file, size, changed in head["stamps"])
    episodes = tuple((episode, row) for episode, row in head["episodes"])
    faults = tuple(Fault(**fault) for fault in head["faults"])
    groups = tuple(head["groups"])
    return Scanned(
        Span(**head["span"]),
        digests,
        sizes,
        groups,
        numbers,
        actions,
        images,
        image_sizes,
        stamps,
        episodes,
        faults,
        head["more_faults"],
    )
