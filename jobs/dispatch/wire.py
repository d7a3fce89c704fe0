"""What a client asks of the dispatcher and what it is answered, key for key, as JSON.

The published schemas of the answers are `backbone schema --of queue | status | schedule | schedules`.
"""

from typing import NotRequired

from typing_extensions import TypedDict


class BenchmarkQuestion(TypedDict):
    """The speed of a comparison instead of the comparison."""

    warm_up: int
    measured: int
    occurrence: str


class DecideQuestion(TypedDict):
    """A comparison that gets seeds until it is decided."""

    max_seeds: int | None


class Question(TypedDict):
    """What the gateway plans: a spec in the folder that travels with it."""

    spec: str
    priority: int | None
    owner: str
    plugins: list[str]
    skip_infeasible: bool
    certificate: bool
    keep_finished: NotRequired[bool]
    benchmark: NotRequired[BenchmarkQuestion]
    decide: NotRequired[DecideQuestion]
    occurrence: NotRequired[str]


class Template(Question):
    """What a schedule submits at each tick: a question, and where its code is kept."""

    code: NotRequired[str | None]


class ScheduleQuestion(Question):
    """A spec that is put on a clock."""

    name: str
    cron: str
    timezone: str
    rules: dict[str, str]  # grace, overlap, catch_up


class JobSummary(TypedDict):
    """A job, with how many of its cells are in which state and why it waits. Times in seconds since the epoch."""

    job_id: str
    kind: str
    owner: str
    priority: int
    preemptible: bool
    storage: str
    spec_file: str
    arguments: list[str]
    code: str | None
    occurrence: str | None
    gpu_hours: float | None
    in_turn: bool
    state: str
    reason: str
    stop: str
    driver: str | None
    attempt: int
    losses: int
    submitted_s: float
    ended_s: float | None
    exit_code: int | None
    hours: float | None
    counts: dict[str, int]
    waiting: str
    waiting_reason: str  # a WaitingReason


class CellFacts(TypedDict):
    """A cell of a job."""

    job_id: str
    cell_id: str
    position: int
    state: str
    workers: int
    gpus_per_worker: int
    cpus_per_worker: int
    accelerator: str | None
    predicted_s: float
    queued_s: float
    likeness: str
    trained_s: float
    note: str
    worlds: list[int]  # of an elastic cell: what `workers` may be


class EventFacts(TypedDict):
    """A line of the queue's log."""

    time_s: float
    kind: str
    job_id: str
    cell_id: str
    text: str


class JobStatus(JobSummary):
    """A job with its cells and its last events."""

    cells: list[CellFacts]
    events: list[EventFacts]


class LeaseFacts(TypedDict):
    """Who trains where."""

    lease_id: int
    job_id: str
    cell_id: str
    owner: str
    gpus: int
    placement: list[tuple[str, int]]  # node, workers on it
    granted_s: float
    reason: str
    stop_kind: str | None
    stop_reason: str
    stop_asked_s: float | None
    ended_s: float | None
    ended: str


class NodeFacts(TypedDict):
    """What a node offers."""

    node_id: str
    gpus: int
    cpus: int
    memory_gib: float
    accelerator: str | None


class QueueListing(TypedDict):
    """Every job, the leases that are held, the nodes, and what goes wrong."""

    jobs: list[JobSummary]
    leases: list[LeaseFacts]
    nodes: list[NodeFacts]
    trouble: str


class SyncAnswer(TypedDict):
    """The jobs of which MLflow lacks something."""

    waiting: list[str]
    trouble: str


class Ping(TypedDict):
    """That the dispatcher lives."""

    store: str
    pid: int
    trouble: str


class FiringFacts(TypedDict):
    """What became of a tick, or of neighbouring ticks with one fate."""

    occurrence: str
    schedule: str
    state: str
    reason: str
    first_s: int
    tick_s: int
    number: int
    recorded_s: float
    job_id: str
    job_state: str


class ScheduleFacts(TypedDict, total=False):
    """A schedule with its next tick; or, of one that was removed or fired by hand, that alone."""

    name: str
    cron: str
    timezone: str
    created_s: str
    handled_s: str
    grace_s: str
    overlap: str
    catch_up: str
    paused: bool
    spec: str
    next: str | None
    history: list[FiringFacts]
    removed: str
    occurrence: str


class ScheduleListing(TypedDict):
    """Every schedule."""

    schedules: list[ScheduleFacts]
