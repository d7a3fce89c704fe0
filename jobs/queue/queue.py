"""The cluster's queue: jobs, their cells, and the leases under which cells train. State and store; no Ray, no I/O else.

Drivers and clients tell it facts; `decide` asks the policy what follows. Whoever holds a `Queue` feeds it with nodes
and acts on `drivers_to_start`: the dispatcher for a cluster, a single driver for a machine without one.

Over 300 lines: one state machine under one lock; what clients, drivers and its holder say changes the same rows.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from jobs.queue.changes import CellChanges
from jobs.queue.gangs import Demand, Node, Room
from jobs.queue.model import Settings, StopKind
from jobs.queue.policy import Decisions, decide
from jobs.queue.reasons import Waiting, WaitingReason
from jobs.queue.rows import (
    WAITING,
    CellRequest,
    CellRow,
    Directives,
    EventRow,
    JobRequest,
    JobRow,
    JobState,
    LeaseRow,
    Release,
)
from jobs.queue.state import QueueState
from jobs.queue.store import Store
from orchestrator.errors import AlreadyRunningError, InputError
from orchestrator.results import CellStatus

SIGN_OF_LIFE_S = 60.0  # how exactly the store knows when its queue was last at work
LARGEST_PRIORITY = 1_000_000
SILENT_S = 30.0  # a driver that says nothing for so long is looked after
START_LIMIT_S = 180.0  # so long a driver that was started may take to its first word
MAX_LOSSES = 5  # drivers lost one after the other without any cell finishing
SIGNALLED = (130, 143)  # exit codes; a submitted job is stopped through the queue, so its machine went down
STATE_OF_CODE = {0: JobState.SUCCEEDED, **dict.fromkeys(SIGNALLED, JobState.CANCELLED)}


class Queue:
    """Thread-safe. What it answers is in the store before it answers."""

    def __init__(self, store: Store, settings: Settings, clock: Callable[[], float] = time.time):
        self._store, self._settings, self._clock = store, settings, clock
        self._lock = threading.RLock()
        self._changing = 0  # how deep
        self._state = QueueState(store, settings)
        self._changes = CellChanges(self._state, clock)
        self._nodes: tuple[Node, ...] = ()
        self._limit: Sequence[Node] | None = None
        self._last: Decisions | None = None
        now_s, running = clock(), [job for job in self.jobs() if job.state is JobState.RUNNING]
        self._heard_s = {job.job_id: now_s for job in running}  # when a driver was heard last, or will have to be

    # --- what drivers and clients say ---

    def submit(self, request: JobRequest) -> JobRow:
        """Queues a job. The same job again is one job: what the storage lacks of it runs, or nothing."""
        with self._change():
            known = self._find_known(request)
            if known is not None and known.stop and not known.state.is_over:
                raise InputError(f"{known.job_id} is still stopping ({known.stop}); submit it again once it is over")
            is_done = known is not None and known.state is JobState.SUCCEEDED and not request.cells
            if known is not None and (is_done or not known.state.is_over):
                return known
            if fault := self._impossible(request.owner, {cell.demand for cell in request.cells}):
                raise InputError(f"{request.job_id}: {fault}")
            job = self._accept(request, known, JobState.QUEUED, None)
            again = " again" if known else ""
            cells = f"{len(request.cells)} cells to run, priority {job.priority}"
            self._changes.log("submitted", job, text=f"{job.owner} submitted it{again}: {cells}")
            self._sync_cells(job, request.cells)
            return job

    def attach(self, request: JobRequest, driver: str) -> Directives:
        """A driver takes a job over, one that was submitted or one that the queue never heard of.

        Raises AlreadyRunningError while another driver of the same job is heard.
        """
        with self._change():
            known = self._find_known(request)
            if known is not None and known.state.is_over and driver.startswith(f"{known.job_id}."):
                raise InputError(f"{known.job_id} is over ({known.reason}); submit it again to continue it")
            if known is not None and known.driver not in (None, driver) and not known.state.is_over:
                if self._clock() - self._heard_s.get(known.job_id, 0.0) < SILENT_S:
                    raise AlreadyRunningError(
                        f"{known.job_id} is being run by another driver ({known.driver}); wait for it, or stop it with "
                        f"`backbone stop {known.job_id}`"
                    )
                self._lose_driver(known, f"{driver} takes over")
                known = self._state.jobs[request.job_id]
            job = self._accept(request, known, JobState.RUNNING, driver)
            self._heard_s[job.job_id] = self._clock()
            self._changes.log("attached", job, text=f"driver {driver}, {len(request.cells)} cells to run")
            self._sync_cells(job, request.cells)
            if job.stop:
                self._changes.close_waiting(job, job.stop)
            return self._directives(job)

    def heartbeat(self, job_id: str, driver: str, released: Sequence[Release] = ()) -> Directives | None:
        """A driver is alive and gives leases back. None: attach first, this job is not known."""
        with self._change():
            job = self._state.jobs.get(job_id)
            if job is None:
                return None
            if job.driver != driver or job.state is not JobState.RUNNING:  # it was taken for dead, or cancelled
                return Directives((), job.reason, replaced=True)
            self._heard_s[job_id] = self._clock()
            for one in released:
                self._changes.release(job_id, one)
            return self._directives(self._state.jobs[job_id])

    def heartbeat_and_decide(self, job_id: str, driver: str, released: Sequence[Release] = ()) -> Directives | None:
        """A heartbeat, and, where leases came back, whom they go to: one change, one answer."""
        with self._change():
            directives = self.heartbeat(job_id, driver, released)
            if directives is None or not released:
                return directives
            self.decide()
            return self.heartbeat(job_id, driver)

    def finish(self, job_id: str, driver: str, exit_code: int) -> None:
        """A driver ends. Its cells that are not over stay unfinished: submitting again continues them."""
        with self._change():
            job = self._state.jobs.get(job_id)
            if job is None or job.driver != driver or job.state is not JobState.RUNNING:
                return
            if exit_code in SIGNALLED and job.code is not None and not job.stop:
                self._lose_driver(job, f"it was interrupted (exit code {exit_code})")
                return
            state = JobState.CANCELLED if job.stop else STATE_OF_CODE.get(exit_code, JobState.FAILED)
            self._end_job(job, state, job.stop or f"its driver ended with exit code {exit_code}", exit_code)

    def stop(self, job_id: str, why: str) -> JobRow:
        """Asks a job to stop at a checkpoint; one that only waits is over at once."""
        with self._change():
            job = self.find(job_id)
            if job.state is JobState.QUEUED:
                self._end_job(job, JobState.CANCELLED, why, None)
            elif job.state is JobState.RUNNING:
                self._state.put_job(replace(job, stop=why))
                for lease in self._state.leases_of(job_id):
                    self._changes.ask_to_stop(lease, StopKind.STOPPED, why)
                self._changes.close_waiting(job, why)
                self._changes.log("stopping", job, text=why)
            return self._state.jobs[job_id]

    def cancel(self, job_id: str, why: str) -> JobRow:
        """Ends a job at once. Whoever calls it ends the driver."""
        with self._change():
            job = self.find(job_id)
            if not job.state.is_over:
                self._end_job(job, JobState.CANCELLED, why, None)
            return self._state.jobs[job_id]

    # --- what the holder says ---

    def see_nodes(self, nodes: Sequence[Node], limit: Sequence[Node] | None) -> None:
        """The nodes that are alive now, and all that the cluster may ever have (None: nobody knows)."""
        with self._lock:
            self._nodes, self._limit = tuple(nodes), limit

    def see_cluster(self, cluster_id: str) -> None:
        """Which cluster this is. On another one than the store's last, every driver is gone with what it held."""
        with self._change():
            if self._state.cluster not in (None, cluster_id):
                for lease in list(self._state.held.values()):
                    last_s = max(lease.granted_s, self._state.alive_s)  # nobody trained while the cluster was down
                    gone = CellChanges(self._state, lambda: last_s)  # noqa: B023 - used before the next turn
                    gone.requeue(lease, CellStatus.QUEUED, "the cluster was started anew", 0.0)
                for job in [job for job in self._state.jobs.values() if job.state is JobState.RUNNING]:
                    self._lose_driver(job, "the cluster was started anew", is_charged=False)
            self._state.cluster = cluster_id

    def decide(self) -> None:
        """Grants and stops what the policy says."""
        with self._change():
            now_s = self._clock()
            if now_s > self._state.alive_s + SIGN_OF_LIFE_S:
                self._state.alive_s = now_s
            self._stop_jobs_without_budget(now_s)
            self._changes.fit(self._nodes, self._settings)
            while not self._obey_policy(now_s):
                pass

    def _obey_policy(self, now_s: float) -> bool:
        """One decision. Whether all of it could be done: it may start the same cell for two jobs, and only one may."""
        state = self._state
        held = [state.as_held(lease) for lease in state.held.values()]
        self._last = decide(
            now_s, self._nodes, state.line, held, self._settings, state.usage, reserved_for=state.reserved_for
        )
        state.reserved_for = self._last.reserved_for
        for stop in self._last.stops:
            self._changes.ask_to_stop(self._lease(stop.cell_id), stop.kind, stop.reason)
        granted = [grant for grant in self._last.grants if self._changes.grant(grant, now_s)]
        return len(granted) == len(self._last.grants)

    def drivers_to_start(self) -> list[JobRow]:
        """Jobs that hold a lease and have no driver: from now on they have one, of the id in the row."""
        with self._change():
            started = []
            for job in self._driverless():
                attempt = job.attempt + 1
                row = replace(job, state=JobState.RUNNING, attempt=attempt, driver=f"{job.job_id}.{attempt}")
                self._state.put_job(row)
                self._heard_s[job.job_id] = self._clock() + START_LIMIT_S - SILENT_S
                self._changes.log("starting", row, text=f"driver {row.driver}")
                started.append(row)
            return started

    def wants_drivers(self) -> bool:
        """Whether `drivers_to_start` has any."""
        with self._lock:
            return bool(self._driverless())

    def _driverless(self) -> list[JobRow]:
        """Submitted jobs without a driver that hold a lease, or lack nothing but the report of their cells."""
        held = {lease.job_id for lease in self._state.held.values()}
        queued = [job for job in self._state.jobs.values() if job.state is JobState.QUEUED and job.code]
        return [job for job in queued if job.job_id in held or not self._has_open_cells(job)]

    def _has_open_cells(self, job: JobRow) -> bool:
        return any(not row.state.is_terminal for row in self._state.cells[job.job_id].values())

    def running(self) -> list[tuple[JobRow, float]]:
        """Jobs with a driver, and for how many seconds it has been silent."""
        with self._lock:
            now_s = self._clock()
            rows = [job for job in self._state.jobs.values() if job.state is JobState.RUNNING]
            return [(job, now_s - self._heard_s[job.job_id]) for job in rows]

    def driver_lost(self, job_id: str, driver: str, why: str) -> JobRow:
        """A driver is gone: its leases are free, its cells wait, and another driver starts with the next lease."""
        with self._change():
            job = self._state.jobs[job_id]
            if job.driver == driver and job.state is JobState.RUNNING:
                self._lose_driver(job, why)
            return self._state.jobs[job_id]

    # --- what one may ask ---

    def find(self, job_id: str) -> JobRow:
        """A job. Raises InputError, naming those there are."""
        with self._lock:
            if job_id not in self._state.jobs:
                known = ", ".join([*self._state.jobs][-10:]) or "none"
                raise InputError(f"the queue knows no job {job_id!r}; there are: {known}")
            return self._state.jobs[job_id]

    def jobs(self) -> list[JobRow]:
        """All jobs, the oldest first."""
        with self._lock:
            return sorted(self._state.jobs.values(), key=lambda job: (job.submitted_s, job.job_id))

    def cells(self, job_id: str) -> list[CellRow]:
        """A job's cells, in the plan's order."""
        with self._lock:
            return self._state.plan_of(job_id)

    def leases(self) -> list[LeaseRow]:
        """Those that are held now."""
        with self._lock:
            return list(self._state.held.values())

    def demands(self) -> list[Demand]:
        """Of every cell that trains or waits; where it is elastic, with the most workers that the cluster can have."""
        with self._lock:
            most = self._nodes if self._limit is None else self._limit
            waiting = [cell.demand.fitted(most) for cell in self._state.line.cells()]
            held = [self._state.cells[lease.job_id][lease.cell_id].demand for lease in self._state.held.values()]
            return held + waiting

    def why_waiting(self, job_id: str) -> Waiting:
        """Why the first of a job's waiting cells waits; empty when none does."""
        with self._lock:
            job = self._state.jobs[job_id]
            return next((self._why(job, row) for row in self._state.plan_of(job_id) if row.state in WAITING), Waiting())

    def events(self, job_id: str | None = None, limit: int = 1000) -> list[EventRow]:
        """The log, the oldest first."""
        with self._lock:
            return self._store.events(job_id, limit)

    def _find_known(self, request: JobRequest) -> JobRow | None:
        """The job as it is known. Raises InputError for what must not enter the store."""
        if abs(request.priority) > LARGEST_PRIORITY:
            raise InputError(f"priority {request.priority} is too large; stay within ±{LARGEST_PRIORITY:,}")
        known = self._state.jobs.get(request.job_id)
        if known is not None and known.storage != request.storage:
            raise InputError(
                f"{request.job_id} is known with the storage {known.storage}, not {request.storage}; use that one, "
                "or give the job another name"
            )
        return known

    def _impossible(self, owner: str, demands: Iterable[Demand]) -> str:
        """Why such gangs can never start, or an empty string, also where nobody knows how far the cluster can grow."""
        quota = self._settings.rules(owner).gpu_quota
        for demand in (replace(one, workers=min(one.worlds, default=one.workers)) for one in demands):
            if quota is not None and demand.gpus > quota:
                return f"a cell needs {demand.gpus} GPUs, and the quota of {owner} is {quota}; lower placement.workers"
            if self._limit is not None and Room(self._limit).place(demand) is None:
                return (
                    f"a cell needs {demand}, which never fits: {self._capacity(self._limit)}. Lower placement.workers, "
                    "or add nodes"
                )
        return ""

    # --- jobs and cells ---

    def _accept(self, request: JobRequest, known: JobRow | None, state: JobState, driver: str | None) -> JobRow:
        """The row of a job as requested. A driver's own request adds nothing to what was submitted."""
        attaching = known is not None and driver is not None
        is_open = known is not None and not known.state.is_over
        asked = known if known is not None and attaching and (is_open or known.code is not None) else request
        job = JobRow(
            job_id=request.job_id,
            kind=request.kind,
            owner=asked.owner,
            priority=asked.priority,
            preemptible=asked.preemptible,
            storage=request.storage,
            spec_file=asked.spec_file,
            arguments=asked.arguments,
            code=asked.code,
            occurrence=asked.occurrence,
            gpu_hours=asked.gpu_hours,
            hours=asked.hours,
            in_turn=asked.in_turn,
            state=state,
            reason="",
            stop=known.stop if known and attaching and is_open else "",
            driver=driver,
            attempt=known.attempt if known else 0,
            losses=known.losses if known and attaching and is_open else 0,
            submitted_s=known.submitted_s if known and is_open else self._clock(),
            ended_s=self._clock() if state.is_over else None,
        )
        self._state.put_job(job)
        return job

    def _sync_cells(self, job: JobRow, wanted: Sequence[CellRequest]) -> None:
        """Makes the job's open cells those that are wanted; the others turned out to be finished."""
        rows = self._state.cells[job.job_id]
        for cell_id in rows.keys() - {cell.cell_id for cell in wanted}:
            if not rows[cell_id].state.is_terminal:
                self._changes.close(rows[cell_id], CellStatus.SUCCEEDED, "found finished in the storage")
        for position, cell in enumerate(wanted):
            row = rows.get(cell.cell_id)
            if row is None or row.state.is_terminal:
                self._changes.open_cell(job, cell, position)

    def _end_job(self, job: JobRow, state: JobState, reason: str, exit_code: int | None) -> None:
        for row in self._state.plan_of(job.job_id):
            if not row.state.is_terminal:
                self._changes.close(row, CellStatus.CANCELLED, reason)
        self._state.put_job(replace(job, state=state, reason=reason, ended_s=self._clock(), exit_code=exit_code))
        self._heard_s.pop(job.job_id, None)
        self._changes.log("ended", job, text=f"{state}: {reason}")

    def _lose_driver(self, job: JobRow, why: str, is_charged: bool = True) -> None:
        losses = job.losses + is_charged
        for lease in self._state.leases_of(job.job_id):
            self._changes.requeue(lease, CellStatus.QUEUED, "driver lost", 0.0)
        self._changes.log("driver_lost", job, text=f"driver {job.driver}: {why}")
        if job.stop:
            self._end_job(job, JobState.CANCELLED, job.stop, None)
        elif job.code is None:
            reason = f"its driver {job.driver} died ({why}); run the same command again to continue"
            self._end_job(job, JobState.INTERRUPTED, reason, None)
        elif losses > MAX_LOSSES:
            reason = f"{losses} drivers in a row died and no cell finished; the last: {why}"
            self._end_job(job, JobState.FAILED, reason, None)
        else:
            self._state.put_job(replace(job, state=JobState.QUEUED, driver=None, losses=losses))
            self._heard_s.pop(job.job_id, None)

    def _lease(self, key: str) -> LeaseRow:
        lease = self._state.lease_of(key)
        assert lease is not None, f"the policy stops {key}, which holds no lease"
        return lease

    def _stop_jobs_without_budget(self, now_s: float) -> None:
        """Stops the cells of jobs that used what they may, and takes what waits of them out of the line."""
        for job in [job for job in self._state.jobs.values() if not job.state.is_over]:
            if not (reason := self._overspent(job, now_s)) or not self._has_open_cells(job):  # a report costs nothing
                continue
            held = self._state.leases_of(job.job_id)
            for lease in held:
                self._changes.ask_to_stop(lease, StopKind.BUDGET, reason)
            self._changes.close_waiting(job, reason)
            if not held and job.state is JobState.QUEUED:
                self._end_job(job, JobState.FAILED, reason, None)

    def _overspent(self, job: JobRow, now_s: float) -> str:
        """Which budget a job used up, in words."""
        if job.gpu_hours is not None and self._state.gpu_hours_of(job.job_id, now_s) >= job.gpu_hours:
            return f"used its budget of {job.gpu_hours:g} GPU-hours"
        if job.hours is not None and self._state.hours_of(job.job_id, now_s) >= job.hours:
            return f"used its {job.hours:g} hours"
        return ""

    def _why(self, job: JobRow, row: CellRow) -> Waiting:
        queued = self._state.line.find(row.key)
        if queued is not None:
            return self._last.why_waiting(queued) if self._last else Waiting("not looked at yet")
        other = self._state.waits_for(row)
        if other is None:
            return Waiting("not looked at yet")
        if other.job_id != job.job_id:
            return Waiting(f"{other.job_id} trains the same cell", WaitingReason.SAME_CELL)
        return Waiting(f"{other.cell_id} goes first", WaitingReason.IN_TURN)

    def _directives(self, job: JobRow) -> Directives:
        leases = tuple(self._state.leases_of(job.job_id))
        rows = self._state.cells[job.job_id].values()
        cancelled = sorted((row.position, row.cell_id, row.note) for row in rows if row.state is CellStatus.CANCELLED)
        closed = tuple((cell_id, note) for _, cell_id, note in cancelled)
        if leases:
            return Directives(leases, job.stop, closed=closed)
        demands = {row.demand for row in rows if row.state in WAITING}
        hopeless = self._impossible(job.owner, demands)
        return Directives((), job.stop, closed=closed, waiting=self.why_waiting(job.job_id), hopeless=hopeless)

    @staticmethod
    def _capacity(nodes: Sequence[Node]) -> str:
        most = f"{max((n.gpus for n in nodes), default=0)} GPUs and {max((n.cpus for n in nodes), default=0)} CPUs"
        gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
        return f"the cluster has {gpus} GPUs and {cpus} CPUs on {len(nodes)} nodes, at most {most} on one"

    @contextmanager
    def _change(self) -> Iterator[None]:
        """One change at a time, and into the store before anybody is told."""
        with self._lock:
            self._changing += 1
            try:
                yield
            finally:
                self._changing -= 1
            if not self._changing:
                self._state.save()
