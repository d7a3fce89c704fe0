"""Where a rank says what it does: the main rank to the cell's spool, the others to nobody."""

from pathlib import Path
from typing import Any, Protocol

from orchestrator.results import EvaluationPoint, RolloutPoint, StepMetrics
from orchestrator.tracking.spool import SpoolWriter


class Recorder(Protocol):
    """Facts of an attempt, in order. Every rank has one, so that no caller asks which rank it is."""

    def step(self, metrics: StepMetrics) -> None:
        """An optimizer step."""

    def evaluation(self, point: EvaluationPoint) -> None:
        """A look at the held-out items."""

    def rollouts(self, point: RolloutPoint) -> None:
        """Episodes were played."""

    def phase(self, name: str, **details: Any) -> None:
        """What the attempt does now."""

    def close(self) -> None:
        """Nothing follows."""


class SilentRecorder:
    """Records nothing: what it is told, the main rank writes down."""

    def step(self, metrics: StepMetrics) -> None:
        """Known to the main rank."""

    def evaluation(self, point: EvaluationPoint) -> None:
        """Known to the main rank."""

    def rollouts(self, point: RolloutPoint) -> None:
        """Known to the main rank."""

    def phase(self, name: str, **details: Any) -> None:
        """Known to the main rank."""

    def close(self) -> None:
        """Nothing was open."""


def open_recorder(folder: Path, attempt: int, is_main: bool) -> Recorder:
    """The spool in `folder` on the main rank; silence on the others."""
    return SpoolWriter(folder, attempt) if is_main else SilentRecorder()
