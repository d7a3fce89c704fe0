"""What `up` decides before it starts anything, and whom `down` may end. No Ray, no MLflow."""

import json
import os
import platform
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from rich.console import Console

from jobs.cluster.one_machine import Ports, Resources, down, up
from jobs.cluster.one_machine.commands import mlflow_command, ray_command
from jobs.cluster.one_machine.ports import RAY_WORKERS, choose_ports
from jobs.cluster.one_machine.services import MARK, Service, is_running, processes_of, start, stop
from jobs.cluster.one_machine.state import State, load_state, save_state
from jobs.cluster.one_machine.token import ensure_token
from orchestrator.errors import AlreadyRunningError, InputError, ResourcesError

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def console() -> Console:
    return Console(record=True, soft_wrap=True, quiet=False)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture(autouse=True)
def _own_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "token"))


# --- the token ---


def test_a_missing_token_is_made_for_its_owner_alone_and_never_printed(console: Console) -> None:
    path = ensure_token(console)
    token = path.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["token"]
    assert token not in console.export_text()
    assert ensure_token(console).read_text() == token


def test_a_token_that_others_can_read_is_closed(console: Console) -> None:
    path = ensure_token(console)
    path.chmod(0o644)
    ensure_token(console)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "readable for you alone" in console.export_text()


def test_an_empty_token_file_and_a_token_in_the_environment_are_refused(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ensure_token(console)
    path.write_text("\n")
    with pytest.raises(InputError, match="is empty; delete it"):
        ensure_token(console)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary")
    with pytest.raises(InputError, match="unset RAY_AUTH_TOKEN") as caught:
        ensure_token(console)
    assert "canary" not in str(caught.value)


# --- ports ---


def test_every_port_is_another_and_none_is_one_of_rays_workers(taken_port: int) -> None:
    ports = vars(choose_ports(Ports()))
    assert len(set(ports.values())) == len(ports)
    assert not [port for port in ports.values() if port in RAY_WORKERS]


def test_a_chosen_port_that_cannot_serve_is_refused_by_its_option(taken_port: int) -> None:
    with pytest.raises(InputError, match="--port is 10500, but Ray's workers use"):
        choose_ports(Ports(ray=10500))
    with pytest.raises(ResourcesError, match=f"--mlflow-port is {taken_port}, where something else listens"):
        choose_ports(Ports(mlflow=taken_port))


# --- commands ---


def a_state() -> State:
    return State(platform.node(), choose_ports(Ports()), "/nowhere/token")


def test_ray_starts_closed_and_gives_away_what_it_is_told() -> None:
    command = ray_command(a_state(), Path("/tmp/x"), Resources(cpus=3, gpus=0))
    assert {"--dashboard-host=127.0.0.1", "--disable-usage-stats", "--num-cpus=3", "--num-gpus=0"} <= set(command)
    assert not [word for word in ray_command(a_state(), Path("/tmp/x"), Resources()) if word.startswith("--num")]


def test_mlflow_starts_on_loopback_with_named_hosts() -> None:
    command = mlflow_command(5000, "sqlite:////storage/mlflow.db", Path("/storage/mlartifacts"))
    assert {"--host=127.0.0.1", "--workers=1", "--backend-store-uri=sqlite:////storage/mlflow.db"} <= set(command)
    (hosts,) = [word for word in command if word.startswith("--allowed-hosts=")]
    assert "*" not in hosts


# --- whom `down` may end ---


def test_a_second_up_waits_until_the_first_one_listens(
    tmp_path: Path, console: Console, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / f"backbone-up-{os.getuid()}.lock"):
            second = pool.submit(up, tmp_path / "second", Resources(), Ports(dashboard=taken_port), console)
            deadline = time.monotonic() + 20
            while "waiting for its end" not in console.export_text(clear=False):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert not second.done()
        with pytest.raises(ResourcesError, match="--dashboard-port"):  # it looks at its ports only now
            second.result(20)


def test_a_service_is_found_by_its_mark_and_by_what_it_writes(tmp_path: Path) -> None:
    service = start(Service("x", "x-1", str(tmp_path)), SLEEP, {})
    writer = subprocess.Popen(SLEEP, stdout=open(tmp_path / "log", "w"), env={})  # noqa: SIM115
    reader = subprocess.Popen(SLEEP, stdin=open(tmp_path / "log"), env={MARK: "x-2"})  # noqa: SIM115
    try:
        assert is_running(service)
        assert {process.pid for process in processes_of(service)} == {service.pid, writer.pid}
        assert stop(service, 5) == 2
        assert processes_of(service) == [] and not is_running(service)
        assert reader.poll() is None
    finally:
        for process in (writer, reader):
            process.kill()
            process.wait()


def test_another_process_that_got_a_recorded_pid_is_left_alone(tmp_path: Path, console: Console) -> None:
    bystander = subprocess.Popen(SLEEP)
    try:
        began = psutil.Process(bystander.pid).create_time()
        assert not is_running(Service("ray", "ray-1", "/nowhere", bystander.pid, began - 100))
        recorded = Service("ray", "ray-1", str(tmp_path / "gone"), bystander.pid, began)
        (tmp_path / "cluster").mkdir()
        save_state(tmp_path, a_state().with_service(recorded))
        assert down(tmp_path, console) == 0
        assert bystander.poll() is None
        assert load_state(tmp_path) is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_service_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    service = start(Service("x", "x-3", str(tmp_path)), [sys.executable, "-c", script], {})
    deadline = time.monotonic() + 20
    while "ready" not in service.log.read_text():
        assert time.monotonic() < deadline
    assert stop(service, 0.2) == 1
    assert processes_of(service) == []


# --- storage ---


def test_down_without_a_cluster_says_so_and_touches_nothing(tmp_path: Path, console: Console) -> None:
    assert down(tmp_path / "nothing", console) == 0
    assert "nothing runs" in console.export_text()
    assert not (tmp_path / "nothing").exists()


def test_a_cluster_of_another_machine_is_not_touched(tmp_path: Path, console: Console) -> None:
    (tmp_path / "cluster").mkdir()
    save_state(tmp_path, a_state())
    file = tmp_path / "cluster" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "host": "elsewhere"}))
    for command in (lambda: down(tmp_path, console), lambda: up(tmp_path, Resources(), Ports(), console)):
        with pytest.raises(InputError, match="elsewhere runs a cluster"):
            command()


def test_two_at_a_time_are_refused(tmp_path: Path, console: Console) -> None:
    from filelock import FileLock

    (tmp_path / "cluster").mkdir()
    with FileLock(tmp_path / "cluster" / "lock"), pytest.raises(AlreadyRunningError, match="wait for its end"):
        down(tmp_path, console)


def test_a_storage_that_is_a_file_is_refused(tmp_path: Path, console: Console) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another --storage"):
        up(tmp_path / "file", Resources(), Ports(), console)
