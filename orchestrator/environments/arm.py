"""Meta-World: a Sawyer arm in MuJoCo, a task a name, an expert for each of them.

The image is camera `corner2`, 128 x 128 pixels; the action is four numbers in [-1, 1], how far the hand moves along
each axis and how hard the gripper closes. An episode ends with success, or after 500 steps. Goals and objects are
placed by the episode's seed.
"""

import difflib
import os
from typing import Any

import numpy as np

from orchestrator.environments.environment import Expert, Observation, Step
from orchestrator.errors import InputError

SIDE = 128  # pixels
CAMERA = "corner2"  # hangs upside down
DIMENSIONS = 4


class Arm:
    """A task of Meta-World."""

    dimensions = DIMENSIONS
    most_steps = 500

    def __init__(self, name: str, simulator: Any, expert: Any) -> None:
        self._instruction = name.rpartition("-v")[0].replace("-", " ")
        self._simulator, self._expert = simulator, expert
        self._state = np.zeros(0)

    def reset(self, seed: int) -> Observation:
        np.random.seed(seed)  # from which the library places things; this is a process for simulators
        self._simulator.seed(seed)
        self._state, _ = self._simulator.reset()
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        self._state, reward, _, truncated, info = self._simulator.step(np.clip(action, -1, 1).astype(np.float32))
        succeeded = bool(info["success"])
        return Step(self._observe(), succeeded or bool(truncated), succeeded, float(reward))

    def random_action(self, generator: np.random.Generator) -> np.ndarray:
        return generator.uniform(-1, 1, DIMENSIONS)

    def expert(self) -> Expert:
        policy = self._expert()
        return lambda: np.clip(np.asarray(policy.get_action(self._state), np.float64), -1, 1)

    def close(self) -> None:
        self._simulator.close()

    def _observe(self) -> Observation:
        return Observation(
            np.ascontiguousarray(self._simulator.render()[::-1, ::-1], dtype=np.uint8), self._instruction
        )


def open_arm(name: str) -> Arm:
    """By Meta-World's name of a task. Raises InputError where there is none."""
    if "DISPLAY" not in os.environ:  # MuJoCo reads it when it is imported, and wants a window unless told otherwise
        os.environ.setdefault("MUJOCO_GL", "egl")
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    if name not in ALL_V3_ENVIRONMENTS:
        near = difflib.get_close_matches(name, ALL_V3_ENVIRONMENTS, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"Meta-World has no task {name!r}{hint}")
    simulator: Any = ALL_V3_ENVIRONMENTS[name](render_mode="rgb_array", camera_name=CAMERA, width=SIDE, height=SIDE)
    # What its benchmark classes do to draw their tasks: goals are drawn at each reset, and experts see them.
    simulator._freeze_rand_vec, simulator._set_task_called, simulator._partially_observable = False, True, False
    vars(simulator).pop("sawyer_observation_space", None)  # the bounds of states that hide the goal, once computed
    return Arm(name, simulator, ENV_POLICY_MAP[name])
