"""Pictures as files: PNG, which loses nothing, and animated WebP."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_png(file: Path, picture: np.ndarray) -> None:
    """A picture (H, W, 3) uint8, RGB."""
    from PIL import Image as pillow

    pillow.fromarray(picture).save(file, "PNG")


def animated(
    frames: Sequence[np.ndarray], milliseconds: Sequence[int], scale: float = 1.0, quality: int | None = None
) -> bytes:
    """Frames (H, W, 3) uint8 as a WebP that repeats for ever; `quality` 0 to 100, None loses nothing.

    Enlarged, a pixel becomes a square.
    """
    from PIL import Image as pillow

    height, width = frames[0].shape[:2]
    size = round(width * scale), round(height * scale)
    filtered = pillow.Resampling.NEAREST if scale > 1 else pillow.Resampling.BICUBIC
    images = [pillow.fromarray(frame).resize(size, filtered) for frame in frames]
    stream = io.BytesIO()
    images[0].save(
        stream,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=list(milliseconds),
        loop=0,
        lossless=quality is None,
        quality=80 if quality is None else quality,
    )
    return stream.getvalue()
