"""The nouns of the queue: what waits, what runs, the rules, and the order in which cells wait. Pure; no clock."""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Literal

from jobs.queue.gangs import Demand, Placement

HOUR_S = 3600.0
OVERRUN = 0.25  # a cell that outlived its prediction is expected to run for this much of its age again


@dataclass(frozen=True)
class QueuedCell:
    """A cell that waits for a lease. `submitted_s` dates its age: see `Lease.released` for one that was preempted."""

    cell_id: str
    owner: str
    demand: Demand
    predicted_s: float
    submitted_s: float
    priority: int = 0
    preemptible: bool = True

    @cached_property
    def gpus(self) -> int:
        return self.demand.gpus


@dataclass(frozen=True)
class Lease:
    """A cell that trains, on the nodes it was granted. `stops_by_s`: it was asked to stop at a checkpoint."""

    cell: QueuedCell
    placement: Placement
    granted_s: float
    stops_by_s: float | None = None

    def expected_end_s(self, now_s: float) -> float:
        """When it gives its nodes back, by prediction; never before now."""
        if self.stops_by_s is not None:
            return max(now_s, self.stops_by_s)
        return now_s + remaining_s(self.cell.predicted_s, now_s - self.granted_s)

    def released(self, at_s: float, trained_s: float) -> QueuedCell:
        """The cell as it waits again: what is left of it, at the place that its waiting (not its running) earned."""
        left_s = max(1.0, remaining_s(self.cell.predicted_s, trained_s))
        return replace(self.cell, submitted_s=self.cell.submitted_s + at_s - self.granted_s, predicted_s=left_s)


def remaining_s(predicted_s: float, elapsed_s: float) -> float:
    """What is left of a prediction, or, once it proved too short, a share of the time that it took so far."""
    left_s = predicted_s - elapsed_s
    if left_s < -1e-6 * predicted_s:  # less is rounding
        return OVERRUN * elapsed_s
    return max(0.0, left_s)


@dataclass(frozen=True)
class OwnerRules:
    """What one owner may use: a weight for the fair share, GPUs at a time, GPU-hours altogether (None: no limit)."""

    weight: float = 1.0
    gpu_quota: int | None = None
    gpu_hours: float | None = None


@dataclass(frozen=True)
class Usage:
    """What an owner's finished leases used: GPUs held on average lately (as of `at_s`), and GPU-hours in all."""

    decayed_gpus: float = 0.0
    at_s: float = 0.0
    gpu_hours: float = 0.0

    def decayed_at(self, now_s: float, half_life_s: float) -> float:
        return self.decayed_gpus * _half(now_s - self.at_s, half_life_s)

    def charged(self, gpus: int, start_s: float, end_s: float, half_life_s: float) -> "Usage":
        """With one more lease, which ended at `end_s` (not before `at_s`)."""
        recent = self.decayed_at(end_s, half_life_s) + decayed_usage(gpus, end_s - start_s, half_life_s)
        return Usage(recent, end_s, self.gpu_hours + gpus * (end_s - start_s) / HOUR_S)


def decayed_usage(gpus: int, elapsed_s: float, half_life_s: float) -> float:
    """The average over the past, weighted by 2^(-age / half-life), of holding `gpus` for the last `elapsed_s`."""
    return gpus * (1 - _half(elapsed_s, half_life_s))


def _half(elapsed_s: float, half_life_s: float) -> float:
    return math.exp2(-elapsed_s / half_life_s)


@dataclass(frozen=True)
class Settings:
    """The rules of the queue. `order="fifo"` knows neither priority, share nor prediction: the baselines.

    A waiting cell gains one priority at each multiple of `ageing_window_s` on the clock, so the order of two waiting
    cells of different effective priority never changes.
    """

    ageing_window_s: float = 4 * HOUR_S
    checkpoint_s: float = 60.0
    share_half_life_s: float = 24 * HOUR_S
    order: Literal["priority", "fifo"] = "priority"
    backfill: bool = True
    preemption: bool = True
    owners: Mapping[str, OwnerRules] = field(default_factory=dict)

    def rules(self, owner: str) -> OwnerRules:
        return self.owners.get(owner, OwnerRules())

    def windows_waited(self, cell: QueuedCell, now_s: float) -> int:
        return math.floor(now_s / self.ageing_window_s) - math.floor(cell.submitted_s / self.ageing_window_s)

    def level(self, cell: QueuedCell) -> int:
        """Effective priority without the part that all cells gain alike: larger goes first, at any time."""
        if self.order == "fifo":
            return 0
        return cell.priority - math.floor(cell.submitted_s / self.ageing_window_s)


@dataclass(frozen=True)
class Grant:
    """Start this cell now, on these nodes."""

    cell: QueuedCell
    placement: Placement
    reason: str


class StopKind(StrEnum):
    """Why a running cell is asked to stop."""

    PREEMPTED = "preempted"  # another cell needs its room; it continues later
    BUDGET = "budget"
    STOPPED = "stopped"  # a person stopped or cancelled its job


@dataclass(frozen=True)
class Stop:
    """Ask a running cell to checkpoint and give its lease back. A preempted one waits again; otherwise it is over."""

    cell_id: str
    kind: StopKind
    reason: str


Rank = tuple[float, float, str]


class WaitingLine:
    """The waiting cells by level, owner and demand, each list in its order: a decision sorts nothing anew."""

    def __init__(self, settings: Settings, cells: Iterable[QueuedCell] = ()):
        self._settings = settings
        self._levels: dict[int, dict[str, dict[Demand, list[QueuedCell]]]] = {}
        self._cells: dict[str, QueuedCell] = {}
        for cell in cells:
            self.add(cell)

    def add(self, cell: QueuedCell) -> None:
        if cell.cell_id in self._cells:
            raise ValueError(f"cell {cell.cell_id} waits already")
        self._cells[cell.cell_id] = cell
        owners = self._levels.setdefault(self._settings.level(cell), {})
        kinds = owners.setdefault(self._group(cell), {})
        insort(kinds.setdefault(cell.demand, []), cell, key=self.rank)

    def remove(self, cell_id: str) -> QueuedCell:
        cell = self._cells.pop(cell_id)
        level, group = self._settings.level(cell), self._group(cell)
        owners = self._levels[level]
        cells = owners[group][cell.demand]
        del cells[bisect_left(cells, self.rank(cell), key=self.rank)]
        if not cells:
            del owners[group][cell.demand]
        if not owners[group]:
            del owners[group]
        if not owners:
            del self._levels[level]
        return cell

    def find(self, cell_id: str | None) -> QueuedCell | None:
        return None if cell_id is None else self._cells.get(cell_id)

    def cells(self) -> list[QueuedCell]:
        """All that wait, in the order in which they were added."""
        return list(self._cells.values())

    def levels(self) -> list[tuple[int, dict[str, dict[Demand, list[QueuedCell]]]]]:
        """(level, owner -> demand -> cells in their order), the highest level first."""
        return sorted(self._levels.items(), key=lambda one: -one[0])

    def rank(self, cell: QueuedCell) -> Rank:
        """The order among cells of one level and owner: longest predicted first, or by submission."""
        if self._settings.order == "fifo":
            return cell.submitted_s, 0.0, cell.cell_id
        return -cell.predicted_s, cell.submitted_s, cell.cell_id

    def _group(self, cell: QueuedCell) -> str:
        return "" if self._settings.order == "fifo" else cell.owner
