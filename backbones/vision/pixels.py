"""Images as towers see them, and where their placeholders stand. NumPy only."""

from collections.abc import Sequence

import numpy as np

from backbones.inputs import Example, check_squares, placeholders_of
from backbones.spec import Vision


def normalised(images_NSSC: np.ndarray, vision: Vision) -> np.ndarray:
    """(N, S, S, 3) uint8 -> (N, 3 for each tower, S, S) fp32, each channel normalised as its tower was trained.

    Raises ValueError for images of another size.
    """
    check_squares(images_NSSC, vision)
    return stacked(images_NSSC, vision.mean, vision.std)


def stacked(images_NSSC: np.ndarray, means: Sequence[float], stds: Sequence[float]) -> np.ndarray:
    """(N, S, S, 3) uint8 -> (N, 3 for each tower, S, S) fp32: the colours again for each tower, normalised for it."""
    unit = images_NSSC.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (means, stds))
    return (np.tile(unit, (1, len(means) // 3, 1, 1)) - mean) / std


def placeholder_positions(
    rows: Sequence[Sequence[Example]], width: int, placeholder: int, vision: Vision
) -> np.ndarray:
    """Where the placeholders stand in rows of `width` positions laid end to end, int64 (images x tokens an image).

    Raises CodecError for an example whose images and placeholders do not come out even.
    """
    found = []
    for line, row in enumerate(rows):
        start = line * width
        for example in row:
            found.append(start + placeholders_of(example, placeholder, vision))
            start += len(example.input_ids)
    return np.concatenate(found).astype(np.int64)
