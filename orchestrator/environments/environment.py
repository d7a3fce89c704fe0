"""What an environment offers, whatever simulator is behind it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from orchestrator.errors import InputError, OrchestratorError

# Whoever learns from episodes and whoever is tested on them draws their seeds from a stream of its own.
DEMONSTRATED, ROLLED_OUT = 1, 2

Expert = Callable[[], np.ndarray]  # the action (D,) for the state in which the environment is


class EnvironmentFailedError(OrchestratorError):
    """A simulator failed while episodes were running."""

    retriable = True


class NoExpertError(InputError):
    """An environment has nobody who knows how to act in it."""


class ExpertLostError(Exception):
    """An expert does not know how to go on in an episode, which is then worth nothing."""


@dataclass(frozen=True)
class Observation:
    """What a policy is told: `image` is uint8 (H, W, 3), RGB, of the same size in all episodes."""

    image: np.ndarray
    instruction: str


@dataclass(frozen=True)
class Step:
    """What an action came to; no action follows one that is `done`, by success, failure or the limit of steps."""

    observation: Observation
    done: bool
    success: bool
    reward: float


class Environment(Protocol):
    """One episode after the other. The same seed and the same actions give the same episode, in every process."""

    dimensions: int  # D, numbers of an action
    most_steps: int  # of an episode; 0 where episodes differ in it

    def reset(self, seed: int) -> Observation:
        """Begins the episode of a seed, 0 to 2**32 - 1."""
        ...

    def step(self, action: np.ndarray) -> Step:
        """One action, float (D,), in the robot's own units: what no actuator can do counts as the nearest it can."""
        ...

    def random_action(self, generator: np.random.Generator) -> np.ndarray:
        """Any action, float (D,): all that the actuators can do are equally likely."""
        ...

    def expert(self) -> Expert:
        """Who acts well in the episode that has just begun, asked before each of its steps.

        Raises NoExpertError where there is nobody; the expert itself raises ExpertLostError.
        """
        ...

    def close(self) -> None:
        """Frees what the simulator holds."""
        ...


def episode_seed(purpose: int, seed: int, number: int) -> int:
    """Of the `number`-th episode under a seed, for one of the purposes above."""
    return int(np.random.SeedSequence([purpose, seed, number]).generate_state(1)[0])
