"""What a kind of job says of itself: how its drivers start, and what its cells come to in the end."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from orchestrator.planning.plan import Cell, Plan
from orchestrator.results import CellResult
from orchestrator.tracking.run import Point


@dataclass(frozen=True)
class Conclusion:
    """What a job came to: the facts, the files that hold them (the page first), and what MLflow and people are told."""

    document: Any
    files: tuple[Path, ...]
    summary: dict[str, float]  # metrics of the job's own MLflow run
    verdict: str
    sentences: tuple[str, ...] = ()  # beside the verdict
    series: Mapping[str, Sequence[Point]] = field(default_factory=dict)  # lines in the job's own MLflow run


class JobKind(Protocol):
    """One class for each kind; `table.KINDS` has them by name."""

    entry_point: str  # the module that `python -m` runs

    def next_cells(self, plan: Plan, results: Sequence[CellResult]) -> Sequence[Cell]:
        """The cells of the plan that come next, after those that have results; none when that is all."""

    def say(self, plan: Plan, results: Sequence[CellResult]) -> str:
        """Why there are cells after those."""

    def conclude(self, plan: Plan, results: Sequence[CellResult], command: str) -> Conclusion:
        """Writes the facts and the page. `results` are in the order of the plan's cells."""


class OneRound:
    """Of a kind whose cells are all known before."""

    def next_cells(self, plan: Plan, results: Sequence[CellResult]) -> Sequence[Cell]:
        """Every cell, once."""
        return () if results else plan.cells

    def say(self, plan: Plan, results: Sequence[CellResult]) -> str:
        """Nothing follows."""
        return ""


def metric_name(name: str, backbone_id: str) -> str:
    """A metric of one of several backbones; MLflow takes some characters of `hf:` and `fused:` ids in no name."""
    return f"{name}/{re.sub(r'[^A-Za-z0-9._/-]', '_', backbone_id)}"
