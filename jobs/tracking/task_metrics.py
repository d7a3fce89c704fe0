"""What tasks came to after a cell was finished, for the MLflow run that it has in each of its jobs."""

from collections.abc import Mapping
from pathlib import Path

from jobs.tracking.runs import open_writer
from jobs.tracking.sync import find_uri
from orchestrator.errors import ClusterError
from orchestrator.layout import Storage
from orchestrator.tracking.run import TrackedRun, described_runs
from orchestrator.tracking.sender import instead_of_driver

LIMIT_S = 120.0


def log_task_metrics(storage: Path, cell_id: str, metrics: Mapping[str, float]) -> list[str]:
    """Adds the metrics to the summary of the cell's runs; returns the ids of those runs.

    A job whose driver is at work is left alone. Raises ClusterError where MLflow does not take them.
    """
    ids = []
    for job in Storage(storage).tracked_jobs():
        if not job.child_run(cell_id).exists():
            continue
        with instead_of_driver(job.path) as is_alone:
            runs = [run for run in described_runs(job.tracking) if run.name == cell_id and run.status != "RUNNING"]
            if is_alone and runs:
                ids.append(_send(storage, runs[0], metrics))
    return ids


def _send(storage: Path, run: TrackedRun, metrics: Mapping[str, float]) -> str:
    destination = (run.parent or run).destination
    assert destination is not None, "described runs have one"
    uri = find_uri(destination)
    if uri is None:
        raise ClusterError(f"set MLFLOW_TRACKING_URI to {destination.address} with its password, which is kept nowhere")
    run.summary |= metrics
    run.artifacts = tuple(file for file in run.artifacts if file.exists())
    writer = open_writer(uri, destination.experiment, storage)
    if run.parent is not None:
        writer.track(run.parent)
    writer.track(run)
    writer.start()
    unsent = writer.close(LIMIT_S)
    writer.wait_until_silent()
    if unsent or writer.problems or run.sent.run_id is None:
        why = "; ".join(writer.problems) or writer.unreachable or "it does not answer"
        raise ClusterError(
            f"MLflow at {destination.address} did not take the metrics of {run.name}: {why}; run `backbone sync` later"
        )
    return run.sent.run_id
