"""A split as planning knows it: its digest and its counts, and blocks from which its examples can be read again."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.data.actions import ActionStatistics, count_statistics
from orchestrator.data.examples import Example
from orchestrator.data.sources.containers import Span
from orchestrator.data.sources.rows import RowError
from orchestrator.data.sources.scan import DIGEST, Reading, Scanned, examples_of, scan_examples
from orchestrator.errors import InputError, SpecProblem

NOTHING = np.array([], DIGEST)


class DataChangedError(InputError):
    """A file does not hold what was planned."""

    def __init__(self, file: str):
        super().__init__(f"{file} changed since the job was planned; run the command again to plan it anew")
        self.file = file

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.file,)


@dataclass(frozen=True)
class Block:
    """A span of a source without the examples that are held out. Small, whatever the span holds."""

    span: Span
    reading: Reading
    digest: str  # of the contents of all its examples
    count: int  # of the examples that are left
    removed: bytes = b""  # a bit for each example of the span, 1 where it is held out; empty where none is

    def read(self) -> Iterator[Example]:
        """The examples that are left. Raises DataChangedError, at the latest at the end, and OSError."""
        digest = hashlib.sha256()
        removed = np.unpackbits(np.frombuffer(self.removed, np.uint8)).astype(bool).tolist()
        for number, (_, example) in enumerate(examples_of(self.span, self.reading)):
            if isinstance(example, RowError):
                raise DataChangedError(self.span.file)
            digest.update(example.content_digest)
            if not removed or (number < len(removed) and not removed[number]):
                yield example
        if digest.hexdigest()[:32] != self.digest:
            raise DataChangedError(self.span.file)


@dataclass(frozen=True)
class HeldBlock:
    """Examples that are in memory: built-in data, and samples."""

    examples: tuple[Example, ...]

    @property
    def count(self) -> int:
        return len(self.examples)

    def read(self) -> Iterator[Example]:
        """All of them."""
        return iter(self.examples)


@dataclass(frozen=True)
class Items:
    """What the verdict asks of every held-out item, and tuning of every training example."""

    learnable_bytes: np.ndarray  # (items,) int64
    group_numbers: np.ndarray  # (items,) int64, places in `groups`
    groups: tuple[str, ...]
    digests: np.ndarray  # (items,) S16
    actions: np.ndarray | None = None  # (items, dimensions) float64, of a robot's data

    def groups_of(self, items: np.ndarray) -> list[str]:
        """The group of each of some items."""
        return [self.groups[number] for number in self.group_numbers[items]]


@dataclass(frozen=True)
class Pictures:
    """What a plan says of a dataset's images. Sizes are width and height in pixels, by area."""

    count: int
    most_per_example: int
    smallest: tuple[int, int]
    largest: tuple[int, int]

    def followed_by(self, others: "Pictures") -> "Pictures":
        """These and others."""
        return Pictures(
            self.count + others.count,
            max(self.most_per_example, others.most_per_example),
            min(self.smallest, others.smallest, key=math.prod),
            max(self.largest, others.largest, key=math.prod),
        )


@dataclass(frozen=True)
class Dataset:
    """Examples in file order. `digest` hashes their content and which share a group, not where they were found."""

    reference: str
    digest: str
    count: int
    learnable_bytes: int
    blocks: tuple[Block | HeldBlock, ...] = field(repr=False)
    items: Items | None = field(default=None, repr=False, compare=False)  # of held-out data, and where asked for
    actions: ActionStatistics | None = field(default=None, repr=False)  # of a robot's data
    pictures: Pictures | None = None  # where every example has an image
    chunk: int = 1  # actions of an answer, where no episode ends

    def __len__(self) -> int:
        return self.count

    def read(self) -> Iterator[Example]:
        """The examples in order. Raises DataChangedError and OSError."""
        for block in self.blocks:
            yield from block.read()

    def take(self, places: Sequence[int]) -> "Dataset":
        """Some of the examples, in memory; `places` rise. Reads only the blocks that hold them."""
        taken: list[Example] = []
        first, waiting = 0, list(reversed(places))
        for block in self.blocks:
            if waiting and waiting[-1] < first + block.count:
                for place, example in enumerate(block.read(), start=first):
                    if waiting and waiting[-1] == place:
                        taken.append(example)
                        waiting.pop()
            first += block.count
        return held(self.reference, taken, self.chunk)


@dataclass
class Summary:
    """Adds up what was scanned, span by span, without what is held out."""

    held_out: np.ndarray = field(default_factory=lambda: NOTHING)  # (held out,) S16, sorted
    keeps_items: bool = False
    chunk: int = 1
    removed: int = 0
    _count: int = 0
    _bytes: int = 0
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _groups: dict[str, int] = field(default_factory=dict)
    _items: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    _actions: list[np.ndarray] = field(default_factory=list)
    _pictures: Pictures | None = None
    _episodes: dict[str, str] = field(default_factory=dict)  # of chunks: the file of each, in the order of their rows

    def add(self, scanned: Scanned) -> tuple[int, bytes]:
        """Counts a span's examples; returns how many are left, and a bit for each that tells whether it is removed."""
        is_out = occur_in(scanned.digests, self.held_out)
        left = np.flatnonzero(~is_out)
        # Numbered by first occurrence among what is left: what is held out has no part in the digest.
        names, numbers = scanned.groups, scanned.group_numbers[left].tolist()
        numbers = [self._groups.setdefault(names[number], len(self._groups)) for number in numbers]
        text = scanned.digests[left].tobytes().hex()
        lines = [f"{text[32 * at : 32 * at + 32]} {number}\n" for at, number in enumerate(numbers)]
        self._digest.update("".join(lines).encode())
        self._count += len(left)
        self._bytes += int(scanned.learnable_bytes[left].sum())
        self.removed += len(scanned) - len(left)
        if scanned.dimensions:
            self._actions.append(scanned.actions[left])
        if scanned.has_images and len(left):
            pictures = _pictures_of(scanned, ~is_out)
            self._pictures = self._pictures.followed_by(pictures) if self._pictures else pictures
        if self.keeps_items:
            self._items.append((scanned.digests[left], scanned.learnable_bytes[left], np.array(numbers, np.int64)))
        return len(left), np.packbits(is_out).tobytes() if len(left) < len(scanned) else b""

    def dimensions(self, scanned: Scanned) -> int:
        """That a span's actions must have: those of the first span."""
        return int(self._actions[0].shape[1]) if self._actions else scanned.dimensions

    def find_again(self, scanned: Scanned) -> SpecProblem | None:
        """What is wrong where an episode of a span was there before: chunks are made of rows one after the other."""
        for episode, row in scanned.episodes:
            file = self._episodes.get(episode)
            elsewhere = file != scanned.span.file
            if file is not None and (elsewhere or episode != next(reversed(self._episodes))):
                return scanned.again(row, episode, elsewhere)
            self._episodes[episode] = scanned.span.file
        return None

    def expects_images(self, scanned: Scanned) -> bool:
        """Whether a span's examples must have images: as those of the first span."""
        return self._pictures is not None if self._count else scanned.has_images

    @property
    def digests(self) -> np.ndarray:
        """(items,) S16, sorted: what the other split must not have."""
        return np.sort(np.concatenate([NOTHING, *(digests for digests, _, _ in self._items)]))

    def dataset(self, reference: str, blocks: Iterable[Block | HeldBlock]) -> Dataset:
        """The whole, over the blocks that were added."""
        everything = np.concatenate(self._actions) if self._actions and self._count else None
        items = None
        if self.keeps_items:
            sizes = np.concatenate([np.array([], np.int64), *(sizes for _, sizes, _ in self._items)])
            numbers = np.concatenate([np.array([], np.int64), *(numbers for _, _, numbers in self._items)])
            digests = np.concatenate([NOTHING, *(digests for digests, _, _ in self._items)])
            items = Items(sizes, numbers, tuple(self._groups), digests, everything)
        actions = None if everything is None else count_statistics(everything, len(self._groups))
        digest = self._digest.hexdigest()[:32]
        return Dataset(
            reference, digest, self._count, self._bytes, tuple(blocks), items, actions, self._pictures, self.chunk
        )


def held(reference: str, examples: Iterable[Example], chunk: int = 1) -> Dataset:
    """A dataset that is in memory."""
    kept = tuple(examples)
    summary = Summary(keeps_items=True, chunk=chunk)
    summary.add(scan_examples(kept))
    return summary.dataset(reference, (HeldBlock(kept),))


def block_of(scanned: Scanned, reading: Reading, count: int, removed: bytes) -> Block:
    """The block that gives a scanned span's examples again."""
    digest = hashlib.sha256(scanned.digests.tobytes()).hexdigest()[:32]
    return Block(scanned.span, reading, digest, count, removed)


def _pictures_of(scanned: Scanned, is_left: np.ndarray) -> Pictures:
    """Of the examples that are left, at least one."""
    sizes = scanned.image_sizes[np.repeat(is_left, scanned.images)]
    areas = sizes[:, 0].astype(np.int64) * sizes[:, 1]
    smallest, largest = (tuple(sizes[place].tolist()) for place in (areas.argmin(), areas.argmax()))
    return Pictures(len(sizes), int(scanned.images[is_left].max()), smallest, largest)


def occur_in(digests: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(examples,) bool: which of the digests are among the others, which are sorted."""
    if not len(others):
        return np.zeros(len(digests), np.bool_)
    places = np.minimum(np.searchsorted(others, digests), len(others) - 1)
    return np.asarray(others[places] == digests)
