"""Sends spools to MLflow from a thread of the driver: acknowledged, resumable, and never in the way of training.

Workers do not know MLflow. What was acknowledged is remembered in a state file per run; after a crash between
acknowledgement and note the same rows are sent again, byte for byte, and MLflow stores identical rows once.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from orchestrator.results import read_json, write_json
from orchestrator.tracking.spool import Entry, read_from

# Our loop retries for as long as it takes; MLflow's own seven retries with backoff would only delay its answers.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

ENTRIES_PER_BATCH = 50  # MLflow takes 1,000 metrics a request
INTERVAL_S = 1.0
LONGEST_WAIT_S = 10.0
EVALUATION_METRICS = ("val_bits_per_byte", "val_loss")
PERMANENT_ERRORS = ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_DOES_NOT_EXIST")


@dataclass
class TrackedRun:
    """One MLflow run: what it is called, where its spool is, and what is to become of it."""

    name: str
    state_file: Path  # remembers what was acknowledged
    tags: dict[str, str]
    params: dict[str, str]
    spool_folder: Path | None = None
    parent: "TrackedRun | None" = None
    status: str = "RUNNING"  # MLflow RunStatus name
    summary: dict[str, float] = field(default_factory=dict)
    artifacts: tuple[Path, ...] = ()
    registered_model: tuple[str, Path] | None = None  # name and folder of an exported model
    sent: "Sent" = field(default_factory=lambda: Sent())
    problem: str | None = None

    @property
    def is_settled(self) -> bool:
        """Everything is acknowledged, or MLflow refused it for good."""
        return self.problem is not None or (self.status == self.sent.status and self.status != "RUNNING")


@dataclass
class Sent:
    """What MLflow has acknowledged, as kept in the state file."""

    uri: str = ""
    run_id: str | None = None
    params: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    offset: int = 0
    status: str = ""


class MlflowWriter:
    """Owns the connection to one MLflow server and a thread that brings every tracked run up to date."""

    def __init__(self, uri: str, experiment: str, artifact_folder: Path):
        self._uri, self._experiment, self._artifact_folder = uri, experiment, artifact_folder
        self._runs: list[TrackedRun] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._session: _Session | None = None
        self._thread = threading.Thread(target=self._loop, name="mlflow-writer", daemon=True)
        self.unreachable: str | None = None  # why the last attempt failed, while it does

    def start(self) -> None:
        """Starts sending in the background."""
        self._thread.start()

    def track(self, run: TrackedRun) -> TrackedRun:
        """Takes a run over, remembering what an earlier process already sent to the same server."""
        if run.state_file.exists():
            sent = Sent(**read_json(run.state_file))
            run.sent = sent if sent.uri == self._uri else Sent()
        run.sent.uri = self._uri
        with self._lock:
            self._runs.append(run)
        self._wake.set()
        return run

    def finish(self, run: TrackedRun, status: str) -> None:
        """Gives the run its terminal status, to be sent after everything else."""
        run.status = status
        self._wake.set()

    def close(self, timeout_s: float) -> list[TrackedRun]:
        """Waits until everything is acknowledged, at most `timeout_s`; returns the runs that are not settled."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._thread.is_alive() and self._open_runs():
            self._wake.set()
            time.sleep(0.05)
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=max(1.0, deadline - time.monotonic()))
        return self._open_runs()

    @property
    def problems(self) -> list[str]:
        """What MLflow refused for good."""
        return [f"{run.name}: {run.problem}" for run in self._runs if run.problem]

    def _open_runs(self) -> list[TrackedRun]:
        with self._lock:
            return [run for run in self._runs if not run.is_settled]

    def _loop(self) -> None:
        wait = INTERVAL_S
        while not self._closing.is_set():
            try:
                self._session = self._session or _Session(self._uri, self._experiment, self._artifact_folder)
                for run in self._open_runs():
                    self._bring_up_to_date(self._session, run)
                wait, self.unreachable = INTERVAL_S, None
            except Exception as error:  # the server's absence takes many shapes; all of them mean: try again later
                self.unreachable = str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)
                wait = min(wait * 2, LONGEST_WAIT_S)
            self._wake.wait(wait)
            if self.unreachable is None:
                self._wake.clear()
            else:
                self._closing.wait(wait)

    def _bring_up_to_date(self, session: "_Session", run: TrackedRun) -> None:
        try:
            session.bring_up_to_date(run)
        except session.exception as error:
            if getattr(error, "error_code", "") not in PERMANENT_ERRORS:
                raise
            run.problem = str(error)


class _Session:
    """One connection: the experiment and the calls that bring a run up to date, each safe to repeat."""

    def __init__(self, uri: str, experiment: str, artifact_folder: Path):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self.exception: type[Exception] = MlflowException
        with _database_lock(uri):
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            local = artifact_folder.as_uri() if uri.startswith("sqlite:") else None
            self._experiment_id = found.experiment_id if found else self._client.create_experiment(experiment, local)

    def bring_up_to_date(self, run: TrackedRun) -> None:
        """Creates the run if need be, then sends tags, parameters, new spool entries and the final status."""
        if run.parent is not None and run.parent.sent.run_id is None:
            return  # its turn comes after the parent's
        with _remembered(run):
            status = run.status  # read first: whatever is set later has its spool entries sent later
            self._ensure_run(run)
            self._send_tags(run)
            self._send_entries(run)
            if status != run.sent.status:
                self._send_status(run, status)

    def _ensure_run(self, run: TrackedRun) -> None:
        from mlflow.entities import Param

        sent = run.sent
        if sent.run_id is None:
            identity = {key: run.tags[key] for key in ("comparison_id", "cell_id", "role")}
            query = " and ".join(f"tags.{key} = '{value}'" for key, value in identity.items())
            existing = self._client.search_runs([self._experiment_id], query, max_results=1)
            if existing:
                sent.run_id = existing[0].info.run_id
            else:
                parent = {"mlflow.parentRunId": run.parent.sent.run_id} if run.parent and run.parent.sent.run_id else {}
                tags = {**run.tags, **parent}
                created = self._client.create_run(self._experiment_id, tags=tags, run_name=run.name)
                sent.run_id, sent.tags = created.info.run_id, dict(run.tags)
        if not sent.params:
            params = [Param(key, value[:6000]) for key, value in run.params.items()]
            for group in _groups(params, 100):
                self._client.log_batch(sent.run_id, params=group)
            sent.params = True

    def _send_tags(self, run: TrackedRun) -> None:
        from mlflow.entities import RunTag

        assert run.sent.run_id is not None
        new = {key: value for key, value in run.tags.items() if run.sent.tags.get(key) != value}
        if new:
            self._client.log_batch(run.sent.run_id, tags=[RunTag(key, value) for key, value in new.items()])
            run.sent.tags = {**run.sent.tags, **new}

    def _send_entries(self, run: TrackedRun) -> None:
        if run.spool_folder is None:
            return
        assert run.sent.run_id is not None
        entries = read_from(run.spool_folder, run.sent.offset)
        while group := list(itertools.islice(entries, ENTRIES_PER_BATCH)):
            metrics = [metric for entry, _ in group for metric in _metrics(entry)]
            if metrics:
                self._client.log_batch(run.sent.run_id, metrics=metrics)
            run.sent.offset = group[-1][1]

    def _send_status(self, run: TrackedRun, status: str) -> None:
        from mlflow.entities import Metric

        run_id = run.sent.run_id
        assert run_id is not None
        if status == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        else:
            moment = int(self._client.get_run(run_id).info.start_time)  # fixed, so that a repeat is identical
            if run.summary:
                self._client.log_batch(run_id, metrics=[Metric(k, v, moment, 0) for k, v in run.summary.items()])
            for artifact in run.artifacts:
                self._client.log_artifact(run_id, str(artifact))
            if run.registered_model is not None:
                self._register(run_id, *run.registered_model)
            self._client.set_terminated(run_id, status)
        run.sent.status = status

    def _register(self, run_id: str, name: str, folder: Path) -> None:
        """A model version that points at the exported folder; a repeat finds the version of the same run."""
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        if not self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
            self._client.create_model_version(name, source=folder.as_uri(), run_id=run_id)


def _metrics(entry: Entry) -> list[Any]:
    from mlflow.entities import Metric

    if entry.kind == "phase":
        return []
    keys = EVALUATION_METRICS if entry.kind == "evaluation" else [key for key in entry.fields if key != "step"]
    return [Metric(key, float(entry.fields[key]), entry.time_ms, entry.fields["step"]) for key in keys]


@contextmanager
def _remembered(run: TrackedRun) -> Iterator[None]:
    """Notes in the run's state file whatever was acknowledged, also when a later call fails."""
    before = asdict(run.sent)
    try:
        yield
    finally:
        if asdict(run.sent) != before:
            write_json(run.state_file, asdict(run.sent))


@contextmanager
def _database_lock(uri: str) -> Iterator[None]:
    """Two processes must not create the tables of one SQLite file at once."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        yield


def _groups(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters: dotted keys, text values."""
    flat: dict[str, str] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = str(value)
    return flat
