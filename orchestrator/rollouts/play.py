"""Episodes that a policy plays, a batch of them at a time, alone or on every rank of a gang."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from orchestrator.environments.environment import Observation
from orchestrator.environments.fleet import Fleet
from orchestrator.parallel import Mesh

LANES = 16  # episodes that are played side by side: the batch of a forward pass

Value = TypeVar("Value")


@dataclass(frozen=True)
class Request:
    """What a policy is asked: how to go on in the episode of a seed after so many steps."""

    seed: int
    step: int
    observation: Observation


@dataclass(frozen=True)
class Episode:
    """What became of an episode. `actions` are those taken, in the robot's own units: with its seed they repeat it."""

    seed: int
    instruction: str
    success: bool
    total_reward: float
    actions: tuple[tuple[float, ...], ...]

    @property
    def length(self) -> int:
        """Steps."""
        return len(self.actions)


# The next actions, (requests, steps, D), in the robot's own units: they are taken before the policy is asked again.
Policy = Callable[[Sequence[Request]], np.ndarray]


class Gang(Protocol):
    """Who plays together. Both methods are collective."""

    rank: int
    world: int

    def goes_on(self, busy: bool) -> bool:
        """Whether any rank is busy. Raises where all are to stop."""
        ...

    def gathered(self, value: Value) -> list[Value]:
        """Every rank's value."""
        ...


class Alone:
    """A gang of one."""

    rank, world = 0, 1

    def goes_on(self, busy: bool) -> bool:
        return busy

    def gathered(self, value: Value) -> list[Value]:
        return [value]


class OnMesh:
    """The ranks of a mesh; `obey` is called by all of them before each step, and raises on all where they stop."""

    def __init__(self, mesh: Mesh, obey: Callable[[], None]) -> None:
        self._mesh, self._obey = mesh, obey
        self.rank, self.world = mesh.dp_rank, mesh.dp_size

    def goes_on(self, busy: bool) -> bool:
        self._obey()
        return any(self._mesh.gathered(busy))

    def gathered(self, value: Value) -> list[Value]:
        return self._mesh.gathered(value)


class _Group:
    """Episodes that began together; the batch shrinks as they end, so it is the same on whichever rank they are."""

    def __init__(self, fleet: Fleet, seeds: Sequence[int], max_steps: int | None) -> None:
        self._fleet, self._seeds, self._max_steps = fleet, seeds, max_steps
        self._seen = fleet.reset(dict(enumerate(seeds)))  # of each lane that runs
        self._instructions = {lane: one.instruction for lane, one in self._seen.items()}
        self._actions: list[list[tuple[float, ...]]] = [[] for _ in seeds]
        self._rewards = [0.0 for _ in seeds]

    @property
    def requests(self) -> list[Request]:
        return [Request(self._seeds[lane], len(self._actions[lane]), seen) for lane, seen in self._seen.items()]

    def take(self, actions: np.ndarray) -> list[Episode]:
        """The episodes that end with these actions, (requests, steps, D), which are taken one after the other."""
        planned = dict(zip(self._seen, actions, strict=True))
        ended = []
        for number in range(actions.shape[1]):
            ended += self._step({lane: planned[lane][number] for lane in self._seen})
        return ended

    def _step(self, actions: Mapping[int, np.ndarray]) -> list[Episode]:
        """The episodes that end with an action, (D,), on each lane that runs."""
        ended = []
        for lane, step in self._fleet.step(actions).items():
            self._actions[lane].append(tuple(actions[lane].tolist()))
            self._rewards[lane] += step.reward
            if step.done or len(self._actions[lane]) == self._max_steps:
                del self._seen[lane]
                ended.append(self._episode(lane, step.success))
            else:
                self._seen[lane] = step.observation
        return ended

    def _episode(self, lane: int, success: bool) -> Episode:
        return Episode(
            self._seeds[lane], self._instructions[lane], success, self._rewards[lane], tuple(self._actions[lane])
        )


def play(
    policy: Policy, fleet: Fleet, seeds: Sequence[int], gang: Gang | None = None, max_steps: int | None = None
) -> list[Episode]:
    """The episodes of these seeds, in their order, on every rank. Collective.

    What has not succeeded after `max_steps` failed; without, the environment alone ends its episodes.
    A policy may gather parameters in each forward pass, so all ranks ask it equally often: those with nothing left to
    play ask again what they asked last. Which episodes share a batch does not depend on the number of ranks.
    """
    gang = gang or Alone()
    groups = [seeds[start : start + LANES] for start in range(0, len(seeds), LANES)]
    waiting = groups[gang.rank :: gang.world] or [groups[-1][:1]]  # whoever has none needs something to ask
    played: dict[int, Episode] = {}
    group: _Group | None = None
    requests: list[Request] = []
    while True:
        if group is None and waiting:
            group = _Group(fleet, waiting.pop(0), max_steps)
        if not gang.goes_on(group is not None):
            break
        requests = group.requests if group is not None else requests
        actions = policy(requests)
        if group is not None:
            played |= {episode.seed: episode for episode in group.take(actions)}
            group = group if group.requests else None
    everywhere: dict[int, Episode] = {}
    for share in gang.gathered(played):
        everywhere |= share
    return [everywhere[seed] for seed in seeds]
