"""Runs the cells of a plan: several at once, each attempt by attempt, until every one has a terminal status."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jobs.cluster import check_capacity, concurrent_cells, request_nodes
from orchestrator.cell_job import CellJob
from orchestrator.errors import AlreadyRunningError
from orchestrator.measurement import find_measurement
from orchestrator.plan import Cell
from orchestrator.results import CellResult, CellStatus, find_cell_result, read_json, save_cell_result, write_json
from orchestrator.worker import Failure, run_attempt

WAIT_FOR_NODES_S = 20 * 60
# After a request to stop: how long workers may take to their next step and its checkpoint, and how long an attempt
# whose workers do not run yet (it waits for nodes, or starts) is given. Killing it then loses nothing but time.
STOP_LIMIT_S = 10 * 60.0
STOP_LIMIT_BEFORE_START_S = 20.0
# A finished cell is not run again. The others ended for reasons that another run may not meet.
FINAL = (CellStatus.SUCCEEDED, CellStatus.DIVERGED, CellStatus.OUT_OF_MEMORY)
Report = Callable[[Cell, CellStatus, int], None]


@dataclass
class CellRunner:
    """Launches cells as resources allow and stops them, at a checkpoint, when asked."""

    make_job: Callable[[Cell, int], CellJob]
    max_failures: int
    report: Report  # told of each change of status and each attempt
    _stopping: threading.Event = field(default_factory=threading.Event)
    _stopped_at: float = 0.0
    _running: dict[str, CellJob] = field(default_factory=dict)

    def run(self, cells: list[Cell]) -> list[CellResult]:
        """Runs the cells in order, as many at once as fit; returns their results in the same order."""
        results: dict[str, CellResult] = {}
        waiting = list(cells)
        running: dict[Future[CellResult], Cell] = {}
        started = time.monotonic()
        with _requested_nodes(), self._stopping_on_error():
            while waiting or running:
                slots = concurrent_cells(waiting[0].placement) if waiting else 0
                request_nodes([cell.placement for cell in (*running.values(), *waiting)])
                if waiting and not slots and not running and not self._stopping.is_set():
                    check_capacity(waiting[0].placement, time.monotonic() - started, WAIT_FOR_NODES_S)
                    self._stopping.wait(1.0)
                while waiting and (len(running) < slots or self._stopping.is_set()):
                    cell = waiting.pop(0)
                    running[self._start(cell)] = cell
                done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    results[running.pop(future).cell_id] = future.result()
                for future, cell in tuple(running.items()):
                    if self._is_stuck(cell):
                        results[running.pop(future).cell_id] = self._abandon(cell)
        return [results[cell.cell_id] for cell in cells]

    def stop(self) -> None:
        """Asks every running cell to write a checkpoint and stop, and starts no other."""
        self._stopped_at = time.monotonic()
        self._stopping.set()
        for job in tuple(self._running.values()):
            job.stop_file.touch()

    @contextmanager
    def _stopping_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _start(self, cell: Cell) -> Future[CellResult]:
        """Runs a cell in a thread that, unlike a pool's, does not keep the process from ending."""
        future: Future[CellResult] = Future()

        def run() -> None:
            try:
                future.set_result(self._run_cell(cell))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name=cell.cell_id, daemon=True).start()
        return future

    def _is_stuck(self, cell: Cell) -> bool:
        """Whether a cell has had its time to stop."""
        job = self._running.get(cell.cell_id)
        if job is None or not self._stopping.is_set():
            return False
        limit = STOP_LIMIT_S if job.has_started else STOP_LIMIT_BEFORE_START_S
        return time.monotonic() - self._stopped_at > limit

    def _abandon(self, cell: Cell) -> CellResult:
        """The result of a cell that did not stop in time; its processes end with the connection to Ray."""
        history = _History(self.make_job(cell, 0).folder)
        reason = "stopped on request without a new checkpoint; the same command continues from the last one there is"
        return self._end(cell, history, CellStatus.CANCELLED, reason)

    def _run_cell(self, cell: Cell) -> CellResult:
        history = _History(self.make_job(cell, 0).folder)
        failures, previous = 0, None
        while True:
            if self._stopping.is_set():
                return self._end(cell, history, CellStatus.CANCELLED, "stopped before it was started")
            attempt = history.begin()
            self.report(cell, CellStatus.RUNNING, attempt)
            failure = self._attempt(cell, attempt)
            if failure is None:
                history.finish()
                return self._end(cell, history, CellStatus.SUCCEEDED, None)
            history.end(failure)
            failures += failure.is_charged
            if not failure.retriable:
                return self._end(cell, history, failure.status, failure.message)
            if self._stopping.is_set():
                return self._end(cell, history, CellStatus.CANCELLED, "stopped on request")
            if previous is not None and failure.repeats(previous):
                reason = f"the same failure twice in a row, so a third try would meet it too: {failure.message}"
                return self._end(cell, history, CellStatus.FAILED, reason)
            previous = failure
            if failures > self.max_failures:
                reason = f"{failures} failures, more than policy.max_failures allows; the last: {failure.message}"
                return self._end(cell, history, CellStatus.FAILED, reason)

    def _attempt(self, cell: Cell, attempt: int) -> Failure | None:
        job = self.make_job(cell, attempt)
        job.stop_file.unlink(missing_ok=True)
        self._running[cell.cell_id] = job
        if self._stopping.is_set():  # it was set after the caller looked, too early to find this job
            job.stop_file.touch()
        try:
            return run_attempt(job, cell.placement)
        finally:
            del self._running[cell.cell_id]

    def _end(self, cell: Cell, history: "_History", status: CellStatus, reason: str | None) -> CellResult:
        measurement = find_measurement(history.folder) if status is CellStatus.SUCCEEDED else None
        result = CellResult(
            cell_id=cell.cell_id,
            backbone_id=cell.backbone.backbone_id,
            seed=cell.seed,
            status=status,
            attempts=history.count,
            measurement=measurement,
            failure=reason,
            folder=str(history.folder),
            restarts=history.reasons[: history.count - 1],
        )
        save_cell_result(history.folder, result)
        self.report(cell, status, history.count)
        return result


class _History:
    """The attempts of a cell over all launches, kept in its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = folder / "attempts.json"
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

    def end(self, failure: Failure) -> None:
        rank = "" if failure.rank is None else f" on rank {failure.rank}"
        self.reasons.append(f"{failure.kind}{rank}: {failure.message.splitlines()[0]}")
        self._save()

    def _save(self) -> None:
        write_json(self._file, {"count": self.count, "reasons": self.reasons})


@contextmanager
def _requested_nodes() -> Iterator[None]:
    """Takes the request to the autoscaler back, however the run ends."""
    try:
        yield
    finally:
        request_nodes([])


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


def lock_cells(folders: list[Path]) -> list[FileLock]:
    """Takes every cell's lock, so that no two launches train one cell. Raises AlreadyRunningError."""
    locks: list[FileLock] = []
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            for taken in locks:
                taken.release()
            raise AlreadyRunningError(
                f"{folder.name} is being trained by another process; wait for it, or stop it with Ctrl-C there. "
                "Running the same command afterwards picks up what it did."
            ) from None
        locks.append(lock)
    return locks
