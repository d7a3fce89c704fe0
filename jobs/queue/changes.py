"""What happens to cells and leases: opened, granted, asked to stop, given back, closed; each with a line in the log."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jobs.queue.gangs import Node
from jobs.queue.model import Grant, Settings, StopKind
from jobs.queue.rows import WAITING, CellRequest, CellRow, JobRow, LeaseRow, Release
from jobs.queue.state import QueueState
from orchestrator.results import CellStatus

MARGIN = 1.1  # over the longest run of a cell that was like this one


class CellChanges:
    """The changes of a queue's cells; the queue decides which, and saves them."""

    def __init__(self, state: QueueState, clock: Callable[[], float]):
        self._state, self._clock = state, clock

    def open_cell(self, job: JobRow, cell: CellRequest, position: int) -> None:
        """A cell waits."""
        predicted_s = min(cell.limit_s, MARGIN * (self._state.longest_s(cell.likeness) or cell.limit_s))
        row = CellRow(
            job_id=job.job_id,
            cell_id=cell.cell_id,
            position=position,
            state=CellStatus.QUEUED,
            workers=cell.demand.workers,
            gpus_per_worker=cell.demand.gpus_per_worker,
            cpus_per_worker=cell.demand.cpus_per_worker,
            accelerator=cell.demand.accelerator,
            worlds=cell.demand.worlds,
            predicted_s=predicted_s,
            queued_s=job.submitted_s,
            likeness=cell.likeness,
        )
        self._state.put_cell(row)
        self._state.enqueue(row)

    def fit(self, nodes: Sequence[Node], settings: Settings) -> None:
        """Elastic cells that wait ask for as many workers as the nodes that are alive can hold."""
        elastic = [cell for cell in self._state.line.cells() if cell.demand.worlds]
        kinds = {(cell.demand, settings.rules(cell.owner).gpu_quota) for cell in elastic}
        fits = {(demand, quota): demand.fitted(nodes, quota) for demand, quota in kinds}
        for queued in elastic:
            if (fitted := fits[queued.demand, settings.rules(queued.owner).gpu_quota]) != queued.demand:
                job_id, _, cell_id = queued.cell_id.partition("/")
                row = replace(self._state.cells[job_id][cell_id], workers=fitted.workers)
                self._state.leave(row)
                self._state.put_cell(row)
                self._state.enqueue(row)
                many = f"asks for {fitted.workers} of at most {fitted.worlds[0]} workers"
                self.log("resized", self._state.jobs[job_id], cell_id, f"{many}: what the nodes can hold")

    def close(self, row: CellRow, status: CellStatus, note: str) -> None:
        """A cell is over."""
        closed = replace(row, state=status, note=note)
        if (lease := self._state.lease_of(row.key)) is not None:
            self._end_lease(lease, str(status), closed)
        else:
            self._state.leave(row)
            self._state.put_cell(closed)
        if self._state.jobs[row.job_id].in_turn:
            self._enqueue_waiting(row.job_id)

    def _enqueue_waiting(self, job_id: str) -> None:
        for row in self._state.plan_of(job_id):
            if row.state in WAITING:
                self._state.enqueue(row)

    def close_waiting(self, job: JobRow, reason: str) -> None:
        """What waits of a job gets no lease any more."""
        for row in self._state.plan_of(job.job_id):
            if row.state in WAITING:
                self.close(row, CellStatus.CANCELLED, reason)

    def grant(self, grant: Grant, now_s: float) -> bool:
        """Writes a lease, unless the cell left the line with its sibling."""
        if self._state.line.find(grant.cell.cell_id) is None:
            return False
        job_id, _, cell_id = grant.cell.cell_id.partition("/")
        row = self._state.cells[job_id][cell_id]
        lease = LeaseRow(
            lease_id=self._state.next_lease_id(now_s),
            job_id=job_id,
            cell_id=cell_id,
            owner=grant.cell.owner,
            gpus=grant.cell.gpus,
            placement=grant.placement,
            granted_s=now_s,
            reason=grant.reason,
        )
        for sibling in self._state.siblings(row):
            self._state.leave(sibling)
        self._state.put_cell(replace(row, state=CellStatus.RUNNING))
        self._state.put_lease(lease)
        self.log("granted", self._state.jobs[job_id], cell_id, grant.reason)
        return True

    def ask_to_stop(self, lease: LeaseRow, kind: StopKind, reason: str) -> None:
        """Once: who asked first is told to the driver."""
        if lease.stop_kind is None:
            self._state.put_lease(replace(lease, stop_kind=kind, stop_reason=reason, stop_asked_s=self._clock()))
            self.log(f"stop_{kind}", self._state.jobs[lease.job_id], lease.cell_id, reason)

    def release(self, job_id: str, released: Release) -> None:
        """A lease given back. One that is over already was given back before: the answer to that was lost."""
        lease = self._state.held.get(released.lease_id)
        if lease is None or lease.job_id != job_id:
            return
        status, note = released.status, released.note
        row, stop = self._state.cells[lease.job_id][lease.cell_id], self._state.jobs[job_id].stop
        if stop and not status.is_terminal:
            status, note = CellStatus.CANCELLED, stop
        if status.is_terminal:
            self.close(row, status, note)
            self._state.put_job(replace(self._state.jobs[lease.job_id], losses=0))
            self.log(
                "cell_ended", self._state.jobs[lease.job_id], lease.cell_id, f"{status}{': ' if note else ''}{note}"
            )
        else:
            trained_s = (lease.stop_asked_s or lease.granted_s) - lease.granted_s
            self.requeue(lease, status, note, trained_s)
            self.log("given_back", self._state.jobs[lease.job_id], lease.cell_id, note)

    def requeue(self, lease: LeaseRow, status: CellStatus, how: str, trained_s: float) -> None:
        """A lease ends, and its cell waits for another one, with its age and what is left of its prediction."""
        now_s, row = self._clock(), self._state.cells[lease.job_id][lease.cell_id]
        back = self._state.as_held(lease).released(now_s, trained_s)
        queued_s = row.queued_s + now_s - lease.granted_s
        waits = replace(row, state=status, predicted_s=back.predicted_s, queued_s=queued_s, note=how)
        self._end_lease(lease, how, waits)

    def _end_lease(self, lease: LeaseRow, how: str, cell: CellRow) -> None:
        now_s = self._clock()
        trained_s = cell.trained_s + now_s - lease.granted_s
        self._state.end_lease(replace(lease, ended_s=now_s, ended=how), replace(cell, trained_s=trained_s))

    def log(self, kind: str, job: JobRow, cell_id: str = "", text: str = "") -> None:
        """A line of the queue's log."""
        self._state.log(self._clock(), kind, job, cell_id, text)
