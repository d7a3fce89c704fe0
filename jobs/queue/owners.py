"""What is due to each owner at one moment: fair share, quota of GPUs, budget of GPU-hours. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jobs.queue.model import HOUR_S, Lease, QueuedCell, Settings, Usage, decayed_usage

GPU_SECONDS_TOLERANCE = 1e-3  # a budget with less left than this is used up

PredictedRelease = tuple[float, str, int]  # (when by prediction, whose, how many GPUs)


@dataclass
class _Gate:
    """What an owner's cells may do while an earlier one of theirs waits for GPUs under the quota."""

    until_s: float
    spare: int


class Owners:
    """The account of every owner during one decision; grants are charged as they are made."""

    def __init__(self, now_s: float, leases: Sequence[Lease], settings: Settings, usage: Mapping[str, Usage]):
        self._now_s, self._settings = now_s, settings
        self._held: dict[str, int] = {}
        self._gates: dict[str, _Gate] = {}
        half_life_s = settings.share_half_life_s
        self._recent = {owner: used.decayed_at(now_s, half_life_s) for owner, used in usage.items()}
        self._budget_left = {  # GPU-seconds, of the owners that have a budget
            owner: (rules.gpu_hours - usage.get(owner, Usage()).gpu_hours) * HOUR_S
            for owner, rules in settings.owners.items()
            if rules.gpu_hours is not None
        }
        for lease in leases:
            owner, gpus, elapsed_s = lease.cell.owner, lease.cell.gpus, now_s - lease.granted_s
            self._held[owner] = self._held.get(owner, 0) + gpus
            self._recent[owner] = self._recent.get(owner, 0.0) + decayed_usage(gpus, elapsed_s, half_life_s)
            if owner in self._budget_left:
                self._budget_left[owner] -= gpus * elapsed_s

    def share(self, owner: str) -> float:
        """GPUs held now, and on average lately, per weight."""
        return (self._held.get(owner, 0) + self._recent.get(owner, 0.0)) / self._settings.rules(owner).weight

    def charge(self, cell: QueuedCell) -> None:
        """Books a grant."""
        self._held[cell.owner] = self._held.get(cell.owner, 0) + cell.gpus
        if (gate := self._gates.get(cell.owner)) and self._now_s + cell.predicted_s > gate.until_s:
            gate.spare -= cell.gpus

    def out_of_budget(self, owner: str) -> str:
        """The reason why nothing of this owner may run, or an empty string."""
        if self._budget_left.get(owner, 1.0) > GPU_SECONDS_TOLERANCE:
            return ""
        return f"{owner} has used the budget of {self._settings.rules(owner).gpu_hours:g} GPU-hours"

    def over_quota(self, cell: QueuedCell) -> str:
        """The reason why the quota does not allow so many GPUs now, or an empty string."""
        quota, held = self._settings.rules(cell.owner).gpu_quota, self._held.get(cell.owner, 0)
        if quota is None or held + cell.gpus <= quota:
            return ""
        return f"needs {cell.gpus} GPUs; {cell.owner} holds {held} of its quota of {quota}"

    def behind_gate(self, cell: QueuedCell) -> str:
        """The reason why it must leave the quota to an earlier cell of its owner, or an empty string."""
        gate = self._gates.get(cell.owner)
        if gate is None or self._now_s + cell.predicted_s <= gate.until_s or cell.gpus <= gate.spare:
            return ""
        return f"would keep an earlier cell of {cell.owner} waiting for its quota"

    def held_back(self, cell: QueuedCell) -> str:
        """Which rule about its owner keeps the cell waiting, or an empty string."""
        if not self._settings.owners:
            return ""
        return self.out_of_budget(cell.owner) or self.over_quota(cell) or self.behind_gate(cell)

    def keep_quota_for(
        self, cell: QueuedCell, releases: Callable[[], Sequence[PredictedRelease]], not_before_s: float = 0.0
    ) -> None:
        """From now on, later cells of this owner may not make this one wait longer for the quota. The first one counts.

        `releases` in order of time; the cell cannot start before `not_before_s` anyway.
        """
        quota = self._settings.rules(cell.owner).gpu_quota
        if quota is None or cell.gpus > quota or cell.owner in self._gates:
            return
        held, until_s = self._held.get(cell.owner, 0), max(self._now_s, not_before_s)
        for end_s, owner, gpus in releases():
            if held + cell.gpus <= quota and end_s > until_s:
                break
            if owner == cell.owner:
                held -= gpus
                until_s = max(until_s, end_s)
        self._gates[cell.owner] = _Gate(until_s, quota - held - cell.gpus)

    def next_budget_end_s(self) -> float | None:
        """When the first budget runs out, if all that holds GPUs now goes on."""
        ends = [
            max(self._now_s + left / held, math.nextafter(self._now_s, math.inf))
            for owner, left in self._budget_left.items()
            if (held := self._held.get(owner, 0)) and left > GPU_SECONDS_TOLERANCE
        ]
        return min(ends, default=None)
