"""Token arrays: flat files that all ranks of a node share through the page cache, and how parts of them are joined.

A folder holds one .npy file an array, and counts of what the tokenizer did. It is written under another name and
renamed when it is whole. Where the examples have images, it also says which folder beside it holds their pixels.
"""

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from orchestrator.data.images.pixels import Pixels, load_pixels
from orchestrator.results import read_json, write_json

COUNTS = "counts.json"
PIXELS = "pixels.json"
NO_TARGET = np.iinfo(np.int32).max
_TOKENS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class TokenizedDataset:
    """Examples as token ids, concatenated: example i is `input_ids[offsets[i]:offsets[i + 1]]`."""

    input_ids: np.ndarray  # (tokens,) int32
    is_target: np.ndarray  # (tokens,) bool: the model learns to predict this token
    is_scored: np.ndarray  # (tokens,) bool: counts in bits per byte
    offsets: np.ndarray  # (examples + 1,) int64
    learnable_bytes: np.ndarray  # (examples,) int64, UTF-8 bytes
    # (examples,) bool: the prompt format keeps the text, and decode(encode(x)) == x; (0,) of training data
    round_trips: np.ndarray
    # What follows from the others, where it was stored with them.
    stored_targets: np.ndarray | None = None
    stored_first_targets: np.ndarray | None = None
    # Of examples with images: those of example i are `image_digests[image_offsets[i]:image_offsets[i + 1]]`.
    image_offsets: np.ndarray | None = None  # (examples + 1,) int64
    image_digests: np.ndarray | None = None  # (images,) S32
    pixels: Pixels | None = None

    def __len__(self) -> int:
        return len(self.learnable_bytes)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(examples,) int64 tokens of each example."""
        return np.diff(self.offsets)

    @cached_property
    def targets(self) -> np.ndarray:
        """(examples,) int64 target tokens of each example. The first token has no predecessor: it is never a target."""
        if self.stored_targets is not None:
            return self.stored_targets
        parts = [np.add.reduceat(usable.astype(np.int64), starts) for usable, starts in self._usable()]
        return np.concatenate(parts) if parts else np.array([], np.int64)

    @cached_property
    def first_targets(self) -> np.ndarray:
        """(examples,) int64 position in each example of its first target; NO_TARGET where it has none."""
        if self.stored_first_targets is not None:
            return self.stored_first_targets
        parts = []
        for usable, starts in self._usable():
            places = np.where(usable, np.arange(len(usable)), NO_TARGET)
            first = np.minimum.reduceat(places, starts)
            parts.append(np.where(first == NO_TARGET, NO_TARGET, first - starts))
        return np.concatenate(parts) if parts else np.array([], np.int64)

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids, target mask and scored mask of one example."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.input_ids[part], self.is_target[part], self.is_scored[part]

    def images(self, index: int) -> np.ndarray | None:
        """(images, S, S, 3) uint8 of one example, in order; None where the data has none."""
        if self.image_offsets is None or self.image_digests is None or self.pixels is None:
            return None
        return self.pixels.of(self.image_digests[self.image_offsets[index] : self.image_offsets[index + 1]])

    @property
    def has_images(self) -> bool:
        """Whether every example has an image; if not, none has."""
        return self.image_offsets is not None

    def _usable(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some whole examples at a time: their targets that have a predecessor, and where each example starts."""
        first = 0
        while first < len(self):
            full = np.searchsorted(self.offsets, self.offsets[first] + _TOKENS_AT_ONCE, side="right") - 1
            last = max(int(full), first + 1)
            starts = np.asarray(self.offsets[first:last] - self.offsets[first])
            usable = self.is_target[self.offsets[first] : self.offsets[last]].copy()
            usable[starts] = False
            yield usable, starts
            first = last


_IMAGE_NAMES = ("image_offsets", "image_digests")
_NAMES = tuple(field.name for field in fields(TokenizedDataset) if field.name not in (*_IMAGE_NAMES, "pixels"))


def save_arrays(folder: Path, data: TokenizedDataset, counts: dict[str, int], is_part: bool = False) -> None:
    """Writes arrays and counts as a folder, unless it is there. A part need not outlive this machine's next minute."""
    with new_folder(folder) as partial:
        derived = {"stored_targets": data.targets, "stored_first_targets": data.first_targets}
        for name in _NAMES + (_IMAGE_NAMES if data.has_images else ()):
            with _array_file(partial, name, is_durable=not is_part) as stream:
                np.save(stream, derived.get(name, getattr(data, name)))
        write_json(partial / COUNTS, counts)


def load_arrays(folder: Path) -> TokenizedDataset:
    """Maps the arrays of a folder: what is read is shared by all processes of a node. Nothing can be written to."""
    arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _names_in(folder)}
    pixels = find_pixels(folder)
    return TokenizedDataset(**arrays, pixels=None if pixels is None else load_pixels(pixels))


def find_pixels(folder: Path) -> Path | None:
    """Where the pixels of some arrays' images are; None where they have none."""
    file = folder / PIXELS
    return folder.with_name(read_json(file)["folder"]) if file.exists() else None


def is_prepared(folder: Path) -> bool:
    """Whether arrays are there, and the pixels that belong to them."""
    return folder.is_dir() and ((pixels := find_pixels(folder)) is None or pixels.is_dir())


def join_arrays(parts: Sequence[Path], folder: Path, pixels: Path | None = None) -> None:
    """One folder of the parts' arrays, in order, and the sums of their counts. Holds no array of all in memory.

    `pixels` is the folder beside it that has the images.
    """
    with new_folder(folder) as partial:
        for name in _names_in(parts[0]):
            arrays = [np.load(part / f"{name}.npy", mmap_mode="r") for part in parts]
            if name in ("offsets", "image_offsets"):
                starts = np.cumsum([0, *(int(array[-1]) for array in arrays)])
                arrays = [array[:-1] + start for array, start in zip(arrays, starts, strict=False)]
                arrays.append(starts[-1:])
            write_rows(partial / f"{name}.npy", arrays, (sum(map(len, arrays)), *arrays[0].shape[1:]))
        counts = [read_json(part / COUNTS) for part in parts]
        write_json(partial / COUNTS, {key: sum(one[key] for one in counts) for key in counts[0]})
        if pixels is not None:
            write_json(partial / PIXELS, {"folder": pixels.name})


def write_rows(file: Path, arrays: Iterable[np.ndarray], shape: tuple[int, ...]) -> None:
    """An array of some shape as a .npy file, out of others with some of its rows each, one after the other."""
    with _array_file(file.parent, file.stem) as stream:
        for number, array in enumerate(arrays):
            if not number:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(np.ascontiguousarray(array).data)


def _names_in(folder: Path) -> tuple[str, ...]:
    return _NAMES + (_IMAGE_NAMES if (folder / f"{_IMAGE_NAMES[0]}.npy").exists() else ())


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that gets its name when it is whole; if another has it by then, that one stays."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        yield partial
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _array_file(folder: Path, name: str, is_durable: bool = True) -> Iterator[BinaryIO]:
    with open(folder / f"{name}.npy", "wb") as stream:
        yield stream
        stream.flush()
        if is_durable:
            os.fsync(stream.fileno())
