"""`backbone mlflow`: the page on which the runs of a job stand side by side, and a server for it where none runs."""

import json
import shutil
import signal
import tempfile
import time
import uuid
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from jobs.cluster.endpoint import http_get, is_loopback
from jobs.cluster.one_machine.commands import mlflow_command, mlflow_environment, mlflow_url
from jobs.cluster.one_machine.ports import choose_mlflow_port
from jobs.cluster.one_machine.services import Service, is_running, last_lines, start, stop
from jobs.cluster.one_machine.state import load_state
from orchestrator.errors import ClusterError, InputError, ResourcesError
from orchestrator.layout import RUN_SUFFIX, JobFolder, Storage
from orchestrator.results import read_json

START_LIMIT_S = 120.0
END_LIMIT_S = 10.0


@dataclass(frozen=True)
class TrackedJob:
    """A job as MLflow knows it. `address`: of the server or the database, without a password."""

    name: str
    address: str
    parent: str
    cells: tuple[str, ...]  # run ids, by name of the cell


def show(storage: Path, job: str | None, port: int | None, opens_browser: bool, console: Console) -> int:
    """Prints and opens the page of a job, the newest one where none is named; returns the exit code.

    Where no server runs, one is started on loopback, with the settings of `backbone up`, until it is interrupted.
    Raises InputError without such a job, ClusterError where its server does not answer, ResourcesError.
    """
    found = find_job(storage, job)
    if (server := _running_server(storage, found)) is not None:
        _tell(server, found, opens_browser, console)
        return 0
    with _terminable(), _served(storage, found, port, console) as (url, service):
        _tell(url, found, opens_browser, console)
        console.print("Ctrl-C ends the server")
        while is_running(service):
            time.sleep(0.5)
        raise ResourcesError(f"MLflow ended; its last words:\n{last_lines(service)}")
    return 0


def find_job(storage: Path, job: str | None) -> TrackedJob:
    """The job of that name, or the newest one that MLflow has. Raises InputError."""
    known = {folder.path.name: folder for folder in Storage(storage).tracked_jobs() if _run_id(folder.parent_run)}
    if not known:
        raise InputError(
            f"MLflow has heard of no job in {storage}; `backbone compare SPEC` runs one, --storage names another folder"
        )
    if job is None:
        job = max(known, key=lambda name: known[name].parent_run.stat().st_mtime)
    elif job not in known:
        raise InputError(f"{storage} has no job {job} that MLflow has heard of; it has {', '.join(known)}")
    folder = known[job]
    parent = read_json(folder.parent_run)
    return TrackedJob(job, parent["uri"], parent["run_id"], tuple(_cells(folder)))


def page_of(server: str, job: TrackedJob) -> str:
    """The page that compares the job's cells; where the server gives no information, its first page."""
    answer = http_get(f"{server}/api/2.0/mlflow/runs/get?run_id={job.parent}")
    if answer.status != 200:
        return server
    experiment = json.loads(answer.text)["run"]["info"]["experiment_id"]
    if len(job.cells) < 2:
        return f"{server}/#/experiments/{experiment}/runs/{(*job.cells, job.parent)[0]}"
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (job.cells, [experiment]))
    return f"{server}/#/compare-runs?runs={runs}&experiments={experiments}"


def _cells(folder: JobFolder) -> Iterator[str]:
    for file in sorted(folder.tracking.glob(f"*{RUN_SUFFIX}")):
        state = file.with_name(file.name.removesuffix(RUN_SUFFIX) + ".json")
        if state != folder.parent_run and (run_id := _run_id(state)):
            yield run_id


def _run_id(state: Path) -> str | None:
    return read_json(state)["run_id"] if state.exists() else None


def _running_server(storage: Path, job: TrackedJob) -> str | None:
    """The server that has the job, if one must run elsewhere or runs here. Raises ClusterError for one that is away."""
    state = load_state(storage) if Storage(storage).cluster_state.exists() else None
    if state is not None and (service := state.find("mlflow")) is not None and is_running(service):
        return mlflow_url(state)
    if not job.address.startswith("http"):
        return None
    answer = http_get(f"{job.address}/health")
    if answer.status is not None:
        return job.address
    if is_loopback(job.address) and Storage(storage).mlflow_database.exists():
        return None  # it was this machine's server, of `backbone up`; what it knew lies in the storage
    raise ClusterError(f"MLflow at {job.address} does not answer: {answer.text}")


def _database(storage: Path, job: TrackedJob) -> str:
    """Where the job's runs lie, for a server to be started on. Raises ClusterError for another machine's database."""
    if job.address.startswith("sqlite:///") and Path(job.address.removeprefix("sqlite:///")).exists():
        return job.address
    if job.address.startswith(("sqlite:", "http")) and Storage(storage).mlflow_database.exists():
        return f"sqlite:///{Storage(storage).mlflow_database}"  # of a storage that was moved here
    raise ClusterError(f"the runs of {job.name} are in {job.address}; a server of that database shows them")


@contextmanager
def _served(storage: Path, job: TrackedJob, port: int | None, console: Console) -> Iterator[tuple[str, Service]]:
    """A server of the job's database while it is looked at; interrupted, it ends, and so does the block."""
    database, port = _database(storage, job), choose_mlflow_port(port)
    folder = tempfile.mkdtemp(prefix="backbone-mlflow-")
    service = Service("mlflow", f"mlflow-{uuid.uuid4().hex}", folder)
    url, began = f"http://127.0.0.1:{port}", time.monotonic()
    console.print("MLflow is starting")
    try:
        command = mlflow_command(port, database, Storage(storage).mlflow_artifacts)
        service = start(service, command, mlflow_environment())
        while http_get(f"{url}/health").status != 200:
            if not is_running(service):
                raise ResourcesError(f"MLflow ended before it answered; its last words:\n{last_lines(service)}")
            if time.monotonic() - began > START_LIMIT_S:
                raise ResourcesError(f"MLflow did not answer in {START_LIMIT_S:.0f} s:\n{last_lines(service)}")
            time.sleep(0.2)  # polling a process that offers no other sign
        yield url, service
    except KeyboardInterrupt:
        console.print("MLflow ends")
    finally:
        stop(service, END_LIMIT_S)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """A request to end from outside is as good as Ctrl-C: nothing is left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(server: str, job: TrackedJob, opens_browser: bool, console: Console) -> None:
    page = page_of(server, job)
    console.print(f"{job.name}: {page}", highlight=False, markup=False, soft_wrap=True)
    if opens_browser:
        webbrowser.open(page)
