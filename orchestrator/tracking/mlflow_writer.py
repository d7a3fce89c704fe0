"""Sends spools to MLflow from a thread of the driver: acknowledged, resumable, and never in the way of training.

Workers do not know MLflow. What was acknowledged is remembered in a state file per run; after a crash between
acknowledgement and note the same rows are sent again, byte for byte, and MLflow stores identical rows once.
"""

import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from orchestrator.layout import EXPORT_MANIFEST
from orchestrator.results import StepMetrics, write_json
from orchestrator.tracking.run import Destination, Sent, describe, recall_sent, without_password
from orchestrator.tracking.run import TrackedRun as TrackedRun  # what callers hand over
from orchestrator.tracking.spool import Entry, read_from

# Our loop retries for as long as it takes, and looks for what an unanswered request left behind before it repeats it.
# MLflow's own retries do neither: seven with backoff delay every answer, and a repeated create_run creates two runs.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

ENTRIES_PER_BATCH = 50  # MLflow takes 1,000 metrics a request
INTERVAL_S = 1.0
LONGEST_WAIT_S = 10.0
UNREACHABLE_LIMIT_S = 30.0  # how long `close` waits for a server that does not answer: a restart, not an outage
EVALUATION_METRICS = ("val_bits_per_byte", "val_loss")
STREAMED_METRICS = (*(field.name for field in fields(StepMetrics) if field.name != "step"), *EVALUATION_METRICS)
GONE = "RESOURCE_DOES_NOT_EXIST"
PERMANENT_ERRORS = ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED", GONE)


class MlflowWriter:
    """Owns the connection to one MLflow server and a thread that brings every tracked run up to date."""

    def __init__(self, uri: str, experiment: str, artifact_folder: Path):
        self._uri, self._experiment, self._artifact_folder = uri, experiment, artifact_folder
        self._destination = Destination(without_password(uri), experiment)
        self._runs: list[TrackedRun] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._hurried = threading.Event()
        self._session: _Session | None = None
        self._thread = threading.Thread(target=self._loop, name="mlflow-writer", daemon=True)
        self.unreachable: str | None = None  # why the last attempt failed, while it does

    def start(self) -> None:
        """Starts sending in the background."""
        self._thread.start()

    def track(self, run: TrackedRun) -> TrackedRun:
        """Takes a run over, remembering what an earlier process already sent to the same server."""
        run.sent = recall_sent(run, self._destination.address)
        run.destination = self._destination
        describe(run)
        with self._lock:
            self._runs.append(run)
        self._wake.set()
        return run

    def finish(self, run: TrackedRun, status: str) -> None:
        """Gives the run its terminal status, to be sent after everything else."""
        run.ended_ms = run.ended_ms or time.time_ns() // 1_000_000
        run.status = status
        if run.destination is not None:
            describe(run)
        self._wake.set()

    def close(self, timeout_s: float, is_unwanted: Callable[[], bool] = lambda: False) -> list[TrackedRun]:
        """Waits until everything is acknowledged, at most `timeout_s`; returns the runs that are not settled.

        Waits less for a server that does not answer, and not at all once `expedite` was called or it `is_unwanted`.
        """
        started = time.monotonic()

        def time_left() -> float:
            limit = timeout_s if self.unreachable is None else min(timeout_s, UNREACHABLE_LIMIT_S)
            return 0.0 if self._hurried.is_set() or is_unwanted() else started + limit - time.monotonic()

        self._wake.set()
        while self._thread.is_alive() and self._open_runs() and time_left() > 0:
            self._hurried.wait(0.05)
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)  # it may be in the middle of a request; what that sends is sent again
        return self._open_runs()

    def wait_until_silent(self) -> None:
        """After `close`: waits for the run whose turn it is; nothing is sent afterwards."""
        self._thread.join()

    def expedite(self) -> None:
        """Makes `close` return at once."""
        self._hurried.set()

    @property
    def is_hurried(self) -> bool:
        """Whether `expedite` was called."""
        return self._hurried.is_set()

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
            self._wake.clear()
            try:
                for run in self._open_runs():
                    if self._closing.is_set():
                        return
                    self._bring_up_to_date(run)
                wait, self.unreachable = INTERVAL_S, None
                self._wake.wait(wait)
            except Exception as error:  # the server's absence takes many shapes; all of them mean: try again later
                said = (str(error).strip() or repr(error)).replace(self._uri, self._destination.address)
                self.unreachable = said.splitlines()[0][:300]
                wait = min(wait * 2, LONGEST_WAIT_S)
                self._closing.wait(wait)

    def _bring_up_to_date(self, run: TrackedRun) -> None:
        # Connects when there is something to send, so that a launch with nothing to do does not import MLflow.
        session = self._session = self._session or _Session(self._uri, self._experiment, self._artifact_folder)
        try:
            session.bring_up_to_date(run)
        except session.exception as error:
            code = getattr(error, "error_code", "")
            if code == GONE and run.sent.run_id is not None and session.has_lost(run):
                run.sent, self._session = (
                    Sent(uri=self._destination.address),
                    None,
                )  # another database answers there now: start over
            elif code in PERMANENT_ERRORS:
                run.problem = str(error)
            else:
                raise


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
            self._is_server = uri.startswith(("http:", "https:"))
            self._experiment_id = found.experiment_id if found else self._client.create_experiment(experiment, local)

    def bring_up_to_date(self, run: TrackedRun) -> None:
        """Creates the run if need be, then sends tags, parameters, new spool entries and the final status."""
        if run.parent is not None and run.parent.sent.run_id is None:  # its turn comes after the parent's
            run.problem = run.parent.problem
            return
        with _remembered(run):
            status = run.status  # read first: whatever is set later has its spool entries sent later
            self._ensure_run(run)
            self._send_tags(run)
            self._send_entries(run)
            if status == "RUNNING" != run.sent.status:
                self._client.update_run(run.sent.run_id, status=status)
                run.sent.status = status
            elif status != "RUNNING" and (status != run.sent.status or run.summary != run.sent.summary):
                self._send_outcome(run, status)
            if status != "RUNNING" and run.lacks_model:
                self._register(run)

    def has_lost(self, run: TrackedRun) -> bool:
        """Whether the server no longer knows a run that was created there: its database is another one now."""
        try:
            self._client.get_run(run.sent.run_id)
        except self.exception as error:
            if getattr(error, "error_code", "") != GONE:
                raise
            return True
        return False

    def _ensure_run(self, run: TrackedRun) -> None:
        from mlflow.entities import Param

        sent = run.sent
        is_first_try = not sent.creation_id
        if is_first_try:
            sent.creation_id = uuid.uuid4().hex
            write_json(run.state_file, asdict(sent))
        if sent.run_id is None:
            parent = {"mlflow.parentRunId": run.parent.sent.run_id} if run.parent and run.parent.sent.run_id else {}
            said = run.tags.copy()
            tags = {**said, **parent, "creation_id": sent.creation_id}
            found = [] if is_first_try else self._created(sent.creation_id)
            created = (
                found[0]
                if found
                else self._client.create_run(self._experiment_id, run.began_ms, tags=tags, run_name=run.name)
            )
            sent.run_id, sent.tags, sent.sole = created.info.run_id, {} if found else said, is_first_try
            sent.status = "RUNNING"  # so MLflow makes them
        if not sent.params:
            # of an earlier try whose answer was lost
            known = {} if is_first_try else self._client.get_run(sent.run_id).data.params
            params = [Param(key, value[:6000]) for key, value in run.params.items() if key not in known]
            for group in _groups(params, 100):
                self._client.log_batch(sent.run_id, params=group)
            sent.params = True

    def _created(self, creation_id: str) -> list[Any]:
        """The runs of one creation, oldest first: more than one only if a server answered too late."""
        query = f"tags.creation_id = '{creation_id}'"
        return list(self._client.search_runs([self._experiment_id], query, order_by=["attributes.start_time ASC"]))

    def _send_tags(self, run: TrackedRun) -> None:
        from mlflow.entities import RunTag

        assert run.sent.run_id is not None
        tags, sent = run.tags.copy(), run.sent
        for key in sent.tags.keys() - tags.keys():  # said of an end that was not the last word
            self._delete_tag(run, key)
            del sent.tags[key]
        new = {key: value for key, value in tags.items() if sent.tags.get(key) != value}
        if new:
            self._client.log_batch(sent.run_id, tags=[RunTag(key, value) for key, value in new.items()])
            sent.tags = {**sent.tags, **new}

    def _delete_tag(self, run: TrackedRun, key: str) -> None:
        try:
            self._client.delete_tag(run.sent.run_id, key)
        except self.exception as error:  # deleted before, and the answer was lost; or the run itself is gone
            if getattr(error, "error_code", "") != GONE or self.has_lost(run):
                raise

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

    def _send_outcome(self, run: TrackedRun, status: str) -> None:
        from mlflow.entities import Metric

        sent, summary = run.sent, dict(run.summary)
        assert sent.run_id is not None
        for late in [] if sent.sole else self._created(sent.creation_id):
            if late.info.run_id != sent.run_id:
                self._client.delete_run(late.info.run_id)
        if summary:
            metrics = [Metric(key, value, run.summary_time_ms, 0) for key, value in summary.items()]
            self._client.log_batch(sent.run_id, metrics=metrics)
        for artifact in run.artifacts:
            self._client.log_artifact(sent.run_id, str(artifact))
        self._client.set_terminated(sent.run_id, status, run.ended_ms or None)
        sent.status, sent.summary = status, summary

    def _register(self, run: TrackedRun) -> None:
        """A model version that points at the exported folder; a repeat finds the version of the same run and folder.

        A server refuses a folder as the source of a version: there the source is the run's copy of the manifest, and
        the version's tag `folder` says where the model is.
        """
        assert run.registered_model is not None
        assert run.sent.run_id is not None
        (name, folder), run_id = run.registered_model, run.sent.run_id
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        versions = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if not any(version.tags.get("folder") == str(folder) for version in versions):
            source = folder.as_uri()
            if self._is_server:
                self._client.log_artifact(run_id, str(folder / EXPORT_MANIFEST), "export")
                source = f"runs:/{run_id}/export"
            self._client.create_model_version(name, source=source, run_id=run_id, tags={"folder": str(folder)})
        run.sent.model = [name, str(folder)]


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
