"""Runs the cells of a plan: each attempt under a lease, until every cell has a terminal status."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jobs.driver.leases import Idle, Leases
from jobs.queue.rows import Directives, LeaseRow
from orchestrator.attempt.failure import Failure
from orchestrator.attempt.worker import run_attempt
from orchestrator.cell_job import CellJob
from orchestrator.errors import AlreadyRunningError
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Cell
from orchestrator.results import CellResult, CellStatus, find_cell_result, read_json, save_cell_result, write_json
from orchestrator.spec_files.spec import Placement, Policy
from orchestrator.tracking.spool import note_phase
from orchestrator.training.measurement import find_measurement

# After a request to stop: how long workers may take to their next step and its checkpoint, and how long an attempt
# whose workers do not run yet (it waits for nodes, or starts) is given. Killing it then loses nothing but time.
STOP_LIMIT_S = 10 * 60.0
STOP_LIMIT_BEFORE_START_S = 20.0
LOCK_LIMIT_S = 60.0  # a driver that was killed leaves its locks at once, its machine's file system a little later
# A finished cell is not run again. The others ended for reasons that another run may not meet.
FINAL = (CellStatus.SUCCEEDED, CellStatus.DIVERGED, CellStatus.OUT_OF_MEMORY)
Report = Callable[[Cell, CellStatus, int], None]


@dataclass(frozen=True)
class Requeue:
    """A cell released its lease and needs another one."""

    status: CellStatus  # QUEUED, or PREEMPTED
    reason: str


@dataclass
class _Running:
    """A cell under a lease. `asked`: the lease as it was when its cell was asked to stop."""

    cell: Cell
    future: "Future[CellResult | Requeue]"
    asked: LeaseRow | None = None


@dataclass
class _Tries:
    """What the attempts of one cell came to in this launch."""

    history: "_History"
    failures: int = 0
    previous: Failure | None = None
    trained_s: float = 0.0


@dataclass
class CellRunner:
    """Trains cells while they hold leases, and stops them, at a checkpoint, when asked."""

    make_job: Callable[[Cell, int, float], CellJob]  # (cell, attempt, seconds left of policy.timeout)
    find_finished: Callable[[Cell], CellResult | None]
    folder: Callable[[Cell], Path]
    policy: Policy
    report: Report  # told of each change of status and each attempt
    notice: Callable[[str], None]  # told why nothing trains
    leases: Leases
    run_attempt: Callable[[CellJob, Placement, Sequence[str] | None], Failure | None] = run_attempt  # blocks
    _changed: threading.Event = field(default_factory=threading.Event)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _stopped_at: float = 0.0
    _jobs: dict[str, CellJob] = field(default_factory=dict)  # of the attempts that run
    _running: dict[int, _Running] = field(default_factory=dict)  # by lease
    _tries: dict[str, _Tries] = field(default_factory=dict)

    def run(self, cells: list[Cell]) -> list[CellResult]:
        """Runs the cells as leases come; returns their results in the order of `cells`."""
        open_cells = {cell.cell_id: cell for cell in cells}
        results: dict[str, CellResult] = {}
        started: set[int] = set()
        idle = Idle(self.notice)
        self.leases.changed = self._changed.set
        try:
            while open_cells:
                directives = self.leases.directives
                self._obey(directives, open_cells, started)
                results |= self._collect()
                results |= self._close(
                    directives, [cell for cell_id, cell in open_cells.items() if cell_id not in results]
                )
                open_cells = {cell_id: cell for cell_id, cell in open_cells.items() if cell_id not in results}
                idle.check(directives, self.leases.problem, is_idle=bool(open_cells) and not self._running)
                self._changed.wait(1.0)
                self._changed.clear()
        except BaseException:
            self.stop()
            raise
        return [results[cell.cell_id] for cell in cells]

    def stop(self) -> None:
        """Asks every running cell to write a checkpoint and stop, and starts no other."""
        self._stopped_at = time.monotonic()
        self._stopping.set()
        self._changed.set()
        for job in tuple(self._jobs.values()):
            job.stop_file.touch()

    def _obey(self, directives: Directives, open_cells: Mapping[str, Cell], started: set[int]) -> None:
        """Starts what was granted and asks to stop what must."""
        if (directives.stop or directives.replaced) and not self._stopping.is_set():
            self.stop()
        for lease in directives.leases:
            self._adopt(lease, started)
            running = self._running.get(lease.lease_id)
            if lease.lease_id not in started and lease.cell_id in open_cells and not self._stopping.is_set():
                started.add(lease.lease_id)
                if lease.stop_kind is not None:  # before this driver had begun
                    status = CellStatus.PREEMPTED if lease.stop_kind == "preempted" else CellStatus.CANCELLED
                    self.leases.release(lease.lease_id, lease.cell_id, status, lease.stop_reason)
                else:
                    self._start(open_cells[lease.cell_id], lease)
            elif running is not None and running.asked is None and lease.stop_kind is not None:
                running.asked = lease
                if (job := self._jobs.get(lease.cell_id)) is not None:
                    job.stop_file.touch()

    def _adopt(self, lease: LeaseRow, started: set[int]) -> None:
        """A queue that lost its store leases anew what trains already."""
        known = [lease_id for lease_id, one in self._running.items() if one.cell.cell_id == lease.cell_id]
        if known and known != [lease.lease_id]:
            self._running[lease.lease_id] = self._running.pop(known[0])
            started.add(lease.lease_id)

    def _collect(self) -> dict[str, CellResult]:
        """The cells that ended; what must wait again releases its lease."""
        results = {}
        for lease_id, running in tuple(self._running.items()):
            cell = running.cell
            if running.future.done():
                outcome = running.future.result()
            elif self._is_stuck(cell):
                outcome = self._abandon(cell)
            else:
                continue
            del self._running[lease_id]
            if isinstance(outcome, CellResult):
                results[cell.cell_id] = outcome
                note = (outcome.failure or "").split("\n")[0]
            else:
                note = outcome.reason
            self.leases.release(lease_id, cell.cell_id, outcome.status, note)
        return results

    def _close(self, directives: Directives, open_cells: Iterable[Cell]) -> dict[str, CellResult]:
        """The cells that will get no lease: the queue closed them, or all are asked to stop."""
        closed = dict(directives.closed)
        training = {running.cell.cell_id for running in self._running.values()}
        results = {}
        for cell in open_cells:
            reason = closed.get(cell.cell_id, directives.stop or "stopped before it was started")
            if cell.cell_id not in training and (cell.cell_id in closed or self._stopping.is_set()):
                results[cell.cell_id] = self.find_finished(cell) or self._cancel(cell, reason)
        return results

    def _cancel(self, cell: Cell, reason: str) -> CellResult:
        """The result of a cell without a lease. Another job may train it now: nothing is written."""
        result = self._result(cell, self._tries_of(cell).history, CellStatus.CANCELLED, reason)
        self.report(cell, result.status, result.attempts)
        return result

    def _start(self, cell: Cell, lease: LeaseRow) -> None:
        """Runs a cell in a thread that, unlike a pool's, does not keep the process from ending."""
        future: Future[CellResult | Requeue] = Future()
        running = self._running[lease.lease_id] = _Running(cell, future)

        def run() -> None:
            try:
                future.set_result(self._run_lease(running, lease))
            except BaseException as error:
                future.set_exception(error)
            self._changed.set()

        threading.Thread(target=run, name=cell.cell_id, daemon=True).start()

    def _is_stuck(self, cell: Cell) -> bool:
        """Whether a cell has had its time to stop."""
        job = self._jobs.get(cell.cell_id)
        if job is None or not self._stopping.is_set():
            return False
        limit = STOP_LIMIT_S if job.has_started else STOP_LIMIT_BEFORE_START_S
        return time.monotonic() - self._stopped_at > limit

    def _abandon(self, cell: Cell) -> CellResult:
        """The result of a cell that did not stop in time; its processes end with the connection to Ray."""
        reason = "stopped on request without a new checkpoint; the same command continues from the last one there is"
        return self._end(cell, self._tries_of(cell).history, CellStatus.CANCELLED, reason)

    def _run_lease(self, running: _Running, lease: LeaseRow) -> CellResult | Requeue:
        """One attempt. What it came to, or why the cell needs another lease."""
        if not self.leases.counterpart.is_shared:  # the launch holds the locks of all its cells
            return self._run_attempt(running, lease)
        try:
            with locked_cells([self.folder(running.cell)], LOCK_LIMIT_S):
                # Another job may have trained the same cell while this one waited.
                return self.find_finished(running.cell) or self._run_attempt(running, lease)
        except AlreadyRunningError as error:  # somebody whom the queue does not know of, or no longer
            return Requeue(CellStatus.QUEUED, str(error))

    def _run_attempt(self, running: _Running, lease: LeaseRow) -> CellResult | Requeue:
        cell, tries = running.cell, self._tries_of(running.cell)
        history = tries.history
        if self._stopping.is_set():
            return self._end(cell, history, CellStatus.CANCELLED, "stopped before it was started")
        attempt = history.begin()
        self.report(cell, CellStatus.RUNNING, attempt)
        began = time.monotonic()
        failure = self._attempt(running, attempt, lease, self.policy.timeout_s - tries.trained_s)
        tries.trained_s += time.monotonic() - began
        if failure is None:
            history.finish()
            return self._end(cell, history, CellStatus.SUCCEEDED, None)
        asked = running.asked if failure.status is CellStatus.CANCELLED else None
        if asked is not None and asked.stop_kind == "preempted":
            history.end(asked.stop_reason)
            self.report(cell, CellStatus.PREEMPTED, attempt)
            return Requeue(CellStatus.PREEMPTED, asked.stop_reason)
        history.end(failure.account)
        if asked is not None:
            return self._end(cell, history, CellStatus.CANCELLED, asked.stop_reason)
        return self._judge(cell, tries, failure, attempt)

    def _judge(self, cell: Cell, tries: _Tries, failure: Failure, attempt: int) -> CellResult | Requeue:
        """Whether another attempt is worth it."""
        previous, tries.previous = tries.previous, failure
        tries.failures += failure.is_charged
        if not failure.retriable:
            return self._end(cell, tries.history, failure.status, failure.message)
        if self._stopping.is_set():
            return self._end(cell, tries.history, CellStatus.CANCELLED, "stopped on request")
        if previous is not None and failure.repeats(previous):
            reason = f"the same failure twice in a row, so a third try would meet it too: {failure.message}"
            return self._end(cell, tries.history, CellStatus.FAILED, reason)
        if tries.failures > self.policy.max_failures:
            reason = f"{tries.failures} failures, more than policy.max_failures allows; the last: {failure.message}"
            return self._end(cell, tries.history, CellStatus.FAILED, reason)
        self.report(cell, CellStatus.QUEUED, attempt)
        return Requeue(CellStatus.QUEUED, failure.account)

    def _attempt(self, running: _Running, attempt: int, lease: LeaseRow, left_s: float) -> Failure | None:
        cell = running.cell
        job = self.make_job(cell, attempt, left_s)
        job.stop_file.unlink(missing_ok=True)
        self._jobs[cell.cell_id] = job
        # Whoever asked it to stop before there was a job to find could not touch its file.
        if self._stopping.is_set() or running.asked is not None:
            job.stop_file.touch()
        note_phase(job.spool_folder, attempt, "starting")
        try:
            return self.run_attempt(job, cell.placement, self.leases.nodes_of(lease))
        finally:
            del self._jobs[cell.cell_id]

    def _tries_of(self, cell: Cell) -> _Tries:
        if cell.cell_id not in self._tries:
            self._tries[cell.cell_id] = _Tries(_History(self.folder(cell)))
        return self._tries[cell.cell_id]

    def _end(self, cell: Cell, history: "_History", status: CellStatus, reason: str | None) -> CellResult:
        result = self._result(cell, history, status, reason)
        save_cell_result(history.folder, result)
        self.report(cell, status, history.count)
        return result

    @staticmethod
    def _result(cell: Cell, history: "_History", status: CellStatus, reason: str | None) -> CellResult:
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


class _History:
    """The attempts of a cell over all launches, kept in its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = CellFolder(folder).attempts
        stored: dict[str, Any] = read_json(self._file) if self._file.exists() else {"count": 0, "reasons": []}
        self.count: int = stored["count"]
        self.reasons: list[str] = stored["reasons"]
        if len(self.reasons) < self.count:  # the last launch died before its attempt ended
            self.reasons += ["the launch was interrupted"] * (self.count - len(self.reasons))

    def begin(self) -> int:
        self.count += 1
        self._save()
        return self.count

    def finish(self) -> None:
        """Another attempt can follow only to export once more, or to train again what was deleted."""
        self.reasons.append("it finished")
        self._save()

    def end(self, reason: str) -> None:
        self.reasons.append(reason)
        self._save()

    def _save(self) -> None:
        write_json(self._file, {"count": self.count, "reasons": self.reasons})


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
    history = _History(folder)
    result = CellResult(cell.cell_id, cell.backbone.backbone_id, cell.seed, CellStatus.CANCELLED, history.count)
    return replace(result, folder=str(folder), failure="stopped before it was started", restarts=history.reasons)


@contextmanager
def locked_cells(folders: Iterable[Path], limit_s: float = 0.0) -> Iterator[None]:
    """Holds every cell's lock, so that no two launches train one cell. Raises AlreadyRunningError."""
    with ExitStack() as held:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(CellFolder(folder).lock, timeout=limit_s))
            except Timeout:
                raise AlreadyRunningError(
                    f"{folder.name} is being trained by another process; wait for it, or stop it with Ctrl-C there. "
                    "Running the same command afterwards picks up what it did."
                ) from None
        yield
