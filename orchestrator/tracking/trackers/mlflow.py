"""MLflow: a server, or the database of one. The only file that knows it.

Identical rows are stored once there, so whatever may have been sent is sent again.
"""

import itertools
import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from orchestrator.layout import EXPORT_MANIFEST
from orchestrator.results import write_json
from orchestrator.tracking.run import TrackedDataset, TrackedRun
from orchestrator.tracking.spool import Entry, read_from
from orchestrator.tracking.system import Sample
from orchestrator.tracking.tracker import Forgotten, Refused, register

METRICS_PER_REQUEST = 1000  # MLflow takes no more
ENTRIES_PER_BATCH = 50  # of a spool, whose lines have a dozen metrics
CHAMPION = "champion"
GONE = "RESOURCE_DOES_NOT_EXIST"
PERMANENT_ERRORS = ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED", GONE)


class MlflowTracker:
    """One connection: the experiment and the calls that bring a run up to date, each safe to repeat."""

    def __init__(self, uri: str, experiment: str, artifact_folder: Path):
        # The writer retries for as long as it takes, and what an unanswered request left behind is looked for before
        # it is repeated. MLflow's own retries do neither: seven with backoff delay every answer, and a repeated
        # create_run creates two runs.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self._exception: type[Exception] = MlflowException
        with _database_lock(uri):
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            local = artifact_folder.as_uri() if uri.startswith("sqlite:") else None
            self._is_server = uri.startswith(("http:", "https:"))
            self._experiment_id = found.experiment_id if found else self._client.create_experiment(experiment, local)

    def bring_up_to_date(self, run: TrackedRun) -> None:
        """Creates the run if need be, then sends tags, parameters, new spool entries and the final status."""
        try:
            self._send(run)
        except self._exception as error:
            code = getattr(error, "error_code", "")
            if code == GONE and run.sent.run_id is not None and self._has_lost(run):
                raise Forgotten(f"MLflow lost the run {run.sent.run_id}") from error
            if code in PERMANENT_ERRORS:
                raise Refused(str(error)) from error
            raise

    def _send(self, run: TrackedRun) -> None:
        status = run.status  # read first: whatever is set later has its spool entries sent later
        self._ensure_run(run)
        self._send_tags(run)
        self._send_entries(run, status)
        if status == "RUNNING" != run.sent.status:
            self._client.update_run(run.sent.run_id, status=status)
            run.sent.status = status
        elif status != "RUNNING" and (status != run.sent.status or run.summary != run.sent.summary):
            self._send_outcome(run, status)
        if status != "RUNNING" and run.lacks_model:
            self._register(run)

    def _has_lost(self, run: TrackedRun) -> bool:
        """Whether the server no longer knows a run that was created there: its database is another one now."""
        try:
            self._client.get_run(run.sent.run_id)
        except self._exception as error:
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
            if run.datasets:
                self._client.log_inputs(sent.run_id, datasets=[_dataset(one) for one in run.datasets])
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
        except self._exception as error:  # deleted before, and the answer was lost; or the run itself is gone
            if getattr(error, "error_code", "") != GONE or self._has_lost(run):
                raise

    def _send_entries(self, run: TrackedRun, status: str) -> None:
        if run.spool_folder is None:
            return
        assert run.sent.run_id is not None
        entries = read_from(run.spool_folder, run.sent.offset)
        while group := list(itertools.islice(entries, ENTRIES_PER_BATCH)):
            metrics = [metric for entry, _ in group for metric in _metrics(entry)]
            if metrics:
                self._client.log_batch(run.sent.run_id, metrics=metrics)
            run.sent.offset = group[-1][1]
        if status != "RUNNING" or _has_own_metrics(run.spool_folder, run.sent.offset):
            self._send_samples(run)

    def _send_samples(self, run: TrackedRun) -> None:
        samples = run.unsent_samples()
        while some := list(itertools.islice(samples, ENTRIES_PER_BATCH)):
            metrics = [metric for machine, sample, _ in some for metric in _system_metrics(machine, sample)]
            for part in _groups(metrics, METRICS_PER_REQUEST):
                self._client.log_batch(run.sent.run_id, metrics=part)
            run.sent.samples |= {machine: end for machine, _, end in some}

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
        lines = [
            Metric(key, point.value, point.time_ms, point.step) for key, line in run.series.items() for point in line
        ]
        for part in _groups(lines, METRICS_PER_REQUEST):
            self._client.log_batch(sent.run_id, metrics=part)
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
        version = next((version for version in versions if version.tags.get("folder") == str(folder)), None)
        if version is None:
            source = folder.as_uri()
            if self._is_server:
                self._client.log_artifact(run_id, str(folder / EXPORT_MANIFEST), "export")
                source = f"runs:/{run_id}/export"
            version = self._client.create_model_version(
                name, source=source, run_id=run_id, tags={"folder": str(folder)}
            )
        self._crown(version)
        run.sent.model = [name, str(folder)]

    def _crown(self, version: Any) -> None:
        """The alias `champion`: the best score on the held-out data on which the first one was scored."""
        holder = self._client.get_registered_model(version.name).aliases.get(CHAMPION)
        if holder is not None:
            held = self._client.get_model_version(version.name, str(holder))
            ours, theirs = self._score(version.run_id), self._score(held.run_id)
            if theirs is not None and (ours is None or ours[0] != theirs[0] or ours[1] >= theirs[1]):
                return
        self._client.set_registered_model_alias(version.name, CHAMPION, version.version)

    def _score(self, run_id: str) -> tuple[str, float] | None:
        """On which held-out data a run scored how many bits per byte; None where MLflow does not have both."""
        try:
            run = self._client.get_run(run_id)
        except self._exception as error:
            if getattr(error, "error_code", "") != GONE:
                raise
            return None  # somebody deleted it for good
        held_out = [
            one.dataset.digest for one in run.inputs.dataset_inputs if {tag.value for tag in one.tags} == {"validation"}
        ]
        score = run.data.metrics.get("val_bits_per_byte")
        return (held_out[0], score) if held_out and score is not None else None


def _dataset(one: TrackedDataset) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    counts = {"examples": one.examples, "learnable_bytes": one.learnable_bytes}
    profile = json.dumps(counts | ({"images": one.images} if one.images else {}))
    kind, key = ("hugging_face", "path") if one.reference.startswith("hf-dataset:") else ("local", "uri")
    name, source = one.reference.rsplit("/", 1)[-1], json.dumps({key: one.reference})
    dataset = Dataset(name[:500], one.digest[:36], kind, source, profile=profile)  # MLflow takes no longer ones
    return DatasetInput(dataset, [InputTag("mlflow.data.context", one.use)])


def _has_own_metrics(spool_folder: Path, offset: int) -> bool:
    """Whether a figure of the run's own was sent. Those of its machine come later.

    MLflow's page that compares runs draws the metric which it was told of first: the score before training.
    """
    return any(entry.metrics and end <= offset for entry, end in read_from(spool_folder, 0))


def _metrics(entry: Entry) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(key, value, entry.time_ms, entry.fields["step"]) for key, value in entry.metrics.items()]


def _system_metrics(machine: str, sample: Sample) -> list[Any]:
    """Under the names that MLflow's page shows as system metrics, by node."""
    from mlflow.entities import Metric

    values = sample.values.items()
    return [Metric(f"system/{machine}/{name}", value, sample.time_ms, sample.step) for name, value in values]


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


register(MlflowTracker, "http://", "https://", "sqlite://", "postgresql", "mysql", "mssql", "databricks")
