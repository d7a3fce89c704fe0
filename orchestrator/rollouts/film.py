"""A short film of an episode, as an animated WebP that a page can hold: its actions are taken once more."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orchestrator.data.images.written import animated
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
    shorter, scale = min(frames[0].shape[:2]), 1.0
    if shorter < side:
        scale = float(-(-side // shorter))  # a tile stays a tile
    elif shorter > 2 * side:
        scale = side / shorter
    return animated(frames, [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS], scale, quality)
