"""Brings the services of this machine up, in their order, and takes them down again.

`up` looks before it starts: what answers stays, what is missing or half dead is ended and started again, so it can be
repeated after any crash. Storage, with its queue, results and MLflow database, outlives every `down`.
"""

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from jobs.cluster.endpoint import http_get
from jobs.cluster.one_machine import commands
from jobs.cluster.one_machine.commands import Resources, dashboard_url, mlflow_url
from jobs.cluster.one_machine.ports import ChosenPorts, Ports, check_port, choose_ports
from jobs.cluster.one_machine.services import Service, is_running, last_lines, processes_of, start, stop
from jobs.cluster.one_machine.state import State, delete_state, load_state, save_state
from jobs.cluster.one_machine.token import ensure_token
from orchestrator.errors import AlreadyRunningError, InputError, ResourcesError
from orchestrator.layout import Storage

RAY, MLFLOW = "ray", "mlflow"
START_LIMIT_S = 240.0  # Ray needs 20 s on a busy laptop, MLflow 50 for its first database
DISPATCHER_LIMIT_S = 120.0
PATIENCE_S = 20.0
PROGRESS_EVERY_S = 10.0


def up(storage: Path, resources: Resources, ports: Ports, console: Console) -> int:
    """Starts Ray, MLflow and the dispatcher on this machine, or what of them is missing; returns the exit code.

    Interrupted or failed, it ends what it started itself. Raises InputError, ResourcesError, AlreadyRunningError.
    """
    storage = storage.expanduser().absolute()
    with _locked(storage), _first_on_this_machine(console):
        began = _Beginning(storage, console, _known_or_new(storage, ports, console))
        try:
            began.bring_up(RAY, lambda state: _ray_answers(state), _start_ray(resources))
            began.bring_up(MLFLOW, lambda state: _mlflow_answers(state), _start_mlflow)
            began.bring_up_dispatcher()
        except BaseException:
            began.undo()
            raise
        _tell(began, console)
    return 0


def down(storage: Path, console: Console) -> int:
    """Ends exactly the processes that `up` started for this storage; returns the exit code.

    Raises InputError where another machine runs them, AlreadyRunningError, ResourcesError for an unkillable process.
    """
    storage = storage.expanduser().absolute()
    if not Storage(storage).cluster.is_dir():
        console.print(f"nothing runs for {storage}", highlight=False, soft_wrap=True)
        return 0
    with _locked(storage):
        state = load_state(storage)
        if state is None:
            console.print(f"nothing runs for {storage}", highlight=False, soft_wrap=True)
            return 0
        for name in (RAY, MLFLOW):  # drivers first: what they still send, MLflow takes
            if (service := state.find(name)) is not None:
                ended = _end(service)
                console.print(f"{name} ended: {ended} processes" if ended else f"{name} was not running")
        delete_state(storage)
    return 0


Start = Callable[["State", Path, Service], Service]


@dataclass
class _Beginning:
    """One `up` while it happens: the state so far, and what to undo."""

    storage: Path
    console: Console
    state: State
    started: tuple[str, ...] = ()

    def bring_up(self, name: str, answers: Callable[[State], bool], begin: Start) -> None:
        """Leaves alone what answers; otherwise ends what is left of the service and starts it anew."""
        found = self.state.find(name)
        if found is not None and is_running(found) and answers(self.state):
            self.console.print(f"{name} is up")
            return
        if found is not None and (left := _end(found)):
            self.console.print(f"{name} does not answer; ended {left} processes of it")
        self._check_ports(name)
        service = _new_service(name)
        # Noted before it starts: a `down` finds its processes by the mark, even if this process dies now.
        self._remember(service)
        self.started += (name,)
        self._remember(begin(self.state, self.storage, service))
        self._wait(name, answers)

    def bring_up_dispatcher(self) -> None:
        """Starts the queue's dispatcher, or finds it; its own command does either."""
        service = self._service(RAY)
        address = _gcs_note(service).read_text(encoding="utf-8").strip()
        try:
            ran = subprocess.run(
                commands.dispatcher_command(self.storage),
                cwd=self.storage,
                env=commands.dispatcher_environment(self.state, self.storage, address),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=DISPATCHER_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ResourcesError(
                f"the dispatcher did not answer in {DISPATCHER_LIMIT_S:.0f} s; see {service.folder}/session_latest/logs"
            ) from None
        if ran.returncode:
            raise ResourcesError(f"the dispatcher does not start:\n{ran.stdout.strip()[-3000:]}")
        said = ran.stdout.strip().splitlines() or ["the dispatcher is up"]
        self.console.print(said[-1], highlight=False, markup=False, soft_wrap=True)

    def undo(self) -> None:
        """Ends what this `up` started, not what it found."""
        for name in reversed(self.started):
            if (service := self.state.find(name)) is not None:
                self.console.print(f"ending {name} again")
                _end(service)
        if {service.name for service in self.state.services} <= set(self.started):
            delete_state(self.storage)

    def _service(self, name: str) -> Service:
        service = self.state.find(name)
        assert service is not None
        return service

    def _remember(self, service: Service) -> None:
        self.state = self.state.with_service(service)
        save_state(self.storage, self.state)

    def _check_ports(self, name: str) -> None:
        ports = self.state.ports
        if name == RAY:
            check_port("--port", ports.ray)
            check_port("--dashboard-port", ports.dashboard)
        else:
            check_port("--mlflow-port", ports.mlflow)

    def _wait(self, name: str, answers: Callable[[State], bool]) -> None:
        """Until the service answers. Raises ResourcesError when it ends, or when time is up."""
        began = time.monotonic()
        told = began
        self.console.print(f"{name} is starting", highlight=False)
        while not answers(self.state):
            service, now = self._service(name), time.monotonic()
            if not is_running(service):
                raise ResourcesError(f"{name} ended before it answered; its last words:\n{last_lines(service)}")
            if now - began > START_LIMIT_S:
                raise ResourcesError(f"{name} did not answer in {START_LIMIT_S:.0f} s:\n{last_lines(service)}")
            if now - told > PROGRESS_EVERY_S:
                told = now
                self.console.print(f"{name} is starting: {now - began:.0f} s", highlight=False)
            time.sleep(0.2)  # polling a process that offers no other sign
        self.console.print(f"{name} is up after {time.monotonic() - began:.0f} s", highlight=False)


def _start_ray(resources: Resources) -> Start:
    def begin(state: State, storage: Path, service: Service) -> Service:
        command = commands.ray_command(state, Path(service.folder), resources)
        return start(service, command, commands.ray_environment(state, storage))

    return begin


def _start_mlflow(state: State, storage: Path, service: Service) -> Service:
    files = Storage(storage)
    command = commands.mlflow_command(state.ports.mlflow, f"sqlite:///{files.mlflow_database}", files.mlflow_artifacts)
    return start(service, command, commands.mlflow_environment())


def _ray_answers(state: State) -> bool:
    """Whether the start is complete, and the job API serves whoever has the token; it cannot without a living GCS."""
    ray = state.find(RAY)
    if ray is None or not _gcs_note(ray).exists():
        return False
    token = Path(state.token).read_text(encoding="utf-8").strip()
    return http_get(f"{dashboard_url(state)}/api/jobs/", token=token).status == 200


def _gcs_note(ray: Service) -> Path:
    """Where `ray start`, as its last step, notes the address of the GCS."""
    return Path(ray.folder) / "ray_current_cluster"


def _mlflow_answers(state: State) -> bool:
    return http_get(f"{mlflow_url(state)}/health").status == 200


def _known_or_new(storage: Path, ports: Ports, console: Console) -> State:
    """What an earlier `up` left, as far as it is still so; else a fresh state with ports chosen."""
    token = ensure_token(console)
    state = load_state(storage)
    if state is None:
        return State(platform.node(), choose_ports(ports), str(token))
    if not any(processes_of(service) for service in state.services):
        return replace(state, ports=choose_ports(ports), token=str(token))
    _check_same(state.ports, ports)
    if state.token != str(token):
        raise InputError(f"the cluster runs with the token in {state.token}; set RAY_AUTH_TOKEN_PATH to it")
    return state


def _check_same(running: ChosenPorts, wanted: Ports) -> None:
    for option, is_at, asked in (
        ("--port", running.ray, wanted.ray),
        ("--dashboard-port", running.dashboard, wanted.dashboard),
        ("--mlflow-port", running.mlflow, wanted.mlflow),
    ):
        if asked not in (None, is_at):
            raise InputError(f"{option} is {asked}, but what runs uses {is_at}; `backbone down` first")


def _new_service(name: str) -> Service:
    """A folder under the system's temporary one, for this user alone: sockets cannot have long paths."""
    folder = tempfile.mkdtemp(prefix=f"backbone-{name}-")
    return Service(name, f"{name}-{uuid.uuid4().hex}", folder)


def _end(service: Service) -> int:
    ended = stop(service, PATIENCE_S)
    shutil.rmtree(service.folder, ignore_errors=True)
    return ended


@contextmanager
def _locked(storage: Path) -> Iterator[None]:
    """One `up` or `down` at a time. Raises InputError for a storage that cannot be written."""
    try:
        Storage(storage).cluster.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(Storage(storage).cluster_lock)
        lock.acquire(timeout=0)
    except Timeout:
        raise AlreadyRunningError(f"another `backbone up` or `down` works on {storage}; wait for its end") from None
    except OSError as error:
        raise InputError(f"{storage} cannot be used: {error.strerror}; choose another --storage") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _first_on_this_machine(console: Console) -> Iterator[None]:
    """One `up` of a user at a time, whatever its storage: until its services listen, its ports seem free to others."""
    lock = FileLock(Path(tempfile.gettempdir()) / f"backbone-up-{os.getuid()}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print("another `backbone up` starts on this machine; waiting for its end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _tell(began: _Beginning, console: Console) -> None:
    state, token = began.state, shlex.quote(began.state.token)
    lines = [
        "",
        "It is up." if began.started else "It was up already.",
        f"  storage  {began.storage}",
        f"  MLflow   {mlflow_url(state)}",
        f"  token    {state.token} (whoever has it can run any code here)",
        "",
        "In every shell that uses it:",
        f"  export RAY_ADDRESS={dashboard_url(state)} RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token}",
        "  backbone submit jobs/specs/demo.yaml",
        "",
        "And to end it: backbone down",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
