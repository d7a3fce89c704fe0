"""The attempts of a cell: their history over all launches, what each came to, and whether another is worth it."""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.results.costs.documents import AttemptsRecord
from orchestrator.attempt.failure import Failure
from orchestrator.attempt.taxonomy import Cause
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


class History:
    """The attempts of a cell over all launches, kept in its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = CellFolder(folder).attempts
        stored: AttemptsRecord = read_json(self._file) if self._file.exists() else {"count": 0, "reasons": []}
        self.count, self.reasons = stored["count"], stored["reasons"]
        self.micro_batch_size = stored.get("micro_batch_size")  # where the planned one did not fit
        self._ended_ms = stored.get("ended_ms", [])
        self._ended_ms += [None] * (self.count - len(self._ended_ms))
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
        self._ended_ms.append(time.time_ns() // 1_000_000)
        self._save()

    def shrink(self, micro_batch_size: int) -> None:
        """The attempt that ended had too large a micro-batch; those that follow have this one."""
        self.micro_batch_size = micro_batch_size
        self.reasons[-1] += f"; it goes on with a micro-batch of {micro_batch_size}"
        self._save()

    def _save(self) -> None:
        stored: AttemptsRecord = {
            "count": self.count,
            "reasons": self.reasons,
            "micro_batch_size": self.micro_batch_size,
            "ended_ms": self._ended_ms,
        }
        write_json(self._file, stored)


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

    @property
    def cell_of_next_attempt(self) -> Cell:
        """The cell with the micro-batch that fits, as far as its attempts have shown; the same `cell_id`."""
        return replace(self.cell, micro_batch_size=self.history.micro_batch_size or self.cell.micro_batch_size)

    @property
    def smaller_micro_batch(self) -> int | None:
        """The largest that is at most half as large and divides a rank's rows of a step; None where there is none."""
        share = self.cell.placement.parallel.rows_of_a_rank(self.cell.recipe.global_batch_size)
        half = self.cell_of_next_attempt.micro_batch_size // 2
        return next((rows for rows in range(half, 0, -1) if share % rows == 0), None)

    def judge(self, failure: Failure, is_stopping: bool) -> CellResult | Requeue:
        """Whether another attempt is worth it; the history has this one's end already. A result is stored."""
        previous, self.previous = self.previous, failure
        self.failures += failure.is_charged
        if not failure.retriable and not self._shrink(failure):
            return self.end(failure.status, failure.message)
        if is_stopping:
            return self.end(CellStatus.CANCELLED, "stopped on request")
        if previous is not None and failure.retriable and failure.repeats(previous):
            reason = f"the same failure twice in a row, so a third try would meet it too: {failure.full_account}"
            return self.end(CellStatus.FAILED, reason)
        if self.failures > self.policy.max_failures:
            reason = f"{self.failures} failures, more than policy.max_failures allows; the last: {failure.full_account}"
            return self.end(CellStatus.FAILED, reason)
        return Requeue(CellStatus.QUEUED, self.history.reasons[-1])

    def _shrink(self, failure: Failure) -> bool:
        """Whether memory ran out for a micro-batch, as against the states of the model, and a smaller one is left."""
        rows = self.smaller_micro_batch
        if failure.cause is not Cause.OUT_OF_MEMORY or failure.step is None or rows is None:
            return False
        self.history.shrink(rows)
        return True

    def end(self, status: CellStatus, reason: str | None) -> CellResult:
        """The cell's result, stored. Nothing continues from what a trial wrote: it goes first, lest a kill leave it."""
        result = self.result(status, reason)
        if self.cell.is_trial and status in FINAL:
            shutil.rmtree(CellFolder(self.history.folder).checkpoints, ignore_errors=True)
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
