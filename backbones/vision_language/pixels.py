"""From the bytes of images to what vision towers take. NumPy, as transformers' image processors compute it.

Shape suffixes: I images, S pixels a side, C channels, P patches of all images, G patches a side.
"""

import numpy as np

from backbones.inputs import check_squares
from backbones.spec import Vision


def normalised(images_ISSC: np.ndarray, vision: Vision) -> np.ndarray:
    """(I, C, S, S) float32 of (I, S, S, C) uint8. Raises ValueError for images of another size than the spec's."""
    check_squares(images_ISSC, vision)
    pixels = images_ISSC.astype(np.float32) * np.float32(1 / 255)
    scaled: np.ndarray = (pixels - np.array(vision.mean, np.float32)) / np.array(vision.std, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def patches(pixels_ICSS: np.ndarray, patch_size: int, merge_size: int, frames: int) -> np.ndarray:
    """(P, C * frames * patch_size^2) float32: Qwen-VL's order, in which patches that are merged follow one another.

    An image is a film of `frames` equal pictures. Source: transformers, Qwen2VLImageProcessorPil.patchify.
    """
    count, channels, side, _ = pixels_ICSS.shape
    groups = side // patch_size // merge_size
    split = pixels_ICSS.reshape(count, channels, groups, merge_size, patch_size, groups, merge_size, patch_size)
    ordered = split.transpose(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :]
    film = np.broadcast_to(ordered, (*ordered.shape[:6], frames, *ordered.shape[-2:]))
    return film.reshape(count * (groups * merge_size) ** 2, -1)
