"""`python -m jobs.tracking.sync` after a real driver was killed, or never reached its MLflow server."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from product import (
    ROOT,
    Job,
    assert_every_step_once,
    clean_environment,
    histories,
    run_of,
    tracked_runs,
    wait_for,
    working_processes_of,
)
from test_mlflow_outage import Server

pytestmark = pytest.mark.e2e

STEPS = 80


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


def run_sync(job: Job) -> str:
    """What a person or the dispatcher starts; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.tracking.sync", "--storage", str(job.storage), "--limit", "120"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def statuses(uri: str) -> list[str]:
    return [run.info.status for run in tracked_runs(uri)]


def test_a_driver_killed_in_the_middle_is_told_of_and_the_same_command_continues_its_runs(
    new_job: Callable[..., Job], server: Server
) -> None:
    server.start()
    server.wait()
    job = new_job(tracking__uri=server.uri, recipe__budget__amount=STEPS)
    launch = job.start()
    cell = job.cell("tiny-llama2")
    cell.wait_for_step(5, launch)
    wait_for(lambda: statuses(server.uri) == ["RUNNING", "RUNNING"], "both runs in MLflow", alive=launch.process)

    worker = cell.worker_pid(1)
    os.kill(worker, signal.SIGSTOP)  # training must not end meanwhile
    assert "a driver is at work on it" in run_sync(job)
    assert statuses(server.uri) == ["RUNNING", "RUNNING"]
    os.kill(worker, signal.SIGCONT)

    os.kill(launch.process.pid, signal.SIGKILL)
    launch.wait()
    wait_for(lambda: not working_processes_of(launch.process.pid), "the end of its workers")
    assert cell.step < STEPS, "training ended before the driver was killed; give the job more steps"
    assert "KILLED" in run_sync(job)

    assert statuses(server.uri) == ["KILLED", "KILLED"]
    assert [step for step, _ in histories(server.uri, cell.path.name)["loss"]] == list(range(1, cell.step + 1))
    killed = run_of(server.uri, cell.path.name)
    assert killed.data.tags["ended_because"] == "its driver died"
    assert "MLflow has everything of 1 of 1 jobs" in run_sync(job)

    again = job.run()
    assert again.process.returncode == 0, again.output
    finished = run_of(server.uri, cell.path.name)
    assert statuses(server.uri) == ["FINISHED", "FINISHED"]
    assert finished.info.run_id == killed.info.run_id
    assert "ended_because" not in finished.data.tags
    assert_every_step_once(server.uri, cell.path.name, STEPS)


@pytest.mark.chaos  # its parts are proved elsewhere: by hand
def test_what_a_driver_could_not_send_is_sent_once_the_server_answers(
    new_job: Callable[..., Job], server: Server
) -> None:
    job = new_job(tracking__uri=server.uri, recipe__budget__amount=STEPS)
    launch = job.run()
    assert launch.process.returncode == 0, launch.output
    assert "does not have everything of 2 runs yet" in launch.output

    server.start()
    server.wait()
    run_sync(job)

    assert statuses(server.uri) == ["FINISHED", "FINISHED"]
    assert_every_step_once(server.uri, job.cell("tiny-llama2").path.name, STEPS)
    parent = run_of(server.uri, "all")
    assert parent.data.metrics
    artifacts = tracked_artifacts(server.uri, parent.info.run_id)
    assert {"report.html", "report.json"} <= artifacts


def tracked_artifacts(uri: str, run_id: str) -> set[str]:
    from mlflow import MlflowClient

    return {artifact.path for artifact in MlflowClient(tracking_uri=uri).list_artifacts(run_id)}
