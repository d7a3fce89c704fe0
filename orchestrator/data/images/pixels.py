"""Pixels: the images of a split as squares of one size, each once, mapped by every rank of a node. NumPy only."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

DIGEST = np.dtype("S32")  # compares as bytes do: all are of one length
IMAGES, DIGESTS, PLACES = "images.npy", "digests.npy", "places.npy"


@dataclass(frozen=True)
class Pixels:
    """The images of a split, mapped."""

    images: np.ndarray  # (images, S, S, 3) uint8, RGB
    digests: np.ndarray  # (images,) S32, SHA-256 of the images' bytes, sorted
    places: np.ndarray  # (images,) int64, where in `images` the image of each digest is

    def of(self, digests: np.ndarray) -> np.ndarray:
        """(some, S, S, 3) uint8: copies of the images with these digests, all of which are there."""
        return np.asarray(self.images[self.places[np.searchsorted(self.digests, digests)]])


def load_pixels(folder: Path) -> Pixels:
    """Maps what was rendered."""
    arrays = [np.asarray(np.load(folder / name, mmap_mode="r")) for name in (IMAGES, DIGESTS, PLACES)]
    return Pixels(*arrays)
