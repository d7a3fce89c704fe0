"""Environments in processes beside the policy, a lane for each episode that runs, stepped as a batch.

A process of their own keeps simulators' windows, prints and crashes out of the process that holds the model, and lets
them use other cores. They are started without a fork: the parent may have threads and a device.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np

from orchestrator.environments.environment import Environment, EnvironmentFailedError, Observation, Step
from orchestrator.environments.registry import open_environment
from orchestrator.errors import InputError

LONGEST_STEP_S = 300.0  # of all lanes of a process; who takes longer hangs
RESET, STEP, DRAW = "reset", "step", "draw"


class Fleet:
    """Lanes 0, 1, ... of one environment, dealt to `processes`. To be closed, or used as a context."""

    def __init__(self, name: str, processes: int) -> None:
        self._name = name
        self._ours: list[Connection] = []
        self._running: list[subprocess.Popen[bytes]] = []
        for _ in range(processes):
            ours, theirs = Pipe()
            command = [sys.executable, "-m", "orchestrator.environments.fleet", str(theirs.fileno()), name]
            paths = os.pathsep.join(path for path in (os.getcwd(), *sys.path) if path)
            surroundings = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
            started = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=surroundings, stdin=subprocess.DEVNULL, stdout=sys.stderr
            )
            theirs.close()
            self._ours.append(ours)
            self._running.append(started)

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def reset(self, seeds: Mapping[int, int]) -> dict[int, Observation]:
        """Begins the episode of a seed on each of the lanes. Raises InputError and EnvironmentFailedError."""
        return self._ask(RESET, seeds)

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, Step]:
        """An action, (D,), on each of the lanes. Raises EnvironmentFailedError."""
        return self._ask(STEP, actions)

    def draw(self, seeds: Mapping[int, tuple[int, ...]]) -> dict[int, np.ndarray]:
        """Any action, (D,), for each of the lanes; the same for the same seeds. Raises EnvironmentFailedError."""
        return self._ask(DRAW, seeds)

    def close(self) -> None:
        """Ends the processes: each of them when it hears nothing more."""
        for end in self._ours:
            end.close()
        for process in self._running:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _ask(self, what: str, of_lanes: Mapping[int, Any]) -> dict[int, Any]:
        shares: list[dict[int, Any]] = [{} for _ in self._ours]
        for lane, one in of_lanes.items():
            shares[lane % len(shares)][lane] = one
        asked = [(end, share) for end, share in zip(self._ours, shares, strict=True) if share]
        answers: dict[int, Any] = {}
        try:
            for end, share in asked:
                end.send((what, share))
            for end, _ in asked:
                if not end.poll(LONGEST_STEP_S):
                    raise EnvironmentFailedError(f"{self._name} did not answer for {LONGEST_STEP_S:g} s")
                answer = end.recv()
                if isinstance(answer, Exception):
                    raise answer
                answers |= answer
        except (EOFError, OSError) as error:
            raise EnvironmentFailedError(
                f"a process that simulates {self._name} ended while it was needed; what it last wrote says why"
            ) from error
        return {lane: answers[lane] for lane in of_lanes}


def _serve(connection: Connection, name: str) -> None:
    lanes: dict[int, Environment] = {}
    while True:
        try:
            what, of_lanes = connection.recv()
        except EOFError:
            return
        try:
            for lane in of_lanes:
                if lane not in lanes:
                    lanes[lane] = open_environment(name)
            connection.send({lane: _do(lanes[lane], what, one) for lane, one in of_lanes.items()})
        except InputError as error:
            connection.send(error)
        except Exception as error:
            connection.send(EnvironmentFailedError(f"{name} failed: {type(error).__name__}: {error}"))


def _do(environment: Environment, what: str, one: Any) -> Any:
    if what == RESET:
        return environment.reset(one)
    if what == STEP:
        return environment.step(one)
    return environment.random_action(np.random.default_rng(one))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), sys.argv[2])
