"""A short film of an episode, as an animated WebP that a page can hold: its actions are taken once more."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator.environments.fleet import Fleet
from orchestrator.rollouts.play import Episode

MOST_BYTES = 90_000
MOST_FRAMES = 100
FRAME_MS, LAST_FRAME_MS = 250, 1000
SHORTEST_SIDE, SMALLEST_SIDE = 168, 84  # pixels that a film has at least, where it may, and where it gets too large


def frames_of(fleet: Fleet, episode: Episode) -> list[np.ndarray]:
    """What the camera saw, uint8 (H, W, 3) each: one more than there were steps."""
    frames = [fleet.reset({0: episode.seed})[0].image]
    frames += [fleet.step({0: np.array(action)})[0].observation.image for action in episode.actions]
    return frames


def write_film(file: Path, frames: Sequence[np.ndarray]) -> None:
    """At most `MOST_BYTES`: of a long or rich episode every second frame, or every fourth, smaller and less sharp."""
    every = -(-len(frames) // MOST_FRAMES)
    for side, quality, thinned in ((SHORTEST_SIDE, None, 1), (SHORTEST_SIDE, 60, 1), (SMALLEST_SIDE, 40, 2)):
        film = _encode([*frames[: -1 : every * thinned], frames[-1]], side, quality)
        if len(film) <= MOST_BYTES:
            break
    file.write_bytes(film)


def _encode(frames: Sequence[np.ndarray], side: int, quality: int | None) -> bytes:
    """`quality` 0 to 100; None loses nothing."""
    images = [Image.fromarray(frame) for frame in frames]
    shorter = min(images[0].size)
    if shorter < side:  # a tile stays a tile
        factor = -(-side // shorter)
        images = [one.resize((one.width * factor, one.height * factor), Image.Resampling.NEAREST) for one in images]
    elif shorter > 2 * side:
        images = [one.resize((one.width * side // shorter, one.height * side // shorter)) for one in images]
    stream = io.BytesIO()
    images[0].save(
        stream,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=[FRAME_MS] * (len(images) - 1) + [LAST_FRAME_MS],
        loop=0,
        lossless=quality is None,
        quality=80 if quality is None else quality,
    )
    return stream.getvalue()
