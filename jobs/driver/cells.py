"""Runs the cells of a plan: each attempt under a lease, until every cell has a terminal status."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from jobs.driver.attempts import History, Requeue, Tries
from jobs.driver.leases import Idle, Leases
from jobs.driver.locks import locked_cells
from jobs.queue.rows import Directives, LeaseRow
from orchestrator.attempt.failure import Failure
from orchestrator.cell_job import CellJob
from orchestrator.errors import AlreadyRunningError
from orchestrator.planning.plan import Cell
from orchestrator.results import CellResult, CellStatus
from orchestrator.spec_files.spec import Placement, Policy
from orchestrator.tracking.spool import note_phase

# After a request to stop: how long workers may take to their next step and its checkpoint, and how long an attempt
# whose workers do not run yet (it waits for nodes, or starts) is given. Killing it then loses nothing but time.
STOP_LIMIT_S = 10 * 60.0
STOP_LIMIT_BEFORE_START_S = 20.0
LOCK_LIMIT_S = 60.0  # a driver that was killed leaves its locks at once, its machine's file system a little later
Outcome = TypeVar("Outcome", CellResult, Requeue, CellResult | Requeue)


class JobMaker(Protocol):
    """What the cells are, and the jobs that their workers get: `cell_jobs.CellJobs`."""

    def folder(self, cell: Cell) -> Path: ...

    def find_finished(self, cell: Cell) -> CellResult | None: ...

    def make(self, cell: Cell, attempt: int, left_s: float) -> CellJob: ...


class Witness(Protocol):
    """Who is told of each change of status and each attempt."""

    def report(self, cell: Cell, status: CellStatus, attempt: int) -> None: ...


@dataclass
class _Running:
    """A cell under a lease. `asked`: the lease as it was when its cell was asked to stop."""

    cell: Cell
    future: "Future[CellResult | Requeue]"
    asked: LeaseRow | None = None


def _ignore(result: CellResult) -> None:
    """For those who wait for all results."""


@dataclass
class CellRunner:
    """Trains cells while they hold leases, and stops them, at a checkpoint, when asked."""

    jobs: JobMaker
    policy: Policy
    witnesses: Sequence[Witness]
    notice: Callable[[str], None]  # told why nothing trains
    leases: Leases
    run_attempt: Callable[[CellJob, Placement, Sequence[str] | None], Failure | None]  # blocks: `Gangs.run_attempt`
    ended: Callable[[CellResult], object] = _ignore  # told what a cell came to, while others go on
    _changed: threading.Event = field(default_factory=threading.Event)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _stopped_at: float = 0.0
    _attempts: dict[str, CellJob] = field(default_factory=dict)  # those that run, by cell
    _running: dict[int, _Running] = field(default_factory=dict)  # by lease
    _tries: dict[str, Tries] = field(default_factory=dict)

    def run(self, cells: list[Cell]) -> list[CellResult]:
        """Runs the cells as leases come; returns their results in the order of `cells`."""
        waiting = {cell.cell_id: cell for cell in cells}
        results: dict[str, CellResult] = {}
        started: set[int] = set()
        idle = Idle(self.notice)
        self.leases.changed = self._changed.set
        try:
            while waiting:
                directives = self.leases.directives
                self._obey(directives, started)
                for lease in self._newly_granted(directives, waiting, started):
                    running = self._running[lease.lease_id] = _Running(waiting[lease.cell_id], Future())
                    # In a thread that, unlike a pool's, does not keep the process from ending.
                    threading.Thread(target=self._train, args=(running, lease), name=lease.cell_id, daemon=True).start()
                new = self._collect()
                new |= self._close(directives, [cell for cell in waiting.values() if cell.cell_id not in new])
                for result in new.values():
                    self._tell(result)
                results |= new
                waiting = {cell_id: cell for cell_id, cell in waiting.items() if cell_id not in results}
                idle.check(directives, self.leases.problem, is_idle=bool(waiting) and not self._running)
                self._changed.wait(1.0)
                self._changed.clear()
        except BaseException:
            self.stop()
            raise
        return [results[cell.cell_id] for cell in cells]

    def _tell(self, result: CellResult) -> None:
        try:
            self.ended(result)
        except Exception as error:  # others go on; the job's end tells it again
            why = f"{type(error).__name__}: {error}"
            self.notice(f"{result.cell_id} ended; its tracked run will hear of it at the job's end: {why}")

    def stop(self) -> None:
        """Asks every running cell to write a checkpoint and stop, and starts no other."""
        self._stopped_at = time.monotonic()
        self._stopping.set()
        self._changed.set()
        for job in tuple(self._attempts.values()):
            job.stop_file.touch()

    def _obey(self, directives: Directives, started: set[int]) -> None:
        """Asks to stop what must, and takes over the leases of a queue that numbers them anew."""
        if (directives.stop or directives.replaced) and not self._stopping.is_set():
            self.stop()
        for lease in directives.leases:
            self._adopt(lease, started)
            running = self._running.get(lease.lease_id)
            if running is not None and running.asked is None and lease.stop_kind is not None:
                running.asked = lease
                if (job := self._attempts.get(lease.cell_id)) is not None:
                    job.stop_file.touch()

    def _newly_granted(
        self, directives: Directives, waiting: Mapping[str, Cell], started: set[int]
    ) -> Iterator[LeaseRow]:
        """The leases whose cells begin now. One that must stop before this driver had begun is released at once."""
        for lease in directives.leases:
            if lease.lease_id in started or lease.cell_id not in waiting or self._stopping.is_set():
                continue
            started.add(lease.lease_id)
            if lease.stop_kind is None:
                yield lease
            else:
                status = CellStatus.PREEMPTED if lease.is_preempted else CellStatus.CANCELLED
                self.leases.release(lease.lease_id, lease.cell_id, status, lease.stop_reason)

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

    def _close(self, directives: Directives, waiting: Iterable[Cell]) -> dict[str, CellResult]:
        """The cells that will get no lease: the queue closed them, or all are asked to stop."""
        closed = dict(directives.closed)
        training = {running.cell.cell_id for running in self._running.values()}
        results = {}
        for cell in waiting:
            reason = closed.get(cell.cell_id, directives.stop or "stopped before it was started")
            if cell.cell_id not in training and (cell.cell_id in closed or self._stopping.is_set()):
                results[cell.cell_id] = self.jobs.find_finished(cell) or self._cancel(cell, reason)
        return results

    def _cancel(self, cell: Cell, reason: str) -> CellResult:
        """The result of a cell without a lease. Another job may train it now: nothing is written."""
        result = self._tries_of(cell).result(CellStatus.CANCELLED, reason)
        self._report(cell, result.status)
        return result

    def _is_stuck(self, cell: Cell) -> bool:
        """Whether a cell has had its time to stop."""
        job = self._attempts.get(cell.cell_id)
        if job is None or not self._stopping.is_set():
            return False
        limit = STOP_LIMIT_S if job.has_started else STOP_LIMIT_BEFORE_START_S
        return time.monotonic() - self._stopped_at > limit

    def _abandon(self, cell: Cell) -> CellResult:
        """The result of a cell that did not stop in time; its processes end with the connection to Ray."""
        reason = "stopped on request without a new checkpoint; the same command continues from the last one there is"
        return self._told(cell, self._tries_of(cell).end(CellStatus.CANCELLED, reason))

    def _train(self, running: _Running, lease: LeaseRow) -> None:
        """One attempt under a lease. Its future says what it came to, or why the cell needs another lease."""
        cell, nodes = running.cell, self.leases.nodes_of(lease)
        try:
            # Where no dispatcher rules, the launch holds the locks of all its cells already.
            with locked_cells([self.jobs.folder(cell)] if self.leases.counterpart.is_shared else [], LOCK_LIMIT_S):
                # Another job may have trained the same cell while this one waited.
                needless = self._found_or_stopped(cell)
                if needless is not None:
                    outcome: CellResult | Requeue = needless
                else:
                    job = self._begin(running, lease)
                    began = time.monotonic()
                    try:
                        failure = self.run_attempt(job, job.cell.placement, nodes)
                    finally:
                        del self._attempts[cell.cell_id]
                    self._tries_of(cell).trained_s += time.monotonic() - began
                    outcome = self._conclude(running, failure)
            running.future.set_result(outcome)
        except AlreadyRunningError as error:  # somebody whom the queue does not know of, or no longer
            running.future.set_result(Requeue(CellStatus.QUEUED, str(error)))
        except BaseException as error:
            running.future.set_exception(error)
        self._changed.set()

    def _found_or_stopped(self, cell: Cell) -> CellResult | None:
        """What makes an attempt needless."""
        if self.leases.counterpart.is_shared and (found := self.jobs.find_finished(cell)) is not None:
            return found
        if self._stopping.is_set():
            return self._told(cell, self._tries_of(cell).end(CellStatus.CANCELLED, "stopped before it was started"))
        return None

    def _begin(self, running: _Running, lease: LeaseRow) -> CellJob:
        """Counts the attempt, tells of it, and makes its job."""
        cell, tries = running.cell, self._tries_of(running.cell)
        attempt = tries.history.begin()
        self._report(cell, CellStatus.RUNNING)
        job = self.jobs.make(tries.cell_of_next_attempt, attempt, tries.left_s)
        if cell.worlds:
            workers = sum(number for _, number in lease.placement)
            job = replace(job, cell=job.cell.on(workers))
            self.notice(f"{cell.cell_id}: on {workers} of at most {cell.worlds[0]} workers")
        job.stop_file.unlink(missing_ok=True)
        self._attempts[cell.cell_id] = job
        # Whoever asked it to stop before there was a job to find could not touch its file.
        if self._stopping.is_set() or running.asked is not None:
            job.stop_file.touch()
        note_phase(job.spool_folder, attempt, "starting", workers=job.cell.placement.most)
        return job

    def _conclude(self, running: _Running, failure: Failure | None) -> CellResult | Requeue:
        """What an attempt came to."""
        cell, tries = running.cell, self._tries_of(running.cell)
        if failure is None:
            tries.history.end("it finished")
            return self._told(cell, tries.end(CellStatus.SUCCEEDED, None))
        asked = running.asked if failure.status is CellStatus.CANCELLED else None
        if asked is None:
            tries.history.end(failure.account)
            return self._told(cell, tries.judge(failure, self._stopping.is_set()))
        if asked.is_preempted:
            tries.history.end(asked.stop_reason)
            return self._told(cell, Requeue(CellStatus.PREEMPTED, asked.stop_reason))
        tries.history.end(failure.account)
        return self._told(cell, tries.end(CellStatus.CANCELLED, asked.stop_reason))

    def _tries_of(self, cell: Cell) -> Tries:
        if cell.cell_id not in self._tries:
            self._tries[cell.cell_id] = Tries(cell, History(self.jobs.folder(cell)), self.policy)
        return self._tries[cell.cell_id]

    def _told(self, cell: Cell, outcome: Outcome) -> Outcome:
        """Reports an outcome, and returns it."""
        self._report(cell, outcome.status)
        return outcome

    def _report(self, cell: Cell, status: CellStatus) -> None:
        for witness in self.witnesses:
            witness.report(cell, status, self._tries_of(cell).history.count)
