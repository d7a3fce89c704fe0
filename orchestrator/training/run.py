"""What the stages of one attempt share."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cell_job import CellJob
from orchestrator.faults import Point
from orchestrator.parallel import Mesh
from orchestrator.tracking.recorder import Recorder
from orchestrator.training.checkpoints.resumption import Remade
from orchestrator.training.measurement import ItemScores
from orchestrator.training.pulse import Pulse
from orchestrator.training.rate import Seen, progress
from orchestrator.training.step import CONTINUE, STOP, TIMED_OUT
from orchestrator.training.trainee import Trainee


@dataclass(frozen=True)
class Position:
    """How far a run has come; stored in every checkpoint."""

    seen: Seen = field(default_factory=Seen)
    train_time_s: float = 0.0  # in steps alone
    checkpoint_stall_s: float = 0.0
    checkpoints: int = 0
    order: Sequence[str] = ()  # digests of the steps made last and of the next one: see resumption


def _nothing(run: "CellRun") -> int:
    """No stage does anything between two steps."""
    return CONTINUE


@dataclass
class CellRun:
    """One attempt on this rank. Each stage finds here what earlier ones made, and leaves what later ones need."""

    job: CellJob
    mesh: Mesh
    recorder: Recorder
    pulse: Pulse = field(default_factory=Pulse)  # looked at by another thread
    position: Position = field(default_factory=Position)
    scores: ItemScores | None = None  # of the newest evaluation
    contract: dict[str, Any] | None = None  # as found after this attempt's first step
    peaks_gib: tuple[float, float] = (0.0, 0.0)  # of device and host, the largest of all ranks
    tasks: Any = None  # as the stage that finds them left them
    metrics: dict[str, float] = field(default_factory=dict)  # what stages add to the measurement, by name
    facts: dict[str, Any] = field(default_factory=dict)  # what they add that is no figure
    conditions: dict[str, Any] = field(default_factory=dict)  # what decides how floats are added up
    remade: Remade = field(default_factory=Remade)
    # What another stage does between two steps, after their scores and before their checkpoint; returns what the main
    # rank was told meanwhile. Collective. It leaves alone what training depends on: weights, modes, optimizers, rows.
    interlude: Callable[["CellRun"], int] = _nothing
    _trainee: Trainee | None = None

    @property
    def trainee(self) -> Trainee:
        """What `load` built."""
        assert self._trainee is not None, "the stage `load` comes first"
        return self._trainee

    @trainee.setter
    def trainee(self, trainee: Trainee) -> None:
        self._trainee = trainee

    def begin_step(self, step: int) -> None:
        """A step begins, from 1."""
        self.pulse.begin_step(step)
        self.mesh.faults.strike(Point.STEP, step)

    def share_of(self, position: Position) -> float:
        """Share of the budget that is used up at a position, 0..1."""
        return progress(position.seen, self.job.cell.recipe.budget, self.job.flops_per_token)

    @property
    def order(self) -> int:
        """What the main rank wants, by the stop file and the clock; the others hear of it in a step."""
        if not self.mesh.is_main:
            return CONTINUE
        if os.path.exists(self.job.stop_file):
            return STOP
        return TIMED_OUT if time.time() > self.job.deadline else CONTINUE
