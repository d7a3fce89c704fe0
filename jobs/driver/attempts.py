"""The attempts of a cell: their history over all launches, what each came to, and whether another is worth it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from orchestrator.attempt.failure import Failure
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Cell
from orchestrator.results import CellResult, CellStatus, find_cell_result, read_json, save_cell_result, write_json
from orchestrator.spec_files.spec import Policy
from orchestrator.training.measurement import find_measurement

# A finished cell is not run again. The others ended for reasons that another run may not meet.
FINAL = (CellStatus.SUCCEEDED, CellStatus.DIVERGED, CellStatus.OUT_OF_MEMORY)


@dataclass(frozen=True)
class Requeue:
    """A cell released its lease and needs another one."""

    status: CellStatus  # QUEUED, or PREEMPTED
    reason: str


class _Stored(TypedDict):
    count: int
    reasons: list[str]


class History:
    """The attempts of a cell over all launches, kept in its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = CellFolder(folder).attempts
        stored: _Stored = read_json(self._file) if self._file.exists() else {"count": 0, "reasons": []}
        self.count, self.reasons = stored["count"], stored["reasons"]
        if len(self.reasons) < self.count:  # the last launch died before its attempt ended
            self.reasons += ["the launch was interrupted"] * (self.count - len(self.reasons))

    def begin(self) -> int:
        """The number of the attempt that begins, from 1."""
        self.count += 1
        self._save()
        return self.count

    def end(self, reason: str) -> None:
        """Why the attempt ended. One that finished is followed by another only to export once more."""
        self.reasons.append(reason)
        self._save()

    def _save(self) -> None:
        write_json(self._file, {"count": self.count, "reasons": self.reasons})


@dataclass
class Tries:
    """What the attempts of one cell came to in this launch."""

    cell: Cell
    history: History
    policy: Policy
    failures: int = 0
    previous: Failure | None = None
    trained_s: float = 0.0

    @property
    def left_s(self) -> float:
        """What is left of policy.timeout."""
        return self.policy.timeout_s - self.trained_s

    def judge(self, failure: Failure, is_stopping: bool) -> CellResult | Requeue:
        """Whether another attempt is worth it. A result is stored."""
        previous, self.previous = self.previous, failure
        self.failures += failure.is_charged
        if not failure.retriable:
            return self.end(failure.status, failure.message)
        if is_stopping:
            return self.end(CellStatus.CANCELLED, "stopped on request")
        if previous is not None and failure.repeats(previous):
            reason = f"the same failure twice in a row, so a third try would meet it too: {failure.message}"
            return self.end(CellStatus.FAILED, reason)
        if self.failures > self.policy.max_failures:
            reason = f"{self.failures} failures, more than policy.max_failures allows; the last: {failure.message}"
            return self.end(CellStatus.FAILED, reason)
        return Requeue(CellStatus.QUEUED, failure.account)

    def end(self, status: CellStatus, reason: str | None) -> CellResult:
        """The cell's result, stored."""
        result = self.result(status, reason)
        save_cell_result(self.history.folder, result)
        return result

    def result(self, status: CellStatus, reason: str | None) -> CellResult:
        """The cell's result, for the caller to keep: another job may train the cell now."""
        history, cell = self.history, self.cell
        return CellResult(
            cell_id=cell.cell_id,
            backbone_id=cell.backbone.backbone_id,
            seed=cell.seed,
            status=status,
            attempts=history.count,
            measurement=find_measurement(history.folder) if status is CellStatus.SUCCEEDED else None,
            failure=reason,
            folder=str(history.folder),
            restarts=history.reasons[: history.count - 1],
        )


def find_final_result(folder: Path) -> CellResult | None:
    """The stored result of a cell that need not run again, or None."""
    result = find_cell_result(folder)
    return result if result is not None and result.status in FINAL else None


def infeasible_result(cell: Cell, folder: Path, reason: str) -> CellResult:
    """The result of a cell that the plan refuses."""
    result = CellResult(cell.cell_id, cell.backbone.backbone_id, cell.seed, CellStatus.INFEASIBLE, failure=reason)
    return replace(result, folder=str(folder))


def cancelled_result(cell: Cell, folder: Path) -> CellResult:
    """The result of a cell that a signal kept from being launched."""
    history = History(folder)
    result = CellResult(cell.cell_id, cell.backbone.backbone_id, cell.seed, CellStatus.CANCELLED, history.count)
    return replace(result, folder=str(folder), failure="stopped before it was started", restarts=history.reasons)
