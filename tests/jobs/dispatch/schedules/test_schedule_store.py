"""Schedules in a database: firings survive crashes and restarts, and happen once.

Over 300 lines: the crashes of one state machine, each at another place.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import StaticPool
from test_rule import HOUR, at

from jobs.dispatch.schedules.rule import FiringState
from jobs.dispatch.schedules.store import ScheduleStore, StoredSchedule
from jobs.queue.store import Store
from orchestrator.errors import ClusterError, InputError

TEMPLATE = {"spec": "specs/nightly.yaml", "owner": "ada", "priority": 1, "plugins": []}
NOON, NIGHT = at("2026-11-20T12:00Z"), at("2026-11-21T02:00Z")


class CrashError(Exception):
    """The process dies here."""


@dataclass
class Queue:
    """A queue that knows its jobs by occurrence, as the real one does; `crash` says where the submitter dies."""

    jobs: list[str] = field(default_factory=list)  # as submitted, in order
    calls: list[str] = field(default_factory=list)
    over: set[str] = field(default_factory=set)
    templates: list[dict[str, Any]] = field(default_factory=list)
    crash: str = ""  # before or after the job is stored

    def submit(self, clock: StoredSchedule, occurrence: str) -> None:
        self.calls.append(occurrence)
        self.templates.append(clock.template)
        if self.crash == "before":
            raise CrashError
        if occurrence not in self.jobs:
            self.jobs.append(occurrence)
        if self.crash == "after":
            raise CrashError

    def is_active(self, occurrence: str) -> bool:
        return occurrence in self.jobs and occurrence not in self.over


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    store = Store(f"sqlite:///{tmp_path / 'queue.db'}")
    yield store.engine
    store.close()


@pytest.fixture
def clocks(engine: Engine) -> ScheduleStore:
    clocks = ScheduleStore(engine)
    clocks.add("nightly", TEMPLATE, "0 2 * * *", "UTC", NOON)
    return clocks


def states(clocks: ScheduleStore, name: str = "nightly") -> list[tuple[str, FiringState]]:
    return [(firing.occurrence.removeprefix(f"{name}/"), firing.state) for firing in clocks.history(name)]


def tick(clocks: ScheduleStore, now_s: float, queue: Queue) -> None:
    clocks.tick(now_s, queue.submit, queue.is_active)


def test_a_tick_is_submitted_once_with_its_template(clocks: ScheduleStore) -> None:
    queue = Queue()
    for now_s in (NIGHT - 1, NIGHT + 1, NIGHT + 2, NIGHT + HOUR):
        tick(clocks, now_s, queue)
    assert queue.calls == ["nightly/2026-11-21T02:00Z"]
    assert queue.templates == [TEMPLATE]
    assert states(clocks) == [("2026-11-21T02:00Z", FiringState.FIRED)]


def test_a_restarted_scheduler_knows_its_schedules_and_what_it_fired(engine: Engine, clocks: ScheduleStore) -> None:
    queue = Queue()
    tick(clocks, NIGHT, queue)
    restarted = ScheduleStore(engine)
    assert restarted.all() == clocks.all()
    tick(restarted, NIGHT + 60, queue)
    assert len(queue.calls) == 1


def test_a_scheduler_that_was_down_over_a_tick_submits_it_when_it_is_back(
    engine: Engine, clocks: ScheduleStore
) -> None:
    queue = Queue()
    tick(ScheduleStore(engine), NIGHT + 59 * 60, queue)
    assert queue.jobs == ["nightly/2026-11-21T02:00Z"]


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_crash_around_the_submission_neither_loses_nor_doubles_the_firing(
    engine: Engine, clocks: ScheduleStore, where: str
) -> None:
    queue = Queue(crash=where)
    with pytest.raises(ExceptionGroup):
        tick(clocks, NIGHT, queue)
    assert states(clocks) == [("2026-11-21T02:00Z", FiringState.FIRING)]
    queue.crash = ""
    tick(ScheduleStore(engine), NIGHT + 2 * HOUR, queue)  # beyond the grace: it was decided in time
    assert queue.jobs == ["nightly/2026-11-21T02:00Z"]
    assert states(clocks) == [("2026-11-21T02:00Z", FiringState.FIRED)]


DYING = """
import os, sys
from pathlib import Path
from jobs.dispatch.schedules.store import ScheduleStore
from jobs.queue.store import Store

def die(clock, occurrence):
    if sys.argv[2] == "after":
        Path(sys.argv[3]).write_text(occurrence)
    os.kill(os.getpid(), 9)

clocks = ScheduleStore(Store(sys.argv[1]).engine)
clocks.add("nightly", {}, "0 2 * * *", "UTC", float(sys.argv[4]))
clocks.tick(float(sys.argv[5]), die, lambda occurrence: False)
"""


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_process_killed_while_it_submits_leaves_the_firing_to_the_next_one(tmp_path: Path, where: str) -> None:
    url, submitted = f"sqlite:///{tmp_path / 'queue.db'}", tmp_path / "submitted"
    words = [sys.executable, "-c", DYING, url, where, str(submitted), str(NOON), str(NIGHT)]
    assert subprocess.run(words, check=False, timeout=120).returncode == -signal.SIGKILL
    queue = Queue(jobs=[submitted.read_text()] if submitted.exists() else [])
    store = Store(url)
    tick(ScheduleStore(store.engine), NIGHT + 2 * HOUR, queue)
    assert queue.jobs == queue.calls == ["nightly/2026-11-21T02:00Z"]
    store.close()


def test_a_firing_that_is_owed_counts_as_under_way(engine: Engine, clocks: ScheduleStore) -> None:
    queue = Queue(crash="before")
    with pytest.raises(ExceptionGroup):
        tick(clocks, NIGHT, queue)
    queue.crash = ""
    tick(ScheduleStore(engine), NIGHT + 24 * HOUR, queue)
    assert queue.jobs == ["nightly/2026-11-21T02:00Z"]
    assert states(clocks)[1] == ("2026-11-22T02:00Z", FiringState.OVERLAPPED)


def test_a_job_under_way_holds_the_next_tick_back_and_one_that_ended_does_not(clocks: ScheduleStore) -> None:
    queue = Queue()
    for day in range(2):
        tick(clocks, NIGHT + day * 24 * HOUR, queue)
    queue.over.add("nightly/2026-11-21T02:00Z")
    tick(clocks, NIGHT + 2 * 24 * HOUR, queue)
    assert states(clocks) == [
        ("2026-11-21T02:00Z", FiringState.OVER),
        ("2026-11-22T02:00Z", FiringState.OVERLAPPED),
        ("2026-11-23T02:00Z", FiringState.FIRED),
    ]


def test_a_clock_set_back_one_hour_submits_nothing_twice(clocks: ScheduleStore) -> None:
    queue = Queue()
    for now_s in (NIGHT + 600, NIGHT - 3000, NIGHT, NIGHT + 600):
        tick(clocks, now_s, queue)
    assert len(queue.calls) == 1


def test_a_job_that_the_queue_refuses_is_recorded_and_not_tried_again(clocks: ScheduleStore) -> None:
    def refuse(clock: StoredSchedule, occurrence: str) -> None:
        raise InputError("specs/nightly.yaml is gone; add the schedule again")

    clocks.tick(NIGHT, refuse, Queue().is_active)
    [firing] = clocks.history("nightly")
    assert (firing.state, firing.reason) == (FiringState.FAILED, "specs/nightly.yaml is gone; add the schedule again")
    queue = Queue()
    tick(clocks, NIGHT + 60, queue)
    assert not queue.calls


def test_a_schedule_that_cannot_fire_now_keeps_no_other_from_firing(clocks: ScheduleStore) -> None:
    clocks.add("a-first", {}, "0 2 * * *", "UTC", NOON)
    queue = Queue()

    def submit(clock: StoredSchedule, occurrence: str) -> None:
        if clock.schedule.name == "a-first":
            raise ClusterError("the head does not answer")
        queue.submit(clock, occurrence)

    with pytest.raises(ExceptionGroup) as caught:
        clocks.tick(NIGHT, submit, queue.is_active)
    assert [str(one) for one in caught.value.exceptions] == ["the head does not answer"]
    assert queue.jobs == ["nightly/2026-11-21T02:00Z"]
    tick(clocks, NIGHT + 60, queue)
    assert queue.jobs == ["nightly/2026-11-21T02:00Z", "a-first/2026-11-21T02:00Z"]


def test_what_falls_into_a_pause_is_recorded_and_never_fires(clocks: ScheduleStore) -> None:
    queue = Queue()
    assert clocks.pause("nightly").schedule.paused
    tick(clocks, NIGHT + 60, queue)
    clocks.pause("nightly")
    assert not clocks.resume("nightly", NIGHT + 25 * HOUR).schedule.paused
    clocks.resume("nightly", NIGHT + 26 * HOUR)
    tick(clocks, NIGHT + 26 * HOUR, queue)
    assert not queue.calls
    [firing] = clocks.history("nightly")
    assert (firing.state, firing.number, firing.first_s, firing.tick_s) == (
        FiringState.PAUSED, 2, NIGHT, NIGHT + 24 * HOUR,
    )  # fmt: skip
    tick(clocks, NIGHT + 48 * HOUR, queue)
    assert queue.calls == ["nightly/2026-11-23T02:00Z"]


def test_resuming_after_the_clock_was_far_ahead_starts_from_now_and_repeats_nothing(clocks: ScheduleStore) -> None:
    queue = Queue()
    tick(clocks, NIGHT, queue)
    tick(clocks, NIGHT + 365 * 24 * HOUR, queue)
    queue.over.update(queue.jobs)
    tick(clocks, NIGHT + 24 * HOUR, queue)  # corrected: nothing fires until the schedule is told
    assert "nightly/2026-11-22T02:00Z" not in queue.jobs
    clocks.pause("nightly")
    clocks.resume("nightly", NIGHT - 60)  # even before what already fired
    for day in range(2):
        tick(clocks, NIGHT + day * 24 * HOUR, queue)
    assert len(queue.calls) == len(set(queue.calls))
    assert "nightly/2026-11-22T02:00Z" in queue.jobs


def test_run_now_fires_though_paused_and_under_way_and_beside_the_tick_of_that_minute(clocks: ScheduleStore) -> None:
    queue = Queue()
    clocks.pause("nightly")
    assert clocks.run_now("nightly", NIGHT - 30) == clocks.run_now("nightly", NIGHT - 29.5)
    tick(clocks, NIGHT - 29, queue)
    clocks.run_now("nightly", NIGHT)
    tick(clocks, NIGHT, queue)
    assert queue.jobs == ["nightly/2026-11-21T01:59:30Z", "nightly/2026-11-21T02:00:00Z"]
    assert clocks.history("nightly")[0].reason == "asked for by a person"


def test_adding_the_same_schedule_again_changes_nothing_and_another_of_its_name_is_refused(
    clocks: ScheduleStore,
) -> None:
    tick(clocks, NIGHT, Queue())
    known = clocks.show("nightly")
    assert clocks.add("nightly", dict(TEMPLATE), "0  2 * * *", "UTC", NIGHT + 5) == known
    for template, cron in ((TEMPLATE, "0 3 * * *"), ({}, "0 2 * * *")):
        with pytest.raises(InputError, match=r"there is a schedule 'nightly' already, and it differs; remove it first"):
            clocks.add("nightly", template, cron, "UTC", NIGHT + 5)
    assert clocks.show("nightly") == known


def test_a_removed_schedule_fires_no_more(clocks: ScheduleStore) -> None:
    clocks.run_now("nightly", NIGHT - 60)
    clocks.remove("nightly")
    queue = Queue()
    tick(clocks, NIGHT, queue)
    assert not queue.calls
    clocks.add("nightly", {}, "0 4 * * *", "UTC", NIGHT)
    assert clocks.history("nightly") == []


@pytest.mark.parametrize("verb", ["show", "pause", "remove", "history"])
def test_a_name_that_does_not_exist_is_answered_with_those_that_do(clocks: ScheduleStore, verb: str) -> None:
    with pytest.raises(InputError, match=r"no schedule 'nighty'; there are: nightly"):
        getattr(clocks, verb)("nighty")
    for needs_time in (clocks.resume, clocks.run_now):
        with pytest.raises(InputError, match=r"no schedule 'nighty'; there are: nightly"):
            needs_time("nighty", NIGHT)
    clocks.remove("nightly")
    with pytest.raises(InputError, match=r"there is none yet"):
        clocks.show("nightly")


def test_history_shows_the_latest_oldest_first(clocks: ScheduleStore) -> None:
    queue = Queue()
    for day in range(5):
        queue.over.update(queue.jobs)
        tick(clocks, NIGHT + day * 24 * HOUR, queue)
    assert [one.occurrence[-6:] for one in clocks.history("nightly", limit=2)] == ["02:00Z", "02:00Z"]
    assert clocks.history("nightly", limit=2) == clocks.history("nightly")[3:]


STEPS = st.tuples(st.integers(-2 * HOUR, 5 * HOUR), st.sampled_from(["", "", "before", "after"]), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=25), st.sampled_from(["skip", "queue"]))
def test_with_any_clock_and_any_crashes_every_decided_firing_becomes_one_job(steps: Any, overlap: str) -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    ScheduleStore(engine).add("often", {}, "*/40 * * * *", "Europe/Berlin", at("2026-10-24T22:00Z"), overlap=overlap)
    queue, now_s = Queue(), at("2026-10-24T22:00Z")
    for step_s, crash, ends in steps:
        now_s, queue.crash = now_s + step_s, crash
        if ends:
            queue.over.update(queue.jobs)
        try:
            tick(ScheduleStore(engine), now_s, queue)
        except* CrashError:
            pass
    queue.crash = ""
    tick(ScheduleStore(engine), now_s, queue)
    firings = ScheduleStore(engine).history("often", limit=1000)
    submitted = [one.occurrence for one in firings if one.state in (FiringState.FIRED, FiringState.OVER)]
    assert sorted(queue.jobs) == sorted(submitted)
    assert len(queue.jobs) == len(set(queue.jobs))
    assert not any(one.state is FiringState.FIRING for one in firings)
    engine.dispose()
