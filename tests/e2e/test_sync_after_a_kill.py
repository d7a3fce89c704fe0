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
    ray_processes_of,
    run_of,
    tracked_runs,
    wait_for,
    working_processes_of,
)
from test_mlflow_outage import Server

pytestmark = pytest.mark.e2e

STEPS = 60
Expected = Callable[[str], dict[str, list[tuple[int, float]]]]


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
    new_job: Callable[..., Job], server: Server, expected: Expected
) -> None:
    server.start()
    server.wait()
    job = new_job(tracking__uri=server.uri, backbones=["tiny-llama2", "tiny-mistral"])
    launch = job.start("compare", "--no-certificate")
    first, second = job.cell("tiny-llama2"), job.cell("tiny-mistral")
    kept = second.wait_for_checkpoint(launch)
    second.wait_for_step(kept + 2, launch)
    assert (first.path / "result.json").exists()
    with second.held():  # training must not end meanwhile
        at_work = ["FINISHED", "RUNNING", "RUNNING"]  # the first cell's, the second's, and the job's
        wait_for(lambda: sorted(statuses(server.uri)) == at_work, "all runs in MLflow", alive=launch.process)
        assert "a driver is at work on it" in run_sync(job)
        assert sorted(statuses(server.uri)) == at_work

        os.kill(launch.process.pid, signal.SIGKILL)
        launch.wait()
    wait_for(lambda: not working_processes_of(launch.process.pid), "the end of its workers", timeout_s=15)
    assert second.step < STEPS
    assert "KILLED" in run_sync(job)

    assert sorted(statuses(server.uri)) == ["FINISHED", "KILLED", "KILLED"]
    assert [step for step, _ in histories(server.uri, second.path.name)["loss"]] == list(range(1, second.step + 1))
    killed = run_of(server.uri, second.path.name)
    assert killed.data.tags["ended_because"] == "its driver died"
    assert "MLflow has everything of 1 of 1 jobs" in run_sync(job)

    again = job.run("compare", "--no-certificate")
    assert again.process.returncode == 0, again.output
    assert "2 cells, 1 already finished" in again.output
    (resumed,) = [phase["step"] for phase in second.phases(2) if phase["phase"] == "resumed"]
    assert 0 < resumed < STEPS
    runs = tracked_runs(server.uri)
    assert sorted((run.data.tags["cell_id"], run.info.status, run.data.tags["attempt"]) for run in runs) == [
        ("all", "FINISHED", "1"),
        (first.path.name, "FINISHED", "1"),
        (second.path.name, "FINISHED", "2"),
    ]
    finished = run_of(server.uri, second.path.name)
    assert finished.info.run_id == killed.info.run_id
    assert "ended_because" not in finished.data.tags
    for cell in (first, second):
        assert_every_step_once(server.uri, cell.path.name, STEPS)
        assert histories(server.uri, cell.path.name) == expected(cell.path.name)
    assert [cell["restarts"] for cell in job.report["cells"]] == [[], ["the launch was interrupted"]]

    ended = {run.info.run_id: run.info.end_time for run in runs}
    job.environment["PYTHONPROFILEIMPORTTIME"] = "1"  # a line on stderr for each module, "import time: ... | name"
    third = job.run("compare", "--no-certificate")
    assert third.process.returncode == 0
    told = (line for line in third.output.splitlines() if line.startswith("import time:"))
    imported = {line.rpartition("|")[2].strip() for line in told}
    assert "jobs.driver.launch" in imported
    assert not imported & {"mlflow", "ray", "torch", "transformers"}  # seconds, each, for a job that is done
    assert "starting Ray" not in third.output
    assert {run.info.run_id: run.info.end_time for run in tracked_runs(server.uri)} == ended
    wait_for(lambda: not ray_processes_of(launch.process.pid), "end of the killed driver's Ray", timeout_s=90)


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
