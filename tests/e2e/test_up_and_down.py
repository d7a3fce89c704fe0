"""`backbone up` and `down`: a cluster with its token, MLflow and dispatcher, and no trace of them afterwards."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from product import ROOT, clean_environment, wait_for

from jobs.cluster.endpoint import http_get
from jobs.cluster.jobs_api import NO_AGENT
from jobs.cluster.one_machine.services import Service, is_running, processes_of
from jobs.cluster.one_machine.state import State, load_state

pytestmark = pytest.mark.e2e

LIMIT_S = 300
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
UP, DOWN = ("up", "--num-cpus", "2"), ("down",)


@dataclass
class Machine:
    """One storage, and what was typed for it."""

    storage: Path
    token_file: Path

    def begin(self, command: tuple[str, ...]) -> subprocess.Popen[str]:
        environment = {**clean_environment(), "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "jobs.cli", *command, "--storage", str(self.storage)],
            cwd=ROOT,
            env={**environment, "TMPDIR": tempfile.gettempdir()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: tuple[str, ...]) -> str:
        process = self.begin(command)
        output, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, output
        return output

    def _try_to_submit(self, command: tuple[str, ...]) -> subprocess.CompletedProcess[str] | None:
        """None while the cluster is too young to take jobs: its agent registers seconds after its job API answers."""
        address = f"http://127.0.0.1:{self.state.ports.dashboard}"
        ran = subprocess.run(
            [*RAY, "job", "submit", "--address", address, "--", *command],
            env={**clean_environment(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        return None if NO_AGENT in ran.stdout else ran

    def submit(self, *command: str, may_fail: bool = False) -> str:
        """What `ray job submit` prints of a command that runs on the cluster."""
        ran = wait_for(lambda: self._try_to_submit(command), "an agent that takes jobs")
        assert may_fail or ran.returncode == 0, ran.stdout
        return ran.stdout

    @property
    def state(self) -> State:
        state = load_state(self.storage)
        assert state is not None
        return state

    def service(self, name: str) -> Service:
        service = self.state.find(name)
        assert service is not None
        return service

    @property
    def token(self) -> str:
        return self.token_file.read_text()

    def ray(self, path: str, token: str | None) -> int | None:
        return http_get(f"http://127.0.0.1:{self.state.ports.dashboard}{path}", token=token).status

    def mlflow(self, path: str, **more: Any) -> int | None:
        return http_get(f"http://127.0.0.1:{self.state.ports.mlflow}{path}", **more).status


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    machine = Machine(folder / "storage", folder / "secret" / "token")
    begun = machine.begin(UP)
    assert begun.stdout is not None
    said = list(iter(begun.stdout.readline, "ray is starting\n"))
    # While ours starts, another Ray of this machine takes the port that every Ray has for its agent.
    with socket.socket() as other:
        with suppress(OSError):  # where one has it already
            other.bind(("", 52365))
        said += begun.communicate(timeout=LIMIT_S)[0]
    assert begun.wait() == 0, "".join(said)
    yield machine
    machine.run(DOWN)


def test_the_cluster_answers_with_its_token_and_refuses_without(machine: Machine) -> None:
    assert machine.ray("/api/jobs/", machine.token) == 200
    assert machine.ray("/api/jobs/", None) == 401
    assert machine.ray("/api/jobs/", "0" * 64) == 403
    assert stat.S_IMODE(machine.token_file.stat().st_mode) == 0o600


def test_no_secret_is_in_the_state_file_nor_on_the_command_lines(machine: Machine) -> None:
    file = machine.storage / "cluster" / "state.json"
    assert machine.token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for name in ("ray", "mlflow"):
        assert not [p for p in processes_of(machine.service(name)) if machine.token in " ".join(p.cmdline())]


def test_mlflow_and_the_dashboard_listen_on_loopback_alone(machine: Machine) -> None:
    ports = {machine.state.ports.dashboard, machine.state.ports.mlflow}
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening if address.port in ports} == {"127.0.0.1"}


def test_mlflow_refuses_other_host_names_and_runs_no_jobs(machine: Machine) -> None:
    assert machine.mlflow("/api/2.0/mlflow/experiments/get?experiment_id=0") == 200
    assert machine.mlflow("/api/2.0/mlflow/experiments/get?experiment_id=0", host="evil.example") == 403
    environment = psutil.Process(machine.service("mlflow").pid).environ()
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_a_job_finds_storage_and_mlflow(machine: Machine) -> None:
    script = "import os; print('found', os.environ['MLFLOW_TRACKING_URI'], os.environ['BACKBONE_STORAGE'])"
    output = machine.submit("python", "-c", script)
    assert f"found http://127.0.0.1:{machine.state.ports.mlflow} {machine.storage}" in output


def test_the_doctor_asks_the_nodes_as_a_job(machine: Machine) -> None:
    output = machine.submit("backbone", "doctor", "--json", may_fail=True)  # of this machine's disk, for one
    document = json.loads(output[output.index('{\n  "exit_code"') : output.rindex("\n}") + 2])
    well = {finding["check"] for finding in document["findings"] if finding["severity"] == "ok"}
    assert {"token", "dispatcher", "nodes", "storage", "clocks", "mlflow", "listeners"} <= well, document


def test_a_second_up_starts_nothing(machine: Machine) -> None:
    before = machine.state
    output = machine.run(UP)
    assert "It was up already" in output
    assert machine.token not in output
    assert machine.state == before


def test_up_restarts_only_what_died(machine: Machine) -> None:
    ray, mlflow = machine.service("ray"), machine.service("mlflow")
    for process in processes_of(mlflow):
        process.kill()
    machine.run(UP)
    assert machine.service("ray") == ray
    assert machine.service("mlflow").pid != mlflow.pid
    assert machine.mlflow("/health") == 200


def test_up_after_the_death_of_the_gcs_brings_a_fresh_cluster_with_the_same_storage(machine: Machine) -> None:
    before, ports = machine.service("ray"), machine.state.ports
    (gcs,) = [process for process in processes_of(before) if process.name() == "gcs_server"]
    gcs.kill()
    wait_for(lambda: not is_running(before), "the end of the head")
    machine.run(UP)
    assert machine.service("ray").mark != before.mark
    assert machine.state.ports == ports
    assert machine.ray("/api/jobs/", machine.token) == 200
    assert processes_of(before) == []


def test_down_ends_everything_and_nothing_else(tmp_path: Path, machine: Machine) -> None:
    ours, bystander_token = machine.state, {"RAY_AUTH_TOKEN_PATH": str(machine.token_file), **os.environ}
    bystander = subprocess.Popen(["sleep", "600"], env=bystander_token, start_new_session=True)
    reader = subprocess.Popen(["tail", "-f", str(machine.service("ray").log)], stdout=subprocess.DEVNULL)
    try:
        output = machine.run(DOWN)
        assert bystander.poll() is None and reader.poll() is None
    finally:
        for process in (bystander, reader):
            process.kill()
            process.wait()
    assert re.search(r"ray ended: \d+ processes", output)
    assert all(processes_of(service) == [] for service in ours.services)
    assert not any(Path(service.folder).exists() for service in ours.services)
    assert (machine.storage / "mlflow.db").exists()
    assert "nothing runs" in machine.run(DOWN)


def test_an_interrupted_up_leaves_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "storage", tmp_path / "token")
    process = machine.begin(UP)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any("mlflow is starting" in line for line in lines)
    services = machine.state.services
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) != 0
    assert all(processes_of(service) == [] for service in services)
    assert load_state(machine.storage) is None


def test_a_killed_up_is_cleared_by_down(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "storage", tmp_path / "token")
    process = machine.begin(UP)
    wait_for(lambda: (machine.storage / "cluster" / "state.json").exists(), "a state file", alive=process)
    services = wait_for(lambda: [s for s in machine.state.services if processes_of(s)], "a process", alive=process)
    process.kill()
    process.wait()
    machine.run(DOWN)
    assert all(processes_of(service) == [] for service in services)
