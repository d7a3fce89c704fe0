"""MiniGrid and BabyAI: rooms of tiles, instructions in words, seven discrete actions, an expert for BabyAI's levels.

The image is what the agent sees: 7 x 7 tiles of 8 pixels with itself at the lower edge, looking up. Behind `@whole` it
is the whole grid from above. The action is one number, rounded: 0 turns left, 1 right, 2 goes forward, 3 picks up,
4 drops, 5 toggles, 6 is done.
"""

import difflib
import importlib
import io
from contextlib import redirect_stdout
from typing import Any

import gymnasium
import minigrid
import numpy as np
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError

from orchestrator.environments.environment import Expert, ExpertLostError, NoExpertError, Observation, Step
from orchestrator.environments.registry import WHOLE, look_here
from orchestrator.errors import InputError

TILE = 8  # pixels a side: a patch of 8 or a power of two is one tile or part of one


class Grid:
    """An environment of MiniGrid."""

    dimensions = 1
    most_steps = 0  # larger mazes have more

    def __init__(self, name: str, whole: bool) -> None:
        self._name, self._whole = name, whole
        self._wrapped = gymnasium.make(name, disable_env_checker=True)
        self._inside: Any = self._wrapped.unwrapped
        if not isinstance(self._inside, MiniGridEnv):
            self._wrapped.close()
            raise InputError(f"{name!r} is no environment of MiniGrid: its class must be a minigrid.MiniGridEnv")
        self._last = len(self._inside.actions) - 1

    def reset(self, seed: int) -> Observation:
        with redirect_stdout(io.StringIO()):  # it prints every layout that it rejects
            self._wrapped.reset(seed=seed)
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        chosen = int(np.clip(np.rint(action[0]), 0, self._last))
        _, reward, terminated, truncated, _ = self._wrapped.step(chosen)
        succeeded = bool(terminated and float(reward) > 0)
        return Step(self._observe(), bool(terminated or truncated), succeeded, float(reward))

    def random_action(self, generator: np.random.Generator) -> np.ndarray:
        return generator.integers(0, self._last, size=1, endpoint=True).astype(np.float64)

    def expert(self) -> Expert:
        if not isinstance(self._inside, RoomGridLevel):
            raise NoExpertError(f"minigrid:{self._name} has no expert: only BabyAI's levels have; use one of those")
        bot, taken = BabyAIBot(self._inside), None

        def act() -> np.ndarray:
            nonlocal taken
            try:
                taken = bot.replan(taken)
            except (AssertionError, DisappearedBoxError) as error:
                raise ExpertLostError(str(error)) from error
            return np.array([float(taken)])

        return act

    def close(self) -> None:
        self._wrapped.close()

    def _observe(self) -> Observation:
        if self._whole:
            image = self._inside.get_frame(highlight=False, tile_size=TILE)
        else:
            image = self._inside.get_pov_render(TILE)
        return Observation(np.ascontiguousarray(image, dtype=np.uint8), str(self._inside.mission))


def open_grid(name: str) -> Grid:
    """By MiniGrid's id, with or without `@whole`; `MODULE:ID` imports what registers it, as gymnasium's own names do.

    Raises InputError where there is none.
    """
    module, _, level = name.removesuffix(WHOLE).rpartition(":")
    if module:
        _import_levels(module)
    known = [one for one in gymnasium.registry if module or one.startswith(("BabyAI-", "MiniGrid-"))]
    if level not in known:
        near = difflib.get_close_matches(level, known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        where = f"after importing {module}, gymnasium" if module else f"MiniGrid {minigrid.__version__}"
        raise InputError(f"{where} has no environment {level!r}{hint}")
    return Grid(level, whole=name.endswith(WHOLE))


def _import_levels(module: str) -> None:
    look_here()
    try:
        importlib.import_module(module)
    except Exception as error:
        raise InputError(
            f"minigrid:{module}: the module cannot be imported: {type(error).__name__}: {error}; it is looked for in "
            "the folder that the command runs in and among what is installed on every node"
        ) from error
