"""The queue under a virtual clock: what drivers and clients say, what it answers, and what survives a restart."""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.packing import Demand, Node
from jobs.queue import MAX_LOSSES, SILENT_S, START_LIMIT_S, Queue
from jobs.queue_model import OwnerRules, QueuedCell, Settings
from jobs.queue_rows import CellRequest, JobRequest, JobState, LeaseRow, Released
from jobs.simulate import TraceJob, simulate
from jobs.store import Store
from orchestrator.errors import AlreadyRunningError, InputError, StoreError
from orchestrator.results import CellStatus

NODES = (Node("n0", 4, 8), Node("n1", 4, 8))
RULES = Settings(ageing_window_s=200.0, checkpoint_s=5.0, share_half_life_s=300.0)


class Clock:
    """Seconds, moved by the test."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_queue(tmp_path: Path, clock: Clock) -> Callable[..., Queue]:
    """Opens the same store as often as wanted; the one before is let go of, as when its process died."""
    stores: list[Store] = []

    def open_one(settings: Settings = RULES, nodes: Sequence[Node] = NODES) -> Queue:
        for store in stores:
            store.close()
        stores.append(Store(f"sqlite:///{tmp_path / 'queue.db'}"))
        queue = Queue(stores[-1], settings, clock)
        queue.see_nodes(nodes, nodes)
        return queue

    return open_one


def request(job_id: str, *gpus: int, **other: object) -> JobRequest:
    cells = tuple(CellRequest(f"cell-{n}", Demand(size), 100.0, f"{job_id}-{n}") for n, size in enumerate(gpus))
    facts: dict[str, object] = {
        "owner": "ada",
        "priority": 0,
        "preemptible": True,
        "storage": "/shared",
        "code": "a.zip",
    }
    return JobRequest(job_id, "comparison", cells=cells, **{**facts, **other})  # type: ignore[arg-type]


def leased(queue: Queue) -> dict[str, LeaseRow]:
    return {lease.key: lease for lease in queue.leases()}


# --- the dispatcher's order is the simulator's ---


def random_trace(chance: random.Random) -> list[TraceJob]:
    jobs = []
    for number in range(chance.randint(1, 12)):
        duration_s = float(chance.randint(1, 300))
        cell = QueuedCell(
            f"job-{number:02d}",
            chance.choice(("ada", "bob")),
            Demand(chance.randint(1, 8)),
            duration_s * chance.choice((1.0, 0.5, 1.5)),
            float(chance.randint(0, 400)),
            chance.randint(0, 2),
            chance.random() < 0.7,
        )
        jobs.append(TraceJob(cell, duration_s))
    return jobs


def starts_of_the_queue(trace: Sequence[TraceJob], queue: Queue, clock: Clock) -> list[tuple[float, str]]:
    """Plays a trace against the queue as drivers would, and notes every start."""
    left_s = {job.cell.cell_id: job.duration_s for job in trace}
    arrivals = sorted(trace, key=lambda job: (job.cell.submitted_s, job.cell.cell_id))
    ends: list[tuple[float, str, int]] = []
    starts: list[tuple[float, str]] = []
    seen: dict[int, LeaseRow] = {}
    while arrivals or ends:
        clock.now_s = min([one.cell.submitted_s for one in arrivals[:1]] + [one[0] for one in ends[:1]])
        while arrivals and arrivals[0].cell.submitted_s <= clock.now_s:
            cell = arrivals.pop(0).cell
            asked = CellRequest(cell.cell_id, cell.demand, cell.predicted_s, cell.cell_id)
            queue.attach(
                JobRequest(cell.cell_id, "finetune", cell.owner, cell.priority, cell.preemptible, "/shared", (asked,)),
                driver="driver",
            )
        while ends and ends[0][0] <= clock.now_s:
            _, job_id, lease_id = heapq.heappop(ends)
            if lease_id not in seen:
                continue
            lease = seen.pop(lease_id)
            finished = clock.now_s >= lease.granted_s + left_s[job_id]
            if not finished:
                left_s[job_id] -= (lease.stop_asked_s or 0.0) - lease.granted_s
            status = CellStatus.SUCCEEDED if finished else CellStatus.PREEMPTED
            queue.beat(job_id, "driver", [Released(lease_id, status)])
        queue.decide()
        for lease in queue.leases():
            if lease.lease_id not in seen:
                starts.append((clock.now_s, lease.job_id))
                heapq.heappush(ends, (clock.now_s + left_s[lease.job_id], lease.job_id, lease.lease_id))
            elif lease.stop_asked_s is not None and seen[lease.lease_id].stop_asked_s is None:
                heapq.heappush(ends, (clock.now_s + RULES.checkpoint_s, lease.job_id, lease.lease_id))
            seen[lease.lease_id] = lease
    return starts


def test_200_random_traces_start_in_the_simulators_order() -> None:
    preempted = 0
    for seed in range(200):
        trace = random_trace(random.Random(seed))
        clock = Clock()
        queue = Queue(Store("sqlite://"), RULES, clock)
        queue.see_nodes(NODES, NODES)
        simulated = simulate(trace, NODES, RULES)
        expected = sorted((segment.start_s, segment.job_id) for segment in simulated.segments)
        preempted += sum(segment.ended == "preempted" for segment in simulated.segments)
        assert sorted(starts_of_the_queue(trace, queue, clock)) == expected, f"trace {seed}"
    assert preempted > 50
