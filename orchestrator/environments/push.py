"""PushT: a disc pushes a T over a plane until it lies on its outline. People demonstrate it; no expert is written.

The image is the plane from above, 96 x 96 pixels; the action is two numbers in [0, 512], the place that the disc heads
for during a tenth of a second. An episode ends with success, once more than 95 % of the outline is covered, or after
300 steps; the reward is the share that is covered, of 95 %, and at most 1. The seed places disc and block.
Source: Chi et al. 2023, https://arxiv.org/abs/2303.04137; gym_pusht.
"""

import os
from typing import Any

import numpy as np

from orchestrator.environments.environment import Expert, NoExpertError, Observation, Step
from orchestrator.errors import InputError

NAME = "PushT-v0"
SIDE = 512  # of the plane, in the units of an action
DIMENSIONS = 2
INSTRUCTION = "Push the T-shaped block onto the T-shaped target."  # as the recordings of lerobot/pusht say it


class Push:
    """The environment of gym_pusht."""

    dimensions = DIMENSIONS
    most_steps = 300

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def reset(self, seed: int) -> Observation:
        image, _ = self._wrapped.reset(seed=seed)
        return _seen(image)

    def step(self, action: np.ndarray) -> Step:
        heading = np.clip(np.asarray(action, np.float64), 0, SIDE)
        image, reward, terminated, truncated, info = self._wrapped.step(heading)
        return Step(_seen(image), bool(terminated or truncated), bool(info["is_success"]), float(reward))

    def random_action(self, generator: np.random.Generator) -> np.ndarray:
        return generator.uniform(0, SIDE, DIMENSIONS)

    def expert(self) -> Expert:
        raise NoExpertError(
            f"pusht:{NAME} has no expert that acts by rules: people demonstrate it. Learn from their recordings, "
            "`hf download lerobot/pusht --repo-type dataset --local-dir pusht`, with recipe.data "
            "{train: 'pusht#0:185', validation: 'pusht#185:206', format: actions}"
        )

    def close(self) -> None:
        self._wrapped.close()


def _seen(image: np.ndarray) -> Observation:
    return Observation(np.ascontiguousarray(image, dtype=np.uint8), INSTRUCTION)


def open_push(name: str) -> Push:
    """By gym_pusht's only name. Raises InputError for another."""
    if name != NAME:
        raise InputError(f"there is no environment 'pusht:{name}'; the only one is pusht:{NAME}")
    # pygame reads both when it is imported: it needs no window, and is not to greet whoever reads our output.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import gymnasium

    settings = {"obs_type": "pixels", "render_mode": "rgb_array", "max_episode_steps": Push.most_steps}
    return Push(gymnasium.make(f"gym_pusht:gym_pusht/{NAME}", disable_env_checker=True, **settings))
