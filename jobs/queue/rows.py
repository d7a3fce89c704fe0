"""What the queue remembers of jobs, cells and leases, and what drivers and clients tell it. Plain data; no clock."""

from dataclasses import dataclass
from enum import StrEnum

from jobs.queue.gangs import Demand, Placement
from jobs.queue.model import Lease, QueuedCell, StopKind
from jobs.queue.reasons import NOTHING_WAITS, Waiting
from orchestrator.results import CellStatus

WAITING = (CellStatus.QUEUED, CellStatus.PREEMPTED)


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "QUEUED"  # no driver; one starts with the first lease
    RUNNING = "RUNNING"  # has a driver, or one is being started
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"  # some cell did not succeed, or drivers kept dying; submitting again continues
    CANCELLED = "CANCELLED"  # by a person; submitting again continues
    INTERRUPTED = "INTERRUPTED"  # its driver died, and only whoever ran it can run it again

    @property
    def is_over(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class CellRequest:
    """A cell that asks for a lease. `likeness` is shared by cells that should take equally long."""

    cell_id: str
    demand: Demand
    limit_s: float  # policy.timeout: the upper bound where nothing like it was ever measured
    likeness: str


@dataclass(frozen=True)
class JobRequest:
    """A job as it is submitted, or as its driver attaches: `job_id` is its content, and so its idempotency key."""

    job_id: str
    kind: str  # comparison, finetune, benchmark or certificate: the entry point that runs it
    owner: str
    priority: int
    preemptible: bool
    storage: str
    cells: tuple[CellRequest, ...]  # those that are not finished, in the plan's order
    spec_file: str = ""  # relative to the root of the code
    arguments: tuple[str, ...] = ()  # of the entry point
    code: str | None = None  # zip on shared storage; None: the dispatcher cannot start the driver itself
    occurrence: str | None = None  # <schedule>/<tick>
    gpu_hours: float | None = None  # at this limit its cells stop at a checkpoint
    hours: float | None = None  # the same, on the wall clock, since its first lease
    in_turn: bool = False  # one cell at a time, as where speed is measured


@dataclass(frozen=True)
class JobRow:
    """A job in the store. Times in seconds since the epoch."""

    job_id: str
    kind: str
    owner: str
    priority: int
    preemptible: bool
    storage: str
    spec_file: str
    arguments: tuple[str, ...]
    code: str | None
    occurrence: str | None
    gpu_hours: float | None
    in_turn: bool
    state: JobState
    reason: str
    stop: str  # why it was asked to stop at a checkpoint, or empty
    driver: str | None  # its Ray submission id, or host and pid
    attempt: int  # drivers started so far
    losses: int  # drivers lost since a cell last finished
    submitted_s: float
    ended_s: float | None = None
    exit_code: int | None = None
    hours: float | None = None


@dataclass(frozen=True)
class CellRow:
    """A cell of a job. `queued_s` dates its age in the queue; running does not age it."""

    job_id: str
    cell_id: str
    position: int
    state: CellStatus
    workers: int
    gpus_per_worker: int
    cpus_per_worker: int
    accelerator: str | None
    predicted_s: float
    queued_s: float
    likeness: str
    trained_s: float = 0.0
    note: str = ""
    worlds: tuple[int, ...] = ()  # where it is elastic: what `workers` may be

    @property
    def key(self) -> str:
        """What the policy calls it; two jobs may hold the same cell."""
        return f"{self.job_id}/{self.cell_id}"

    @property
    def demand(self) -> Demand:
        return Demand(
            self.workers, self.gpus_per_worker, self.cpus_per_worker, accelerator=self.accelerator, worlds=self.worlds
        )

    def as_queued(self, job: JobRow) -> QueuedCell:
        """As the policy sees it. Cells of one job that are alike keep the plan's order."""
        age = self.queued_s + self.position * 1e-5
        return QueuedCell(self.key, job.owner, self.demand, self.predicted_s, age, job.priority, job.preemptible)


@dataclass(frozen=True)
class LeaseRow:
    """A lease, while it is held (`ended_s` is None) and ever after."""

    lease_id: int
    job_id: str
    cell_id: str
    owner: str
    gpus: int
    placement: Placement
    granted_s: float
    reason: str
    stop_kind: StopKind | None = None
    stop_reason: str = ""
    stop_asked_s: float | None = None
    ended_s: float | None = None
    ended: str = ""

    @property
    def is_preempted(self) -> bool:
        """Whether it was asked to stop for another cell, to continue later."""
        return self.stop_kind is StopKind.PREEMPTED

    @property
    def key(self) -> str:
        """What the policy calls its cell."""
        return f"{self.job_id}/{self.cell_id}"

    def as_held(self, cell: QueuedCell, checkpoint_s: float) -> Lease:
        """As the policy sees it."""
        stops_by_s = None if self.stop_asked_s is None else self.stop_asked_s + checkpoint_s
        return Lease(cell, self.placement, self.granted_s, stops_by_s)


@dataclass(frozen=True)
class EventRow:
    """One line of the queue's log."""

    time_s: float
    kind: str
    job_id: str
    cell_id: str
    text: str


@dataclass(frozen=True)
class Release:
    """A driver gives a lease back. A status that is not terminal means that the cell waits for another one."""

    lease_id: int
    status: CellStatus
    note: str = ""


@dataclass(frozen=True)
class Directives:
    """The whole truth for one driver, so that a lost answer costs nothing: its leases, and who must stop why."""

    leases: tuple[LeaseRow, ...]
    stop: str = ""  # why the whole job must stop at a checkpoint
    replaced: bool = False  # another driver runs this job now: train nothing more
    closed: tuple[tuple[str, str], ...] = ()  # (cell_id, why) of cells that will get no lease any more
    waiting: Waiting = NOTHING_WAITS  # why its first cell waits, while none trains
    hopeless: str = ""  # why it can never start, while none trains
