"""Renders the images of a split to squares of one size, in parts, into arrays that every rank then maps.

A folder holds `images.npy`, each distinct image once in the order of the data, and the digests by which they are found.
It is named by the data, the size and the filter alone: every tokenizer and seed shares it.
"""

import errno
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.data.arrays import new_folder, write_rows
from orchestrator.data.examples import Image
from orchestrator.data.images.files import ImageError, content_of, render
from orchestrator.data.images.pixels import DIGEST, DIGESTS, IMAGES, PLACES
from orchestrator.data.sources.dataset import Block, DataChangedError, HeldBlock

FORMAT = 1  # raise it when the same image comes to have other pixels
THREADS = 8  # at most, that render a part's images
AHEAD = 64  # images that are rendered before the first of them is written


@dataclass(frozen=True)
class Rendering:
    """The images of a split for one size: where their pixels are or go, and the parts in which they are made."""

    folder: Path
    parts: tuple[tuple[Block | HeldBlock, ...], ...]
    image_size: int  # pixels a side
    resample: str  # pillow's filter

    @property
    def is_ready(self) -> bool:
        return self.folder.is_dir()


def rendering_of(
    parts: tuple[tuple[Block | HeldBlock, ...], ...], digest: str, image_size: int, resample: str, folder: Path
) -> Rendering:
    """Named by the data's digest and how it is rendered."""
    key = json.dumps(["pixels", FORMAT, digest, image_size, resample])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return Rendering(folder / name, parts, image_size, resample)


def render_part(rendering: Rendering, number: int, folder: Path) -> Path:
    """Renders the images of one part, each once. Raises DataChangedError, and OSError where a file is not here."""
    part = folder / f"{number:06d}"
    with new_folder(part) as partial, open(partial / IMAGES, "wb") as stream:
        digests = bytearray()
        for image, pixels in _rendered(_distinct(rendering.parts[number]), rendering):
            digests += bytes.fromhex(image.sha256)
            stream.write(pixels.data)
        (partial / DIGESTS).write_bytes(digests)
    return part


def join_pixels(rendering: Rendering, parts: Sequence[Path]) -> None:
    """One folder of the parts' images, in order, each once."""
    found = [np.frombuffer((part / DIGESTS).read_bytes(), DIGEST) for part in parts]
    everything = np.concatenate(found)
    digests, first = np.unique(everything, return_index=True)
    is_first = np.zeros(len(everything), np.bool_)
    is_first[first] = True
    shape = (rendering.image_size, rendering.image_size, 3)
    starts = np.cumsum([0, *map(len, found)])
    with new_folder(rendering.folder) as partial:

        def kept() -> Iterator[np.ndarray]:
            for part, some, start in zip(parts, found, starts, strict=False):
                images = np.memmap(part / IMAGES, np.uint8, "r", shape=(len(some), *shape))
                yield from (images[place][None] for place in np.flatnonzero(is_first[start : start + len(some)]))

        write_rows(partial / IMAGES, kept(), (len(digests), *shape))
        write_rows(partial / DIGESTS, [digests], digests.shape)
        places = (np.cumsum(is_first) - 1)[first]
        write_rows(partial / PLACES, [places], places.shape)


def _distinct(blocks: Iterable[Block | HeldBlock]) -> Iterator[Image]:
    """Each image of some examples, the first time that it is met."""
    seen: set[str] = set()
    for block in blocks:
        for example in block.read():
            for image in example.images:
                if image.sha256 not in seen:
                    seen.add(image.sha256)
                    yield image


def _rendered(images: Iterable[Image], rendering: Rendering) -> Iterator[tuple[Image, np.ndarray]]:
    """The images in order with their pixels; some are being rendered while others are read and written."""

    def pixels_of(image: Image) -> np.ndarray:
        try:
            data = content_of(image.source)
            if hashlib.sha256(data).hexdigest() != image.sha256:
                raise DataChangedError(_name(image))
            return render(data, rendering.image_size, rendering.resample)
        except ImageError as error:
            if isinstance(image.source, Path) and not image.source.exists():  # as on a node that does not share it
                raise FileNotFoundError(errno.ENOENT, "no such image", _name(image)) from None
            raise DataChangedError(_name(image)) from error

    waiting: deque[tuple[Image, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS)) as threads:
        for image in images:
            waiting.append((image, threads.submit(pixels_of, image)))
            if len(waiting) == AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _name(image: Image) -> str:
    return str(image.source) if isinstance(image.source, Path) else "an image of a table"
