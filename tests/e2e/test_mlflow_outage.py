"""An MLflow server that is stopped, killed, late or never there: training does not notice, and no point is lost."""

import http.client
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from product import (
    DETERMINISTIC,
    Job,
    assert_every_step_once,
    clean_environment,
    free_port,
    histories,
    tracked_runs,
    wait_for,
)

pytestmark = pytest.mark.e2e

OUTAGE_S = 16.0
Expected = Callable[[str], dict[str, list[tuple[int, float]]]]


class Server:
    """`mlflow server` on a port and a database that survive its death."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self._folder / 'server.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", store, "--allowed-hosts", f"127.0.0.1:{self._port}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        safe = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
        with open(self._folder / "server.log", "a") as log:
            self._process = subprocess.Popen(
                command, env={**clean_environment(), **safe}, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        wait_for(self._answers, "an MLflow server", alive=self._process)

    def freeze(self) -> None:
        """The kernel still accepts connections; nothing ever answers."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


def test_an_outage_in_the_middle_neither_stalls_training_nor_loses_or_doubles_a_point(
    new_job: Callable[..., Job], server: Server
) -> None:
    server.start()
    server.wait()
    steps = 160
    job = new_job(
        tracking__uri=server.uri,
        recipe__budget__amount=steps,
        recipe__sequence_length=256,
        recipe__global_batch_size=16,
        recipe__evaluate__every=1.0,
        recipe__checkpoint__every=1.0,
    )
    launch = job.start("compare", "--no-certificate")
    cell = job.cell("tiny-llama2")
    cell.wait_for_step(20, launch)
    down = time.time()
    server.freeze()
    wait_for(lambda: time.time() > down + OUTAGE_S / 2, "half of the outage", alive=launch.process)
    server.kill()
    wait_for(lambda: time.time() > down + OUTAGE_S, "the end of the outage", alive=launch.process)
    up = time.time()
    server.start()
    last_step_of_outage = cell.step
    server.wait()

    assert launch.wait() == 0, launch.output
    assert last_step_of_outage < steps, "training ended before the server was back; give the job more steps"
    assert_every_step_once(server.uri, cell.path.name, steps)
    assert {run.info.status for run in tracked_runs(server.uri)} == {"FINISHED"}
    moments = [entry["time_ms"] / 1000 for entry in cell.entries("step")]
    inside = [after - before for before, after in pairwise(moments) if down < before and after < up]
    assert len(inside) > 10, "training stood still"
    assert max(inside) < OUTAGE_S / 3, "a step waited for the server"


@pytest.mark.chaos  # its parts are proved elsewhere: by hand
def test_a_server_that_comes_back_late_gets_every_point(
    new_job: Callable[..., Job], server: Server, expected: Expected
) -> None:
    job = new_job(tracking__uri=server.uri)
    launch = job.start("compare", "--no-certificate")
    wait_for(lambda: "tokenizing" in launch.output, "the start of Ray", alive=launch.process)
    server.start()

    assert launch.wait() == 0, launch.output
    cell = job.cell("tiny-llama2")
    assert "does not have everything" not in launch.output
    assert histories(server.uri, cell.path.name, DETERMINISTIC) == expected(cell.path.name)
    assert {run.info.status for run in tracked_runs(server.uri)} == {"FINISHED"}
    assert all(cell["mlflow_run_id"] for cell in job.report["cells"])


def test_without_a_server_the_job_ends_well_and_the_next_launch_uploads_everything(
    new_job: Callable[..., Job], server: Server, expected: Expected
) -> None:
    job = new_job(tracking__uri=server.uri)
    launch = job.run("compare", "--no-certificate")
    assert launch.process.returncode == 0, launch.output
    assert f"MLflow at {server.uri} does not have everything of 2 runs yet" in launch.output
    assert "run the same command again once it answers" in launch.output
    assert [cell["status"] for cell in job.report["cells"]] == ["SUCCEEDED"]

    server.start()
    server.wait()
    again = job.run("compare", "--no-certificate")
    assert again.process.returncode == 0, again.output
    assert "starting Ray" not in again.output
    cell = job.cell("tiny-llama2")
    assert histories(server.uri, cell.path.name, DETERMINISTIC) == expected(cell.path.name)
    assert {run.info.status for run in tracked_runs(server.uri)} == {"FINISHED"}
    assert all(cell["mlflow_run_id"] for cell in job.report["cells"])
