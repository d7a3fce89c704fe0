"""A store that the dispatcher of 0.1.0 wrote before its rooms were parted opens, and everything in it goes on.

`stored/` has the SQL of both databases: a job that is done, one that gives way to an urgent one, one that was stopped
while it waited, and two schedules, one of them paused.
"""

import sqlite3
from pathlib import Path

import pytest

from jobs.dispatch.schedules.rule import FiringState
from jobs.dispatch.schedules.store import ScheduleStore
from jobs.queue.gangs import Node
from jobs.queue.model import Settings
from jobs.queue.queue import Queue
from jobs.queue.rows import JobState, Release
from jobs.queue.store import Store, sibling_engine
from orchestrator.results import CellStatus

STORED = Path(__file__).parent / "stored"
NOW_S = 1_790_000_700.0
NODES = [Node("node-a", 0, 4, 16, None)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    for name in ("queue", "schedules"):
        with sqlite3.connect(tmp_path / f"{name}.db") as connection:
            connection.executescript((STORED / f"{name}.sql").read_text("utf-8"))
    return f"sqlite:///{tmp_path / 'queue.db'}"


def test_jobs_cells_leases_and_events_are_there_and_go_on(url: str) -> None:
    queue = Queue(Store(url), Settings(), lambda: NOW_S)
    states = {job.job_id: job.state for job in queue.jobs()}
    assert states == {
        "done": JobState.SUCCEEDED,
        "low": JobState.RUNNING,
        "urgent": JobState.RUNNING,
        "later": JobState.CANCELLED,
    }
    cells = {cell.cell_id: cell.state for job_id in states for cell in queue.cells(job_id)}
    assert cells["low-0"] is CellStatus.PREEMPTED and cells["done-0"] is CellStatus.SUCCEEDED
    held = {lease.cell_id: lease for lease in queue.leases()}
    assert held.keys() == {"low-1", "urgent-0"}
    assert held["low-1"].is_preempted and not held["urgent-0"].is_preempted
    assert [event.kind for event in queue.events("done")][-1] == "ended"
    assert queue.find("low").hours == 10.0 and queue.find("urgent").priority == 10

    queue.see_cluster("cluster-1")
    queue.see_nodes(NODES, NODES)
    queue.heartbeat("low", "low.1", [Release(held["low-1"].lease_id, CellStatus.PREEMPTED)])
    queue.decide()
    assert {lease.cell_id for lease in queue.leases()} == {"urgent-0", "urgent-1"}


def test_schedules_and_their_firings_are_there_and_go_on(url: str) -> None:
    schedules = ScheduleStore(sibling_engine(url, "schedules"))
    assert [stored.schedule.name for stored in schedules.all()] == ["nightly", "off"]
    assert schedules.show("off").schedule.paused
    assert schedules.show("nightly").template["spec"] == "compare.yaml"
    assert [firing.state for firing in schedules.history("nightly")] == [FiringState.MISSED]
    fired: list[str] = []
    tick_s = schedules.history("nightly")[0].tick_s + 86_400
    schedules.tick(tick_s + 10.0, lambda stored, occurrence: fired.append(occurrence), lambda occurrence: False)
    assert len(fired) == 1 and fired[0].startswith("nightly/")
