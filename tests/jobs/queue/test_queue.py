"""The queue under a virtual clock: what drivers and clients say, what it answers, and what survives a restart.

Over 300 lines: one state machine, of which every test tells another part of its life.
"""

import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.ray_cluster import largest_cluster
from jobs.queue.gangs import Demand, Node
from jobs.queue.model import OwnerRules, QueuedCell, Settings
from jobs.queue.queue import MAX_LOSSES, SILENT_S, START_LIMIT_S, Queue
from jobs.queue.rows import CellRequest, CellRow, JobRequest, JobState, LeaseRow, Release
from jobs.queue.store import Store
from jobs.simulation.simulate import TraceJob, simulate
from orchestrator.errors import AlreadyRunningError, InputError
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
def open_queue(store_url: str, clock: Clock) -> Iterator[Callable[..., Queue]]:
    """Opens the same store as often as wanted; the one before is let go of, as when its process died."""
    stores: list[Store] = []

    def open_one(settings: Settings = RULES, nodes: Sequence[Node] = NODES) -> Queue:
        for store in stores:
            store.close()
        stores.append(Store(store_url))
        queue = Queue(stores[-1], settings, clock)
        queue.see_nodes(nodes, nodes)
        return queue

    yield open_one
    stores[-1].close()


def request(job_id: str, *gpus: int, **other: Any) -> JobRequest:
    """A job of cells of so many GPUs each."""
    cells = tuple(CellRequest(f"{job_id}-{n}", Demand(size), 100.0, f"{job_id}-{n}") for n, size in enumerate(gpus))
    facts = {"owner": "ada", "priority": 0, "preemptible": True, "storage": "/shared", "code": "a.zip"} | other
    return JobRequest(job_id, "comparison", **{"cells": cells, **facts})


def leased(queue: Queue) -> dict[str, LeaseRow]:
    return {lease.cell_id: lease for lease in queue.leases()}


def states(queue: Queue, job_id: str) -> list[CellStatus]:
    return [cell.state for cell in queue.cells(job_id)]


def only_cell(queue: Queue, job_id: str) -> CellRow:
    [cell] = queue.cells(job_id)
    return cell


def start(queue: Queue, job: JobRequest) -> str:
    """Submits a job and lets its driver take it over."""
    queue.submit(job)
    queue.decide()
    [started] = queue.drivers_to_start()
    assert started.driver is not None
    queue.attach(driven(job), started.driver)
    return started.driver


def driven(job: JobRequest) -> JobRequest:
    """What the driver of a submitted job says: it knows the plan, not what was submitted."""
    return replace(job, code=None, spec_file="", arguments=(), occurrence=None, gpu_hours=None, hours=None)


def observed(queue: Queue) -> Any:
    """All that one may ask a queue, but for how long ago its drivers were heard."""
    jobs = [(job, queue.cells(job.job_id), queue.why_waiting(job.job_id)) for job in queue.jobs()]
    return jobs, queue.leases(), queue.events(limit=100_000), sorted(map(str, queue.demands()))


# --- submitting ---


def test_the_same_submission_twice_is_one_job(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    first = queue.submit(request("a", 4, 2))
    clock.now_s += 50
    before = observed(queue)
    assert queue.submit(request("a", 4, 2)) == first
    assert observed(queue) == before


def test_a_submission_repeated_after_a_restart_is_one_job(open_queue: Callable[..., Queue]) -> None:
    first = open_queue().submit(request("a", 4, 2))
    queue = open_queue()
    before = observed(queue)
    assert queue.submit(request("a", 4, 2)) == first
    assert observed(queue) == before and len(queue.jobs()) == 1


def test_submitting_a_finished_job_runs_nothing(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    queue.heartbeat("a", driver, [Release(leased(queue)["a-0"].lease_id, CellStatus.SUCCEEDED)])
    queue.finish("a", driver, 0)
    assert queue.submit(request("a")).state is JobState.SUCCEEDED
    queue.decide()
    assert not queue.leases() and not queue.drivers_to_start()


def test_a_finished_job_whose_results_were_deleted_runs_again(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    queue.heartbeat("a", driver, [Release(leased(queue)["a-0"].lease_id, CellStatus.SUCCEEDED)])
    queue.finish("a", driver, 0)
    assert queue.submit(request("a", 4)).state is JobState.QUEUED
    queue.decide()
    assert [job.driver for job in queue.drivers_to_start()] == ["a.2"]


def test_a_job_whose_cells_are_all_finished_gets_a_driver_for_its_report(open_queue: Callable[..., Queue]) -> None:
    """Another job trained them, or its rule for the verdict changed: who says how it ended is the driver."""
    queue = open_queue()
    queue.submit(request("a"))
    queue.decide()
    [job] = queue.drivers_to_start()
    queue.attach(driven(request("a")), str(job.driver))
    queue.finish("a", str(job.driver), 1)
    assert queue.find("a").state is JobState.FAILED
    assert queue.submit(request("a")).state is JobState.QUEUED


def test_a_job_that_only_lacks_its_report_is_not_stopped_for_its_budget(
    open_queue: Callable[..., Queue], clock: Clock
) -> None:
    queue = open_queue()
    driver = start(queue, replace(request("a", 4), hours=1.0))
    clock.now_s += 3000
    queue.heartbeat("a", driver, [Release(leased(queue)["a-0"].lease_id, CellStatus.SUCCEEDED)])
    queue.driver_lost("a", driver, "killed")
    clock.now_s += 3000
    queue.decide()
    assert [job.driver for job in queue.drivers_to_start()] == ["a.2"]


def test_submitting_a_failed_job_continues_it_without_its_finished_cells(
    open_queue: Callable[..., Queue], clock: Clock
) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 2, 2, 2))
    held = leased(queue)
    queue.heartbeat("a", driver, [Release(held["a-0"].lease_id, CellStatus.SUCCEEDED)])
    queue.heartbeat("a", driver, [Release(held["a-1"].lease_id, CellStatus.FAILED, "diverged twice")])
    queue.finish("a", driver, 1)
    assert states(queue, "a") == [CellStatus.SUCCEEDED, CellStatus.FAILED, CellStatus.CANCELLED]
    clock.now_s += 1000
    whole = request("a", 2, 2, 2)
    job = queue.submit(replace(whole, cells=whole.cells[1:], priority=3))
    assert (job.state, job.priority, job.submitted_s) == (JobState.QUEUED, 3, clock.now_s)
    assert states(queue, "a") == [CellStatus.SUCCEEDED, CellStatus.QUEUED, CellStatus.QUEUED]
    queue.decide()
    assert leased(queue).keys() == {"a-1", "a-2"}


def test_another_storage_for_a_known_job_is_refused_to_clients_and_drivers(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    queue.submit(request("a", 4))
    elsewhere = request("a", 4, storage="/other")
    with pytest.raises(InputError, match=r"known with the storage /shared, not /other; use that one"):
        queue.submit(elsewhere)
    with pytest.raises(InputError, match=r"known with the storage /shared, not /other; use that one"):
        queue.attach(elsewhere, "host:1")


def test_999_gpus_are_refused_with_both_numbers(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    with pytest.raises(InputError) as caught:
        queue.submit(request("a", 1, 999))
    for part in ("999 x {1 GPU}", "8 GPUs", "on 2 nodes", "at most 4 GPUs", "Lower placement.workers, or add nodes"):
        assert part in str(caught.value)
    assert not queue.jobs()


def test_999_gpus_wait_where_nobody_knows_how_far_the_cluster_grows(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    queue.see_nodes(NODES, None)
    queue.submit(request("a", 999))
    queue.decide()
    assert "never fits" in queue.why_waiting("a")
    queue.see_nodes([Node(f"n{n}", 8) for n in range(125)], None)
    queue.decide()
    assert leased(queue).keys() == {"a-0"}


def test_a_cluster_that_may_grow_is_asked_for_what_its_autoscaler_could_start(tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text("available_node_types: {gpu: {resources: {CPU: 192, GPU: 8}, max_workers: 2}}")
    queue = Queue(Store("sqlite://"), RULES, Clock())
    queue.see_nodes([], largest_cluster(config))
    fits = [CellRequest("wide", Demand(16, accelerator="H100"), 100.0, "wide")]
    assert queue.submit(replace(request("wide"), cells=tuple(fits))).state is JobState.QUEUED
    with pytest.raises(InputError, match="never fits: the cluster has 16 GPUs"):
        queue.submit(request("wider", 17))


def test_more_gpus_than_the_quota_are_refused_even_where_the_cluster_may_grow(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue(replace(RULES, owners={"ada": OwnerRules(gpu_quota=2)}))
    queue.see_nodes(NODES, None)
    with pytest.raises(InputError, match=r"needs 3 GPUs, and the quota of ada is 2"):
        queue.submit(request("a", 3))


def test_a_driver_is_told_that_its_cell_can_never_start(open_queue: Callable[..., Queue]) -> None:
    assert "never fits" in open_queue().attach(request("a", 999, code=None), "host:1").hopeless


def test_owners_share_the_cluster_within_their_quota(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue(replace(RULES, owners={"ada": OwnerRules(gpu_quota=4)}))
    driver = start(queue, request("a", 2, 2, 2))
    assert len(leased(queue)) == 2
    assert "ada holds 4 of its quota of 4" in queue.why_waiting("a")
    queue.submit(request("b", 4, owner="bob"))
    queue.decide()
    assert "b-0" in leased(queue)
    clock.now_s += 10
    queue.heartbeat("a", driver, [Release(leased(queue)["a-0"].lease_id, CellStatus.SUCCEEDED)])
    queue.decide()
    assert "a-2" in leased(queue)


# --- drivers ---


def test_a_driver_is_started_with_the_first_lease_and_only_once(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    queue.submit(request("a", 4))
    assert not queue.drivers_to_start()
    queue.decide()
    [job] = queue.drivers_to_start()
    assert (job.job_id, job.driver, job.attempt, job.state) == ("a", "a.1", 1, JobState.RUNNING)
    assert not queue.drivers_to_start() and not open_queue().drivers_to_start()


def test_a_driver_keeps_what_was_submitted(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    submitted = request(
        "a", 4, priority=3, spec_file="which.yaml", arguments=("--plugin", "x"), occurrence="nightly/1", gpu_hours=9.0
    )
    row = queue.submit(submitted)
    start(queue, submitted)
    kept = ("owner", "priority", "spec_file", "arguments", "code", "occurrence", "gpu_hours", "submitted_s")
    assert [getattr(queue.find("a"), name) for name in kept] == [getattr(row, name) for name in kept]


def test_a_driver_gives_leases_back_and_finishes(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    clock.now_s += 60
    lease = leased(queue)["a-0"]
    directives = queue.heartbeat("a", driver, [Release(lease.lease_id, CellStatus.SUCCEEDED)])
    assert directives is not None and not directives.leases and not directives.replaced
    assert only_cell(queue, "a").trained_s == 60
    queue.finish("a", driver, 0)
    job = queue.find("a")
    assert (job.state, job.exit_code, job.ended_s) == (JobState.SUCCEEDED, 0, clock.now_s)
    assert [event.kind for event in queue.events("a")] == [
        "submitted", "granted", "starting", "attached", "cell_ended", "ended"
    ]  # fmt: skip


def test_a_lost_answer_changes_nothing(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4, 4, 4))
    held = leased(queue)
    said = [
        Release(held["a-0"].lease_id, CellStatus.SUCCEEDED),
        Release(held["a-1"].lease_id, CellStatus.QUEUED, "its node died"),
    ]
    first = queue.heartbeat("a", driver, said)
    before = observed(queue)
    clock.now_s += 5
    assert queue.heartbeat("a", driver, said) == first
    assert observed(queue) == before
    again = open_queue()
    again.decide()
    queue_after = observed(again)
    assert again.heartbeat("a", driver, said) is not None
    assert observed(again) == queue_after


def test_a_stale_release_does_not_touch_the_lease_granted_since(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    stale = Release(leased(queue)["a-0"].lease_id, CellStatus.QUEUED, "its node died")
    queue.heartbeat("a", driver, [stale])
    queue.decide()
    again = leased(queue)["a-0"]
    assert again.lease_id != stale.lease_id
    before = observed(queue)
    queue.heartbeat("a", driver, [stale])
    assert observed(queue) == before and queue.leases() == [again]


def test_a_driver_cannot_give_back_the_lease_of_another_job(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    start(queue, request("b", 4))
    queue.heartbeat("a", driver, [Release(leased(queue)["b-0"].lease_id, CellStatus.SUCCEEDED)])
    assert "b-0" in leased(queue)


def test_finishing_twice_changes_nothing(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    queue.finish("a", driver, 1)
    before = observed(queue)
    clock.now_s += 5
    queue.finish("a", driver, 1)
    assert observed(queue) == before


def test_a_job_that_the_queue_does_not_know_is_told_to_attach(open_queue: Callable[..., Queue]) -> None:
    assert open_queue().heartbeat("a", "a.1") is None


def test_the_second_driver_of_a_live_job_is_refused(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    for _ in range(3):
        clock.now_s += SILENT_S - 1
        queue.heartbeat("a", driver)
        with pytest.raises(AlreadyRunningError, match=r"run by another driver \(a\.1\).*backbone stop a"):
            queue.attach(request("a", 4), "host:2")
    queue.attach(request("a", 4), driver)  # the same one again: the answer was lost
    assert len(queue.leases()) == 1


def test_the_second_driver_of_a_silent_job_takes_over_and_the_first_must_stop(
    open_queue: Callable[..., Queue], clock: Clock
) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    lease = leased(queue)["a-0"]
    clock.now_s += SILENT_S
    assert not queue.attach(driven(request("a", 4)), "host:2").leases
    directives = queue.heartbeat("a", driver, [Release(lease.lease_id, CellStatus.SUCCEEDED)])
    assert directives is not None and directives.replaced and not directives.leases
    assert only_cell(queue, "a").state is CellStatus.QUEUED
    queue.decide()
    directives = queue.heartbeat("a", "host:2")
    assert directives is not None and [one.cell_id for one in directives.leases] == ["a-0"]


def test_a_driver_of_ones_own_that_was_taken_for_dead_must_stop(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    queue.attach(request("a", 4, code=None), "host:1")
    queue.decide()
    queue.driver_lost("a", "host:1", "silent for 31 s")
    assert queue.find("a").state is JobState.INTERRUPTED and not queue.leases()
    directives = queue.heartbeat("a", "host:1")
    assert directives is not None and directives.replaced and "run the same command again" in directives.stop
    queue.finish("a", "host:1", 1)
    assert queue.find("a").state is JobState.INTERRUPTED


def test_when_a_driver_is_lost_its_leases_are_free_and_its_cells_keep_their_age(
    open_queue: Callable[..., Queue], clock: Clock
) -> None:
    queue = open_queue()
    clock.now_s += 40
    queue.submit(request("a", 4))
    clock.now_s += 60  # it waits
    queue.decide()
    [job] = queue.drivers_to_start()
    clock.now_s += 25  # it trains
    queue.driver_lost("a", job.driver or "", "killed")
    cell = only_cell(queue, "a")
    assert not queue.leases() and cell.state is CellStatus.QUEUED
    assert clock.now_s - cell.queued_s == 60
    assert queue.find("a").state is JobState.QUEUED
    queue.decide()
    [again] = queue.drivers_to_start()
    assert (again.driver, again.attempt, again.losses) == ("a.2", 2, 1)
    before = observed(queue)
    queue.driver_lost("a", job.driver or "", "killed")  # the first one, once more
    assert observed(queue) == before


def test_drivers_that_keep_dying_are_replaced_only_so_often(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    queue.submit(request("a", 4))
    for _ in range(MAX_LOSSES + 1):
        queue.decide()
        [job] = queue.drivers_to_start()
        queue.driver_lost("a", job.driver or "", "killed")
        queue = open_queue()
    job = queue.find("a")
    assert job.state is JobState.FAILED and f"{MAX_LOSSES + 1} drivers in a row died" in job.reason
    queue.decide()
    assert not queue.leases() and not queue.drivers_to_start()
    assert queue.submit(request("a", 4)).losses == 0


def test_a_cell_that_ends_well_forgives_the_drivers_lost_before(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    job = request("a", 8, 8)
    driver = start(queue, job)
    for _ in range(MAX_LOSSES):
        queue.driver_lost("a", driver, "killed")
        queue.decide()
        [started] = queue.drivers_to_start()
        driver = started.driver or ""
        queue.attach(driven(job), driver)
    queue.heartbeat("a", driver, [Release(queue.leases()[0].lease_id, CellStatus.SUCCEEDED)])
    assert queue.find("a").losses == 0


def test_a_driver_has_time_to_start_before_it_is_looked_after(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    queue.submit(request("a", 4))
    queue.decide()
    queue.drivers_to_start()
    clock.now_s += START_LIMIT_S - SILENT_S
    [(job, silence_s)] = queue.running()
    assert (job.job_id, silence_s) == ("a", 0.0)


def test_a_submitted_driver_that_is_interrupted_is_started_again(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    queue.finish("a", driver, 143)
    assert queue.find("a").state is JobState.QUEUED and only_cell(queue, "a").state is CellStatus.QUEUED


# --- stopping ---


def test_a_job_that_only_waits_stops_at_once(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    queue.submit(request("a", 4))
    queue.decide()  # granted, but no driver was started yet
    assert queue.stop("a", "ada asked").state is JobState.CANCELLED
    assert not queue.leases() and states(queue, "a") == [CellStatus.CANCELLED]
    assert not queue.drivers_to_start()


def test_a_running_job_stops_at_a_checkpoint_and_starts_nothing_more(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4, 4, 4))
    assert queue.stop("a", "ada asked").state is JobState.RUNNING
    directives = queue.heartbeat("a", driver)
    assert directives is not None and directives.stop == "ada asked" and directives.closed == (("a-2", "ada asked"),)
    assert {lease.stop_kind for lease in directives.leases} == {"stopped"}
    first, second = directives.leases
    queue.heartbeat("a", driver, [Release(first.lease_id, CellStatus.CANCELLED, "ada asked")])
    queue.heartbeat("a", driver, [Release(second.lease_id, CellStatus.PREEMPTED, "asked before")])
    queue.decide()
    assert not queue.leases()
    queue.finish("a", driver, 143)
    assert (queue.find("a").state, queue.find("a").reason) == (JobState.CANCELLED, "ada asked")
    assert set(states(queue, "a")) == {CellStatus.CANCELLED}


def test_a_stopping_job_whose_driver_dies_is_over(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    queue.stop("a", "ada asked")
    queue.driver_lost("a", driver, "killed")
    assert queue.find("a").state is JobState.CANCELLED and not queue.leases()


def test_a_cancelled_job_stays_cancelled_whatever_its_driver_says(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    lease = leased(queue)["a-0"]
    assert queue.cancel("a", "ada asked").state is JobState.CANCELLED
    before = observed(queue)
    directives = queue.heartbeat("a", driver, [Release(lease.lease_id, CellStatus.SUCCEEDED)])
    assert directives is not None and directives.replaced and directives.stop == "ada asked"
    queue.finish("a", driver, 143)
    queue.driver_lost("a", driver, "killed")
    queue.stop("a", "once more")
    assert observed(queue) == before
    assert not queue.running()


def test_a_cancelled_job_that_is_submitted_again_continues(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    queue.cancel("a", "ada asked")
    assert start(queue, request("a", 4)) != driver
    assert queue.find("a").stop == "" and states(queue, "a") == [CellStatus.RUNNING]


def test_an_unknown_job_is_named_with_those_there_are(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    queue.submit(request("a", 4))
    with pytest.raises(InputError, match=r"knows no job 'b'; there are: a"):
        queue.stop("b", "why not")


# --- budgets ---


def test_a_job_that_used_its_gpu_hours_stops_at_a_checkpoint(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4, 8, gpu_hours=1.0))
    [lease] = queue.leases()
    gpus = lease.gpus
    clock.now_s += 3600 / gpus - 1
    queue.decide()
    assert queue.leases()[0].stop_kind is None
    clock.now_s += 1
    queue = open_queue()
    queue.decide()
    reason = "used its budget of 1 GPU-hours"
    assert (queue.leases()[0].stop_kind, queue.leases()[0].stop_reason) == ("budget", reason)
    directives = queue.heartbeat("a", driver, [Release(lease.lease_id, CellStatus.CANCELLED, reason)])
    assert directives is not None and {why for _, why in directives.closed} == {reason} and len(directives.closed) == 2
    queue.finish("a", driver, 1)
    assert queue.find("a").state is JobState.FAILED


def test_a_job_without_a_driver_that_used_its_gpu_hours_is_over(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4, gpu_hours=1.0))
    clock.now_s += 3600
    queue.driver_lost("a", driver, "killed")
    queue.decide()
    job = queue.find("a")
    assert (job.state, job.reason) == (JobState.FAILED, "used its budget of 1 GPU-hours")


def test_a_job_that_used_its_hours_stops_and_has_them_anew_when_it_is_submitted_again(
    open_queue: Callable[..., Queue], clock: Clock
) -> None:
    """They begin with the first lease: waiting costs nothing."""
    queue = open_queue()
    other = start(queue, request("other", 4))
    job = replace(request("a", 4), hours=2.0)
    queue.submit(job)
    clock.now_s += 5 * 3600
    queue.heartbeat("other", other, [Release(leased(queue)["other-0"].lease_id, CellStatus.SUCCEEDED)])
    queue.decide()
    [started] = queue.drivers_to_start()
    queue.attach(driven(job), str(started.driver))
    queue = open_queue()
    clock.now_s += 2 * 3600 - 1
    queue.decide()
    assert queue.leases()[0].stop_kind is None
    clock.now_s += 1
    queue.decide()
    assert (queue.leases()[0].stop_kind, queue.leases()[0].stop_reason) == ("budget", "used its 2 hours")
    queue.driver_lost("a", str(started.driver), "killed")
    queue.decide()
    assert (queue.find("a").state, queue.find("a").reason) == (JobState.FAILED, "used its 2 hours")
    clock.now_s += 3600
    queue.submit(job)
    queue.decide()
    assert [one.stop_kind for one in queue.leases()] == [None]


# --- siblings ---


def test_the_same_cell_of_two_jobs_never_trains_twice_at_a_time(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    first = request("a", 2)
    second = replace(request("b", 2), cells=first.cells)
    queue.submit(first)
    queue.submit(second)
    queue.decide()  # both would fit
    assert [lease.key for lease in queue.leases()] == ["a/a-0"]
    assert queue.why_waiting("b") == "a trains the same cell"
    queue = open_queue()
    queue.decide()
    assert [lease.key for lease in queue.leases()] == ["a/a-0"]
    assert queue.why_waiting("b") == "a trains the same cell"
    [job] = queue.drivers_to_start()
    queue.attach(driven(first), job.driver or "")
    queue.heartbeat("a", job.driver or "", [Release(queue.leases()[0].lease_id, CellStatus.SUCCEEDED)])
    queue.decide()
    assert [lease.key for lease in queue.leases()] == ["b/a-0"]


def test_a_job_that_comes_while_its_cell_trains_for_another_waits(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    first = request("a", 2)
    start(queue, first)
    queue.submit(replace(request("b", 2), cells=first.cells))
    queue.decide()
    assert queue.why_waiting("b") == "a trains the same cell"
    queue.cancel("a", "ada asked")
    queue.decide()
    assert [lease.key for lease in queue.leases()] == ["b/a-0"]


def test_the_place_that_a_twin_cannot_use_goes_to_the_next(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    first = request("a", 4)
    queue.submit(first)
    queue.submit(replace(request("b", 4), cells=first.cells))
    queue.submit(request("c", 4, priority=-1))
    queue.decide()
    assert leased(queue).keys() == {"a-0", "c-0"}


def test_the_same_cell_in_another_storage_is_another_cell(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    first = request("a", 2)
    queue.submit(first)
    queue.submit(replace(request("b", 2), cells=first.cells, storage="/elsewhere"))
    queue.decide()
    assert len(queue.leases()) == 2


# --- preemption, and clusters that go away ---


def test_a_job_whose_driver_died_after_its_last_cell_gets_another_one_for_the_report(
    open_queue: Callable[..., Queue],
) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 4))
    queue.heartbeat("a", driver, [Release(leased(queue)["a-0"].lease_id, CellStatus.SUCCEEDED)])
    queue.driver_lost("a", driver, "killed")
    assert [job.driver for job in queue.drivers_to_start()] == ["a.2"]
    queue.finish("a", "a.2", 0)
    assert queue.find("a").state is JobState.SUCCEEDED


def test_a_job_that_was_cancelled_while_its_driver_started_stays_cancelled(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    queue.submit(request("a", 4))
    queue.decide()
    (job,) = queue.drivers_to_start()
    queue.cancel("a", "no longer wanted")
    with pytest.raises(InputError, match=r"a is over \(no longer wanted\); submit it again"):
        queue.attach(request("a", 4), str(job.driver))
    assert queue.find("a").state is JobState.CANCELLED


def test_a_job_that_still_stops_is_not_submitted_in_vain(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    start(queue, request("a", 4))
    queue.stop("a", "stopped by ada")
    with pytest.raises(InputError, match="still stopping"):
        queue.submit(request("a", 4))


def test_the_time_that_a_cluster_was_down_is_charged_to_nobody(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    queue.see_cluster("one")
    start(queue, request("a", 4, gpu_hours=1.0))
    clock.now_s += 600
    queue.decide()
    clock.now_s += 60 * 3600
    queue = open_queue()
    queue.see_cluster("another")
    queue.decide()
    assert queue.find("a").state is JobState.QUEUED, "it used 40 GPU-minutes of its hour"
    assert [lease.job_id for lease in queue.leases()] == ["a"]


def test_a_priority_that_no_database_holds_is_refused(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    with pytest.raises(InputError, match="priority 9223372036854775808 is too large"):
        queue.submit(request("a", 4, priority=2**63))
    assert queue.submit(request("b", 4)).state is JobState.QUEUED


def test_cells_whose_speed_is_measured_train_one_at_a_time(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    queue.attach(request("speed", 1, 1, 1, in_turn=True, code=None), "driver")
    for name in ("speed-0", "speed-1", "speed-2"):
        queue.decide()
        (lease,) = queue.leases()
        assert lease.cell_id == name
        if name == "speed-0":
            assert queue.why_waiting("speed") == "speed-0 goes first"
            queue.heartbeat("speed", "driver", [Release(lease.lease_id, CellStatus.QUEUED, "a worker died")])
            queue.decide()
            (lease,) = queue.leases()
            assert lease.cell_id == name
        queue.heartbeat("speed", "driver", [Release(lease.lease_id, CellStatus.SUCCEEDED)])
    queue.decide()
    assert queue.leases() == []


def test_a_preempted_cell_keeps_its_age_and_its_progress(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    driver = start(queue, request("a", 8))
    waited_s = clock.now_s - only_cell(queue, "a").queued_s
    clock.now_s += 30
    queue.submit(request("b", 8, owner="bob", priority=5))
    queue.decide()
    directives = queue.heartbeat("a", driver)
    assert (
        directives is not None
        and directives.leases[0].stop_kind == "preempted"
        and "b/b-0" in directives.leases[0].stop_reason
    )
    clock.now_s += 4  # its checkpoint
    queue.heartbeat("a", driver, [Release(directives.leases[0].lease_id, CellStatus.PREEMPTED, "for b")])
    cell = only_cell(queue, "a")
    assert cell.state is CellStatus.PREEMPTED
    assert cell.predicted_s == pytest.approx(70.0)  # of 100, 30 are done
    assert clock.now_s - cell.queued_s == waited_s
    queue = open_queue()
    queue.decide()
    assert leased(queue).keys() == {"b-0"} and queue.why_waiting("a")


def test_a_cell_like_one_that_was_measured_is_predicted_from_it(open_queue: Callable[..., Queue], clock: Clock) -> None:
    queue = open_queue()
    job = request("a", 4, 4)
    cells = tuple(replace(cell, likeness="alike") for cell in job.cells)
    driver = start(queue, replace(job, cells=cells))
    clock.now_s += 20
    queue.heartbeat("a", driver, [Release(leased(queue)["a-0"].lease_id, CellStatus.SUCCEEDED)])
    queue = open_queue()
    queue.submit(request("b", cells=(replace(cells[0], cell_id="b-0"),)))
    assert only_cell(queue, "b").predicted_s == pytest.approx(1.1 * 20)


def test_another_cluster_voids_every_lease_and_drivers_start_anew(
    open_queue: Callable[..., Queue], clock: Clock
) -> None:
    queue = open_queue()
    queue.see_cluster("first")
    start(queue, request("a", 4))
    queue.attach(request("own", 2, code=None), "host:1")
    queue.submit(request("granted", 2))
    queue.decide()
    before = observed(queue)
    queue = open_queue()
    queue.see_cluster("first")  # the dispatcher alone was started again
    assert observed(queue)[:3] == before[:3]
    queue.see_cluster("second")
    assert not queue.leases()
    assert [queue.find(job).state for job in ("a", "own", "granted")] == [
        JobState.QUEUED,
        JobState.INTERRUPTED,
        JobState.QUEUED,
    ]
    queue.decide()
    assert [job.job_id for job in queue.drivers_to_start()] == ["a", "granted"]


def test_what_cannot_be_stored_is_not_answered(store_url: str, clock: Clock) -> None:
    store = Store(store_url)
    queue = Queue(store, RULES, clock)
    queue.see_nodes(NODES, NODES)
    store.close()
    with pytest.raises(Exception, match="closed"):
        queue.submit(request("a", 4))


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
            queue.heartbeat(job_id, "driver", [Release(lease_id, status)])
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


# --- elastic cells ---


def elastic(job_id: str, *worlds: int) -> JobRequest:
    cell = CellRequest(f"{job_id}-0", Demand(worlds[0], worlds=worlds), 100.0, job_id)
    return replace(request(job_id), cells=(cell,))


def test_an_elastic_cell_gets_the_most_workers_that_the_nodes_can_hold(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    start(queue, elastic("a", 16, 8, 4, 2))
    assert sum(workers for _, workers in leased(queue)["a-0"].placement) == 8
    assert leased(queue)["a-0"].gpus == 8
    assert only_cell(queue, "a").workers == 8


def test_an_elastic_cell_waits_for_busy_nodes_rather_than_train_on_few(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    start(queue, request("a", 4))
    queue.submit(elastic("b", 8, 4, 2))
    queue.decide()
    assert "b-0" not in leased(queue), "what the nodes can hold counts, not what happens to be free"


def test_after_a_node_is_lost_an_elastic_cell_goes_on_with_fewer_and_then_with_more(
    open_queue: Callable[..., Queue],
) -> None:
    queue = open_queue()
    driver = start(queue, elastic("a", 8, 4, 2))
    queue.see_nodes(NODES[:1], NODES)
    lost = Release(leased(queue)["a-0"].lease_id, CellStatus.QUEUED, "node lost")
    assert queue.heartbeat_and_decide("a", driver, [lost]) is not None
    assert leased(queue)["a-0"].placement == (("n0", 4),)
    assert queue.events("a")[-2].text == "asks for 4 of at most 8 workers: what the nodes can hold"

    queue = open_queue()
    assert only_cell(queue, "a").worlds == (8, 4, 2), "the store knows that it is elastic"
    back = Release(leased(queue)["a-0"].lease_id, CellStatus.QUEUED, "worker died")
    queue.heartbeat_and_decide("a", driver, [back])
    assert leased(queue)["a-0"].placement == (("n0", 4), ("n1", 4))


def test_an_elastic_cell_is_refused_only_where_its_fewest_workers_never_fit(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    queue.submit(elastic("a", 64, 8))
    with pytest.raises(InputError, match="never fits"):
        queue.submit(elastic("b", 64, 32))


def test_nodes_are_asked_for_the_most_workers_that_the_cluster_may_grow_to(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue()
    queue.see_nodes((), NODES)
    queue.submit(elastic("a", 16, 8, 4))
    queue.decide()
    assert [demand.workers for demand in queue.demands()] == [8]


def test_an_elastic_cell_stays_within_its_owners_quota(open_queue: Callable[..., Queue]) -> None:
    queue = open_queue(replace(RULES, owners={"ada": OwnerRules(gpu_quota=5)}))
    start(queue, elastic("a", 8, 4, 2))
    assert leased(queue)["a-0"].gpus == 4
