"""The queue's policy on a cluster that is only described: the same `decide`, driven by events instead of a clock."""

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs.queue.gangs import Node, Placement
from jobs.queue.model import Lease, QueuedCell, Settings, Stop, Usage, WaitingLine
from jobs.queue.policy import Decisions, decide

POLICIES: Mapping[str, str] = {
    "backbone": "priority, share, longest first; backfill, preemption",
    "fifo": "strict first in, first out",
    "fifo-backfill": "first in, first out, with backfill",
}


@dataclass(frozen=True)
class TraceJob:
    """One line of a trace: what waits (with its prediction), and how long it really takes."""

    cell: QueuedCell
    duration_s: float


@dataclass(frozen=True)
class Segment:
    """A lease that is over. `ended`: finished, preempted or budget."""

    job_id: str
    owner: str
    gpus: int
    placement: Placement
    start_s: float
    end_s: float
    ended: str
    granted_because: str
    stopped_because: str


@dataclass(frozen=True)
class Simulation:
    """What one policy made of a trace. Times in seconds on the trace's clock."""

    policy: str
    segments: tuple[Segment, ...]
    unfinished: Mapping[str, str]  # job id -> why
    gpus: int
    planned_in_s: float  # real time

    @property
    def first_starts(self) -> dict[str, float]:
        starts: dict[str, float] = {}
        for segment in sorted(self.segments, key=lambda one: one.start_s):
            starts.setdefault(segment.job_id, segment.start_s)
        return starts


def settings_of(policy: str, base: Settings) -> Settings:
    """The rules of a named policy; quotas and budgets hold under each."""
    if policy == "backbone":
        return base
    return replace(base, order="fifo", backfill=policy == "fifo-backfill", preemption=False)


def simulate(jobs: Sequence[TraceJob], nodes: Sequence[Node], base: Settings, policy: str = "backbone") -> Simulation:
    """Runs a trace to its end. Every job must fit on the empty cluster and under its owner's quota, or never starts."""
    began = time.perf_counter()
    run = _Run(nodes, settings_of(policy, base), jobs)
    run.to_the_end()
    gpus = sum(node.gpus for node in nodes)
    return Simulation(policy, tuple(run.segments), run.unfinished(), gpus, time.perf_counter() - began)


@dataclass
class _Run:
    """The state between two events."""

    nodes: Sequence[Node]
    settings: Settings
    jobs: Sequence[TraceJob]
    leases: dict[str, Lease] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_id = {job.cell.cell_id: job for job in self.jobs}
        self.left_s = {job.cell.cell_id: job.duration_s for job in self.jobs}
        self.waiting = WaitingLine(self.settings)
        self.arrivals = sorted(self.jobs, key=lambda job: (-job.cell.submitted_s, job.cell.cell_id))  # the next is last
        self.ends: list[tuple[float, str, float]] = []  # (when, job, granted when): a stopped lease's end is stale
        self.reasons: dict[str, str] = {}
        self.stops: dict[str, tuple[Stop, float]] = {}  # job -> why, and when it was asked
        self.over: dict[str, str] = {}
        self.last: Decisions | None = None

    def to_the_end(self) -> None:
        while (now_s := self._next_s()) is not None:
            while self.arrivals and self.arrivals[-1].cell.submitted_s <= now_s:
                self.waiting.add(self.arrivals.pop().cell)
            while self.ends and self.ends[0][0] <= now_s:
                end_s, job_id, granted_s = heapq.heappop(self.ends)
                lease = self.leases.get(job_id)
                if lease is not None and lease.granted_s == granted_s:
                    self._end(lease, end_s)
            reserved_for = self.last.reserved_for if self.last else None
            leases = self.leases.values()
            self.last = decide(now_s, self.nodes, self.waiting, leases, self.settings, self.usage, reserved_for)
            self._obey(self.last, now_s)

    def unfinished(self) -> dict[str, str]:
        waiting = {cell.cell_id: self.last.why_waiting(cell) for cell in self.waiting.cells()} if self.last else {}
        return self.over | waiting

    def _next_s(self) -> float | None:
        """When something happens next: a job arrives, a lease ends, or a budget runs out."""
        times = [self.arrivals[-1].cell.submitted_s] if self.arrivals else []
        times += [self.ends[0][0]] if self.ends else []
        if times and self.last and self.last.look_again_s is not None:
            times.append(self.last.look_again_s)
        return min(times, default=None)

    def _obey(self, decisions: Decisions, now_s: float) -> None:
        for stop in decisions.stops:
            lease = self.leases[stop.cell_id]
            stops_by_s = now_s + self.settings.checkpoint_s
            self.leases[stop.cell_id] = replace(lease, stops_by_s=stops_by_s)
            self.stops[stop.cell_id] = (stop, now_s)
            heapq.heappush(self.ends, (stops_by_s, stop.cell_id, lease.granted_s))
        for grant in decisions.grants:
            job_id = grant.cell.cell_id
            self.leases[job_id] = Lease(self.waiting.remove(job_id), grant.placement, now_s)
            self.reasons[job_id] = grant.reason
            heapq.heappush(self.ends, (now_s + self.left_s[job_id], job_id, now_s))

    def _end(self, lease: Lease, end_s: float) -> None:
        """Frees a lease. A stopped one trained until it was asked, then wrote its checkpoint."""
        cell = lease.cell
        del self.leases[cell.cell_id]
        stop, asked_s = self.stops.pop(cell.cell_id, (None, end_s))
        finished = end_s >= lease.granted_s + self.left_s[cell.cell_id]
        ended = "finished" if stop is None or finished else stop.kind
        reason = "" if ended == "finished" or stop is None else stop.reason
        placement, start_s, because = lease.placement, lease.granted_s, self.reasons[cell.cell_id]
        self.segments.append(
            Segment(cell.cell_id, cell.owner, cell.gpus, placement, start_s, end_s, ended, because, reason)
        )
        used = self.usage.get(cell.owner, Usage())
        self.usage[cell.owner] = used.charged(cell.gpus, start_s, end_s, self.settings.share_half_life_s)
        if ended == "preempted":
            trained_s = asked_s - start_s
            self.left_s[cell.cell_id] -= trained_s
            self.waiting.add(lease.released(end_s, trained_s))
        elif ended == "budget":
            self.over[cell.cell_id] = reason
