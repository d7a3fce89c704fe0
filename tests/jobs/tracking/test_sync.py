"""`sync` against storages whose drivers are gone, alive or killed here: what MLflow has afterwards, and how often.

Drivers are processes that track and spool as a launch does, without training anything.
Over 300 lines: every way in which a driver can end needs the same drivers.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import driver_process
import pytest
from driver_process import spool_steps
from mlflow import MlflowClient
from product import free_port, histories, run_of, tracked_runs, wait_for, write_job
from rich.console import Console

from jobs.queue.rows import JobRow, JobState
from jobs.tracking.reconciler import FIRST_BACKOFF_S, Reconciler
from jobs.tracking.runs import Tracking
from jobs.tracking.sync import Outcome, sync
from orchestrator.cell_job import ExportRequest
from orchestrator.errors import InputError
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Plan, load_plan
from orchestrator.results import CellResult, CellStatus, Measurement, save_cell_result
from orchestrator.tracking.sender import driver_of
from orchestrator.tracking.spool import read_spool

STEPS = 70  # more than one batch of the writer
RESULT = CellResult("", "tiny-llama2", 0, CellStatus.SUCCEEDED, attempts=1)
MEASURED = Measurement({"val_bits_per_byte": 2.5, "examples": 9.0}, [], {"kernel": "eager"}, {}, "items.jsonl")


@pytest.fixture
def plan(tmp_path: Path, uri: str) -> Plan:
    """A comparison of two cells that nobody ran yet."""
    return load_plan(write_job(tmp_path, tracking__uri=uri, seeds=[0, 1]).spec)


@contextmanager
def driver(spec: Path) -> Iterator[None]:
    """A driver from its first word on; it is killed at the end."""
    command = [sys.executable, driver_process.__file__, str(spec), str(STEPS)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """What a driver of two cells left when it was killed: its storage, and an MLflow that believes it runs."""
    folder = tmp_path_factory.mktemp("killed")
    shutil.copy(empty_database, folder / "mlflow.db")
    job = write_job(folder, tracking__uri=f"sqlite:///{folder / 'mlflow.db'}", seeds=[0, 1])
    with driver(job.spec):
        pass
    return folder


@pytest.fixture
def dead(killed: Path, tmp_path: Path) -> Plan:
    """The same with paths of the test's own."""
    folder = tmp_path / "dead"
    shutil.copytree(killed, folder)
    for file in (folder / "compare.yaml", *folder.glob("storage/*/tracking/*.json")):
        file.write_text(file.read_text().replace(str(killed), str(folder)))
    return load_plan(folder / "compare.yaml")


def run_sync(plan: Plan, *job_ids: str, storage: Path | None = None, limit_s: float = 60.0) -> Outcome:
    return sync(storage or plan.storage, job_ids or None, limit_s, Console(quiet=True))


def finish_cell(plan: Plan, number: int = 0, **changes: Any) -> None:
    cell = plan.cells[number]
    result = replace(RESULT, cell_id=cell.cell_id, seed=cell.seed, folder=str(plan.cell_folder(cell)), **changes)
    save_cell_result(plan.cell_folder(cell), result)


def finish_job(plan: Plan) -> None:
    """The same command once more: its driver lives until everything is sent."""
    with driver_of(plan.folder):
        tracking = Tracking(plan, "backbone compare", None)
        tracking.start()
        spool_steps(plan, STEPS + 1, STEPS + 5)
        for cell in plan.cells:
            folder = str(plan.cell_folder(cell))
            tracking.finish_child(replace(RESULT, cell_id=cell.cell_id, attempts=2, folder=folder))
        tracking.finish_parent({}, "a tie", [], (), "FINISHED")
        assert tracking.close(60) == []


def first(plan: Plan) -> Any:
    """The run of the first cell."""
    return run_of(plan.tracking_uri, plan.cells[0].cell_id)


def steps_of(plan: Plan) -> list[int]:
    return [step for step, _ in histories(plan.tracking_uri, plan.cells[0].cell_id, ["loss"])["loss"]]


def everything(plan: Plan) -> list[Any]:
    """All that MLflow has, in an order that does not change."""
    runs = sorted(tracked_runs(plan.tracking_uri), key=lambda run: run.info.run_id)
    points = histories(plan.tracking_uri, plan.cells[0].cell_id)
    return [*[(run.info.to_proto(), run.data.to_dictionary()) for run in runs], points]


def test_the_runs_of_a_killed_driver_end_as_killed_with_every_step_once(dead: Plan) -> None:
    outcome = run_sync(dead)

    assert outcome.exit_code == 0
    assert {run.info.status for run in tracked_runs(dead.tracking_uri)} == {"KILLED"}
    assert steps_of(dead) == list(range(1, STEPS + 1))
    run = first(dead)
    last_ms = max(entry.time_ms for entry in read_spool(CellFolder(dead.cell_folder(dead.cells[0])).spool))
    assert run.data.tags["ended_because"] == "its driver died"
    assert run.data.tags["ended_noticed"].startswith("20")
    assert run.info.end_time == last_ms


def test_the_same_command_continues_the_runs_that_a_sync_ended(dead: Plan) -> None:
    run_sync(dead)
    run_id = first(dead).info.run_id

    finish_job(dead)

    assert {run.info.status for run in tracked_runs(dead.tracking_uri)} == {"FINISHED"}
    assert len(tracked_runs(dead.tracking_uri)) == 3
    assert first(dead).info.run_id == run_id
    assert not {"ended_because", "ended_noticed"} & first(dead).data.tags.keys()
    assert steps_of(dead) == list(range(1, STEPS + 6))
    assert run_sync(dead).jobs[0].is_in_order


def test_a_second_sync_changes_nothing(dead: Plan) -> None:
    run_sync(dead)
    before = everything(dead)
    again = run_sync(dead)

    assert again.jobs[0].is_in_order
    assert everything(dead) == before


def test_a_sync_that_was_killed_before_it_noted_anything_sends_the_same_again(dead: Plan) -> None:
    states = {file: file.read_text() for file in dead.files.tracking.glob("*.json") if ".run." not in file.name}
    run_sync(dead)
    before = everything(dead)
    for file, text in states.items():
        file.write_text(text)
    run_sync(dead)

    assert everything(dead) == before


def test_the_runs_of_a_living_driver_are_left_alone(plan: Plan) -> None:
    with driver(Path(plan.source.file)):
        outcome = run_sync(plan)
        status = first(plan).info.status

    assert outcome.jobs[0].is_live
    assert outcome.exit_code == 0
    assert status == "RUNNING"
    assert not plan.files.synced.exists()


def test_a_finished_cell_whose_status_was_never_sent_is_finished(dead: Plan) -> None:
    finish_cell(dead, measurement=MEASURED)
    run_sync(dead)

    run = first(dead)
    assert (run.info.status, run.data.tags["cell_status"]) == ("FINISHED", "SUCCEEDED")
    assert run.data.metrics["examples"] == 9.0
    assert "ended_because" not in run.data.tags
    assert run_of(dead.tracking_uri, "all").info.status == "KILLED"
    assert run_of(dead.tracking_uri, dead.cells[1].cell_id).info.status == "KILLED"


def test_a_failed_cell_says_why_also_when_its_driver_died_later(dead: Plan) -> None:
    finish_cell(dead, status=CellStatus.FAILED, failure="4 failures")
    run_sync(dead)

    assert (first(dead).info.status, first(dead).data.tags["failure"]) == ("FAILED", "4 failures")


def test_a_result_from_before_the_attempt_that_died_is_not_its_outcome(dead: Plan) -> None:
    finish_cell(dead, status=CellStatus.FAILED, failure="long ago", attempts=0)
    run_sync(dead)

    assert first(dead).info.status == "KILLED"


def test_a_run_ended_too_early_follows_its_cell_when_another_job_finishes_it(dead: Plan) -> None:
    run_sync(dead)
    finish_cell(dead, attempts=2)
    run_sync(dead)

    assert first(dead).info.status == "FINISHED"
    assert "ended_because" not in first(dead).data.tags


def test_what_a_driver_could_never_send_arrives_with_the_first_sync_that_can(
    tmp_path: Path, empty_database: Path
) -> None:
    """A file stands where the database's folder should be: nothing answers until it is gone."""
    database = tmp_path / "tracking-server" / "mlflow.db"
    database.parent.touch()
    plan = load_plan(write_job(tmp_path, tracking__uri=f"sqlite:///{database}").spec)
    with driver_of(plan.folder):
        tracking = Tracking(plan, "backbone compare", None)
        tracking.start()
        spool_steps(plan, 1, STEPS)
        finish_cell(plan)
        tracking.finish_child(
            replace(RESULT, cell_id=plan.cells[0].cell_id, folder=str(plan.cell_folder(plan.cells[0])))
        )
        tracking.finish_parent({}, "", [], (), "FINISHED")
        assert len(tracking.close(0.5)) == 2

    down = run_sync(plan, limit_s=0.5)
    database.parent.unlink()
    database.parent.mkdir()
    shutil.copy(empty_database, database)
    up = run_sync(plan)

    assert (down.exit_code, up.exit_code) == (1, 0)
    assert "does not answer" in str(down.jobs[0])
    assert {run.info.status for run in tracked_runs(plan.tracking_uri)} == {"FINISHED"}
    assert all(run.info.start_time <= run.info.end_time for run in tracked_runs(plan.tracking_uri))
    assert steps_of(plan) == list(range(1, STEPS + 1))


def test_a_storage_that_moved_is_synced_from_its_new_place(dead: Plan, tmp_path: Path) -> None:
    finish_cell(dead, measurement=MEASURED)
    moved = tmp_path / "mounted-elsewhere"
    dead.storage.rename(moved)
    spool = moved / "cells" / dead.cells[0].cell_id / "spool" / "steps.jsonl"
    spool.write_text(
        spool.read_text() + spool.read_text().splitlines()[-1].replace(f'"step": {STEPS}', '"step": 71') + "\n"
    )
    run_sync(dead, storage=moved)

    assert steps_of(dead) == list(range(1, STEPS + 2))
    assert first(dead).info.status == "FINISHED"
    assert not dead.storage.exists()


def test_a_model_that_was_exported_is_registered(tmp_path: Path, uri: str) -> None:
    job = write_job(tmp_path, tracking__uri=uri, export={"folder": str(tmp_path / "model"), "register": "mine"})
    text = (
        job.spec.read_text().replace("backbones:\n- tiny-llama2", "backbone: tiny-llama2").replace("seeds:\n- 0\n", "")
    )
    job.spec.write_text(text)
    plan = load_plan(job.spec)
    with driver_of(plan.folder):
        tracking = Tracking(plan, "backbone finetune", ExportRequest(tmp_path / "model", {}))
        tracking.start()
        tracking.run_ids(60)
        tracking.close(0)
    finish_cell(plan)
    run_sync(plan)

    (version,) = MlflowClient(uri).search_model_versions("name = 'mine'")
    assert (version.run_id, version.tags["folder"]) == (first(plan).info.run_id, str(tmp_path / "model"))


def test_a_job_that_the_storage_does_not_have_is_refused_by_name(dead: Plan) -> None:
    with pytest.raises(InputError, match=f"has no job 'e2e-typo' with MLflow runs; it has: {dead.job_id}"):
        run_sync(dead, "e2e-typo")


def test_a_password_in_the_address_is_written_nowhere_and_asked_for(tmp_path: Path) -> None:
    address = f"http://ada:canary@127.0.0.1:{free_port()}"
    plan = load_plan(write_job(tmp_path, tracking__uri=address).spec)
    with driver_of(plan.folder):
        tracking = Tracking(plan, "backbone compare", None)
        tracking.start()
        tracking.close(0.2)
    outcome = run_sync(plan)

    assert outcome.exit_code == 1
    assert "set MLFLOW_TRACKING_URI to that address with its password" in str(outcome.jobs[0])
    written = [file for file in plan.storage.rglob("*") if file.is_file()]
    assert len(written) > 2
    assert not [file for file in written if b"canary" in file.read_bytes()]


def test_a_driver_that_starts_meanwhile_does_not_wait_for_a_sync_without_a_server(tmp_path: Path) -> None:
    plan = load_plan(write_job(tmp_path, tracking__uri=f"http://127.0.0.1:{free_port()}").spec)
    with driver_of(plan.folder):
        tracking = Tracking(plan, "backbone compare", None)
        tracking.start()
        tracking.close(0)
    outcomes: list[Outcome] = []
    syncing = threading.Thread(target=lambda: outcomes.append(run_sync(plan, limit_s=300)))
    syncing.start()

    inode = os.stat(plan.files.driver_lock).st_ino

    def is_at_work() -> bool:  # seen without touching the lock: whoever holds it for a moment keeps the sync away
        return any("WRITE" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())

    wait_for(is_at_work, "a sync at work")
    began = time.monotonic()
    with driver_of(plan.folder):
        waited_s = time.monotonic() - began
    syncing.join()

    assert waited_s < 25  # a request or two; without a driver it gives the server 30 s
    assert outcomes[0].jobs[0].unsent


# --- the dispatcher's side ---


class Clock:
    """Seconds, moved by the test."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def row(plan: Plan, state: JobState, reason: str = "") -> JobRow:
    return JobRow(
        job_id=plan.job_id,
        kind="comparison",
        owner="ada",
        priority=0,
        preemptible=True,
        storage=str(plan.storage),
        spec_file="",
        arguments=(),
        code=None,
        occurrence=None,
        gpu_hours=None,
        in_turn=False,
        state=state,
        reason=reason,
        stop="",
        driver=None,
        attempt=1,
        losses=0,
        submitted_s=0.0,
        ended_s=900.0,
    )


@pytest.fixture
def new_reconciler() -> Iterator[Callable[..., Reconciler]]:
    made: list[Reconciler] = []

    def create(**options: Any) -> Reconciler:
        made.append(Reconciler(**options))
        return made[-1]

    yield create
    for reconciler in made:
        reconciler.close()


def step_until(reconciler: Reconciler, jobs: list[JobRow], is_so: Callable[[], bool]) -> None:
    def look() -> bool:
        reconciler.step(jobs)
        return is_so()

    wait_for(look, "what the reconciler should do")


def test_the_reconciler_ends_the_runs_of_an_interrupted_job_with_the_queues_reason(
    dead: Plan, new_reconciler: Callable[..., Reconciler]
) -> None:
    reconciler = new_reconciler()
    lost = row(dead, JobState.INTERRUPTED, "--its driver host:7 died (silent for 31 s)")
    step_until(reconciler, [lost], dead.files.synced.exists)

    assert first(dead).info.status == "KILLED"
    assert first(dead).data.tags["ended_because"] == lost.reason
    assert steps_of(dead) == list(range(1, STEPS + 1))


def test_the_reconciler_starts_nothing_for_jobs_that_run_or_that_mlflow_knows_or_never_heard_of(
    dead: Plan, new_reconciler: Callable[..., Reconciler]
) -> None:
    reconciler = new_reconciler()
    reconciler.step([row(dead, JobState.RUNNING), row(dead, JobState.QUEUED)])
    reconciler.step([replace(row(dead, JobState.CANCELLED), job_id="cancelled-before-it-began")])
    assert not reconciler.is_at_work

    run_sync(dead)
    after_a_restart = new_reconciler()
    after_a_restart.step([row(dead, JobState.CANCELLED)])
    assert not after_a_restart.is_at_work


def test_the_reconciler_tries_again_later_and_then_less_often(
    tmp_path: Path, new_reconciler: Callable[..., Reconciler]
) -> None:
    plan = load_plan(write_job(tmp_path, tracking__uri=f"http://127.0.0.1:{free_port()}").spec)
    with driver_of(plan.folder):
        tracking = Tracking(plan, "backbone compare", None)
        tracking.start()
        tracking.close(0)
    clock = Clock()
    reconciler = new_reconciler(limit_s=1.0, clock=clock)
    jobs = [row(plan, JobState.FAILED)]

    step_until(reconciler, jobs, lambda: f"tried again in {FIRST_BACKOFF_S:.0f} s" in reconciler.trouble)
    assert "does not answer" in reconciler.trouble
    clock.now_s += FIRST_BACKOFF_S - 0.1
    reconciler.step(jobs)
    assert not reconciler.is_at_work
    clock.now_s += 0.2
    step_until(reconciler, jobs, lambda: f"tried again in {2 * FIRST_BACKOFF_S:.0f} s" in reconciler.trouble)
