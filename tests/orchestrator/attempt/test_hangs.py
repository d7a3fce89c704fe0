"""A rank that hangs on real Ray Train workers is named and ended, and its cell goes on as if nothing had been."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from small_jobs import curve, make_job

from orchestrator.attempt import watch
from orchestrator.attempt.failure import Failure
from orchestrator.attempt.gangs import Gangs
from orchestrator.attempt.taxonomy import Cause
from orchestrator.attempt.watch import find_hang, limit_s
from orchestrator.cell_job import CellJob
from orchestrator.faults import parse_faults
from orchestrator.layout import CellFolder
from orchestrator.results import read_json
from orchestrator.training.pulse import Pulse

LIMIT_S = 5.0  # for a step that takes milliseconds
BUSY_S = 300.0  # what processes may take to start and to end on a busy machine


@pytest.fixture(scope="module")
def gangs(local_ray: None) -> Iterator[Gangs]:
    with Gangs() as opened:
        yield opened


def job_of(folder: Path, steps: int = 6, fault: str = "") -> CellJob:
    job = make_job(folder, workers=2, budget={"kind": "steps", "amount": steps}, checkpoint={"every": 2 / steps})
    return replace(job, hang_timeout_s=LIMIT_S, faults=parse_faults(fault))


def attempt(gangs: Gangs, job: CellJob) -> Failure | None:
    return gangs.run_attempt(job, job.cell.placement)


def test_a_rank_that_hangs_is_named_with_its_step_and_the_next_attempt_ends_like_an_undisturbed_one(
    tmp_path: Path, gangs: Gangs
) -> None:
    job = job_of(tmp_path / "hung", fault="hang@rank1:step3")
    undisturbed = replace(job_of(tmp_path / "undisturbed"), hang_timeout_s=None)
    failure = attempt(gangs, job)

    assert failure is not None
    assert (failure.kind, failure.cause, failure.rank, failure.step) == ("HangError", Cause.HANG, 1, 3)
    assert failure.retriable and failure.is_charged
    assert failure.account.startswith("HangError on rank 1 at step 3: no progress for ")
    assert "in a step; at " in failure.account and "faults.py:" in failure.account
    stacks = [CellFolder(job.folder).stack(1, rank).read_text() for rank in (0, 1)]
    assert all(", step, step 3, no progress for " in stack and "run_cell" in stack for stack in stacks)
    assert "torch/distributed" in stacks[0] and "orchestrator/faults.py" in stacks[1]

    assert attempt(gangs, replace(job, attempt=2, hang_timeout_s=None)) is None
    assert attempt(gangs, undisturbed) is None
    assert curve(job) == curve(undisturbed)
    assert curve(job, "grad_norm") == curve(undisturbed, "grad_norm")


def test_a_stopped_process_is_named_by_the_ranks_that_wait_for_it_and_does_not_outlive_its_gang(
    tmp_path: Path, gangs: Gangs
) -> None:
    job = job_of(tmp_path / "stopped", steps=5000)
    came_to: list[Failure | None] = []
    thread = threading.Thread(target=lambda: came_to.append(attempt(gangs, job)))
    thread.start()
    limit = time.monotonic() + BUSY_S
    while not (job.spool_folder.exists() and len(curve(job)) > 2):
        assert time.monotonic() < limit
        time.sleep(0.02)
    pid = read_json(CellFolder(job.folder).worker(1))["pid"]
    os.kill(pid, signal.SIGSTOP)
    thread.join(BUSY_S)

    (failure,) = came_to
    assert failure is not None
    assert (failure.kind, failure.cause, failure.rank) == ("HangError", Cause.HANG, 1)
    assert failure.message.startswith(f"rank 1 (pid {pid} on ")
    assert "does not answer" in failure.message
    assert failure.step is not None and failure.step > 2
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < limit
        time.sleep(0.02)


def beat(pulse: Pulse, steps: int) -> None:
    for step in range(1, steps + 1):
        pulse.begin_step(step)


def test_before_the_second_step_and_between_steps_a_rank_may_take_long() -> None:
    pulse = Pulse()
    assert limit_s(pulse, 1.0) == watch.OUTSIDE_S
    beat(pulse, 1)
    assert limit_s(pulse, 1.0) == watch.OUTSIDE_S, "the first step may compile"
    beat(pulse, 2)
    assert limit_s(pulse, 1.0) == 1.0
    pulse.rest("checkpointing")
    assert limit_s(pulse, 1.0) == watch.OUTSIDE_S


def test_the_usual_limit_is_two_minutes_or_twenty_times_the_slowest_recent_step() -> None:
    pulse = Pulse()
    beat(pulse, 3)
    assert limit_s(pulse, None) == 120.0
    pulse.step_times_s.append(30.0)
    assert limit_s(pulse, None) == 600.0
    beat(pulse, 30)
    assert limit_s(pulse, None) == 120.0, "that step is long ago"


def test_a_pulse_that_stands_still_is_seen_and_one_that_goes_on_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    over, pulse = threading.Event(), Pulse()
    beat(pulse, 2)
    assert find_hang(pulse, 0.05, over) == pytest.approx(0.06)

    class Lively(Pulse):
        """Makes a step at each look, and the last of them ends the watch."""

        @property
        def is_in_a_step(self) -> bool:
            self.begin_step((self.step or 0) + 1)
            if self.step == 50:
                over.set()
            return True

    assert find_hang(Lively(), 0.02, over) is None
