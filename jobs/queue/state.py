"""What a queue holds in memory, as the store has it: jobs, cells, leases, the line, what owners used. No decisions."""

from collections import defaultdict

from jobs.queue.model import HOUR_S, Lease, Settings, Usage, WaitingLine
from jobs.queue.rows import WAITING, CellRow, EventRow, JobRow, LeaseRow
from jobs.queue.store import Row, Store
from jobs.queue.transitions import CELLS, JOBS, check
from orchestrator.results import CellStatus


class QueueState:
    """Every `put_*` is remembered until `save`, which writes all of them or none."""

    def __init__(self, store: Store, settings: Settings):
        self._store, self._settings = store, settings
        self.jobs: dict[str, JobRow] = {}
        self.cells: dict[str, dict[str, CellRow]] = defaultdict(dict)  # by job, then by cell_id
        self.held: dict[int, LeaseRow] = {}
        self.line = WaitingLine(settings)
        self.usage: dict[str, Usage] = {}  # by owner
        self._gpu_hours: dict[str, float] = defaultdict(float)  # by job, of ended leases
        self._first_granted_s: dict[str, float] = {}  # by job, since it was last submitted
        self._lease_ids: dict[str, int] = {}  # by the key of the cell
        self._holders: dict[tuple[str, str], list[str]] = defaultdict(list)  # (storage, cell_id) -> jobs
        self._longest_s: dict[str, float] = {}  # by likeness
        self._last_lease_id = 0
        self._rows: dict[object, Row] = {}
        self._events: list[EventRow] = []
        self._facts: dict[str, str] = {}
        self._reserved_for: str | None = store.fact("promised") or None
        self._alive_s = float(store.fact("alive") or 0.0)
        self._cluster: str | None = store.fact("cluster") or None
        self._load()

    # --- rows ---

    def put_job(self, row: JobRow) -> None:
        known = self.jobs.get(row.job_id)
        check(JOBS, None if known is None else known.state, row.state, row.job_id)
        self._keep_job(row)

    def _keep_job(self, row: JobRow) -> None:
        self.jobs[row.job_id] = self._rows[row.job_id] = row

    def put_cell(self, row: CellRow) -> None:
        known = self.cells[row.job_id].get(row.cell_id)
        check(CELLS, None if known is None else known.state, row.state, row.key)
        self._keep_cell(row)

    def _keep_cell(self, row: CellRow) -> None:
        if row.cell_id not in self.cells[row.job_id]:
            self._holders[self.jobs[row.job_id].storage, row.cell_id].append(row.job_id)
        self.cells[row.job_id][row.cell_id] = self._rows[row.job_id, row.cell_id] = row
        if row.state is CellStatus.SUCCEEDED:
            self._longest_s[row.likeness] = max(row.trained_s, self.longest_s(row.likeness) or 0.0)

    def put_lease(self, row: LeaseRow) -> None:
        self._rows[row.lease_id] = row
        self._note_beginning(row)
        if row.ended_s is None:
            self.held[row.lease_id] = row
            self._lease_ids[row.key] = row.lease_id

    def log(self, time_s: float, kind: str, job: JobRow, cell_id: str = "", text: str = "") -> None:
        self._events.append(EventRow(time_s, kind, job.job_id, cell_id, text))

    def save(self) -> None:
        """Everything since the last time, in one transaction."""
        if self._rows or self._events or self._facts:
            self._store.save(self._rows.values(), self._events, self._facts)
            self._rows.clear()
            self._events.clear()
            self._facts.clear()

    @property
    def reserved_for(self) -> str | None:
        """The cell that the policy promised its nodes to."""
        return self._reserved_for

    @reserved_for.setter
    def reserved_for(self, key: str | None) -> None:
        if key != self._reserved_for:
            self._reserved_for, self._facts["promised"] = key, key or ""

    @property
    def cluster(self) -> str | None:
        """The cluster that the leases are of."""
        return self._cluster

    @cluster.setter
    def cluster(self, cluster_id: str | None) -> None:
        if cluster_id != self._cluster:
            self._cluster, self._facts["cluster"] = cluster_id, cluster_id or ""

    def plan_of(self, job_id: str) -> list[CellRow]:
        """A job's cells, in the plan's order."""
        return sorted(self.cells[job_id].values(), key=lambda row: (row.position, row.cell_id))

    @property
    def alive_s(self) -> float:
        """When the queue was last at work, to the minute."""
        return self._alive_s

    @alive_s.setter
    def alive_s(self, time_s: float) -> None:
        self._alive_s, self._facts["alive"] = time_s, str(time_s)

    # --- leases ---

    def next_lease_id(self, now_s: float) -> int:
        """Larger than any before, of a store that was lost too."""
        self._last_lease_id = max(self._last_lease_id, int(now_s)) + 1
        return self._last_lease_id

    def lease_of(self, key: str) -> LeaseRow | None:
        """The lease under which a cell trains now."""
        lease_id = self._lease_ids.get(key)
        return None if lease_id is None else self.held[lease_id]

    def leases_of(self, job_id: str) -> list[LeaseRow]:
        return [lease for lease in self.held.values() if lease.job_id == job_id]

    def as_held(self, lease: LeaseRow) -> Lease:
        """As the policy sees it."""
        cell = self.cells[lease.job_id][lease.cell_id].as_queued(self.jobs[lease.job_id])
        return lease.as_held(cell, self._settings.checkpoint_s)

    def end_lease(self, ended: LeaseRow, cell: CellRow) -> None:
        """Takes a lease away; its cell becomes `cell`, and the same cell of other jobs may train again."""
        self.put_lease(ended)
        del self.held[ended.lease_id], self._lease_ids[ended.key]
        self._charge(ended)
        self.put_cell(cell)
        for sibling in self.siblings(cell):
            if sibling.state in WAITING:
                self.enqueue(sibling)

    def gpu_hours_of(self, job_id: str, now_s: float) -> float:
        """What all leases of a job came to so far."""
        held = sum(lease.gpus * (now_s - lease.granted_s) for lease in self.leases_of(job_id))
        return self._gpu_hours[job_id] + held / HOUR_S

    def hours_of(self, job_id: str, now_s: float) -> float:
        """Since the first lease of a job after it was submitted."""
        first_s = self._first_granted_s.get(job_id, 0.0)
        return 0.0 if first_s < self.jobs[job_id].submitted_s else (now_s - first_s) / HOUR_S

    def _note_beginning(self, lease: LeaseRow) -> None:
        submitted_s = self.jobs[lease.job_id].submitted_s
        if self._first_granted_s.get(lease.job_id, 0.0) < submitted_s <= lease.granted_s:
            self._first_granted_s[lease.job_id] = lease.granted_s

    def _charge(self, lease: LeaseRow) -> None:
        ended_s = lease.ended_s or lease.granted_s
        used = self.usage.get(lease.owner, Usage())
        self.usage[lease.owner] = used.charged(lease.gpus, lease.granted_s, ended_s, self._settings.share_half_life_s)
        self._gpu_hours[lease.job_id] += lease.gpus * (ended_s - lease.granted_s) / HOUR_S

    # --- the line ---

    def enqueue(self, row: CellRow) -> None:
        """Puts a cell into the line, unless another one has to end first: see `waits_for`."""
        if self.line.find(row.key) is None and self.waits_for(row) is None:
            self.line.add(row.as_queued(self.jobs[row.job_id]))

    def waits_for(self, row: CellRow) -> CellRow | None:
        """The same cell of another job, which trains, or the one before it in a job that trains one at a time."""
        if (sibling := self.training_sibling(row)) is not None or not self.jobs[row.job_id].in_turn:
            return sibling
        first = next((one for one in self.plan_of(row.job_id) if not one.state.is_terminal), row)
        return None if first.key == row.key else first

    def leave(self, row: CellRow) -> None:
        if self.line.find(row.key) is not None:
            self.line.remove(row.key)

    def siblings(self, row: CellRow) -> list[CellRow]:
        """The same cell in every job that has it, this one included."""
        here = (self.jobs[row.job_id].storage, row.cell_id)
        return [self.cells[job_id][row.cell_id] for job_id in self._holders[here]]

    def training_sibling(self, row: CellRow) -> CellRow | None:
        """The same cell where it trains now."""
        return next((sibling for sibling in self.siblings(row) if sibling.key in self._lease_ids), None)

    def longest_s(self, likeness: str) -> float | None:
        """The longest that a cell like this one ever trained."""
        return self._longest_s.get(likeness)

    def _load(self) -> None:
        for job in self._store.jobs():
            self._keep_job(job)
        for row in self._store.cells():
            self._keep_cell(row)
        leases = self._store.leases()
        for lease in leases:
            self._last_lease_id = lease.lease_id
            self._note_beginning(lease)
            if lease.ended_s is None:
                self.put_lease(lease)
        for lease in sorted((one for one in leases if one.ended_s is not None), key=lambda one: one.ended_s or 0.0):
            self._charge(lease)
        for rows in self.cells.values():
            for row in rows.values():
                if row.state in WAITING and not self.jobs[row.job_id].state.is_over:
                    self.enqueue(row)
        self._rows.clear()
