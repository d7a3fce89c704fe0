"""`compare`, `finetune`, `benchmark` as functions: what the commands of those names do, in a process of its own.

With the address of a job API (given, or in RAY_ADDRESS) a job goes into that cluster's queue as `backbone submit`
sends it; else `python -m jobs.<kind>` runs here, on its own Ray or on the cluster of RAY_ADDRESS.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.cli.app import require_feasible
from jobs.dispatch.client import Benchmark, QueueClient, Submission, default_address
from jobs.driver.kinds.benchmark import MEASURED, WARM_UP, load_benchmark, new_occurrence
from jobs.notebook.local import run_here
from jobs.notebook.results import BenchmarkResult, JobResult, load_report
from jobs.notebook.specs import Spec, load_plugins, spec_file
from orchestrator.errors import ClusterError, JobError
from orchestrator.planning.plan import Plan, check_spec, load_comparison, load_finetune

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

Loaded = Callable[[Path], Plan]


def compare(
    spec: Spec | None = None,
    *,
    address: str | None = None,
    insecure_cluster: bool = False,
    plugins: Sequence[str] = (),
    skip_infeasible: bool = False,
    certificate: bool = True,
    keep_finished: bool = False,
    **keys: Any,
) -> JobResult:
    """Trains every backbone under one recipe, and says which wins and how sure that is.

    `spec` is the path of a YAML file or a dict; `keys` are the spec's own (`name`, `backbones`, `recipe`, ...) and
    stand over it. Blocks, and prints the job's progress. An interruption leaves the job running; the same call follows
    it, or continues it if it ended. Raises SpecError before anything starts, ClusterError, JobError.
    """
    file = spec_file(spec, keys)
    submission = Submission(
        file,
        plugins=load_plugins(tuple(plugins)),
        skip_infeasible=skip_infeasible,
        certificate=certificate,
        keep_finished=keep_finished,
    )
    return require_success(_run(submission, load_comparison, address, insecure_cluster))


def finetune(
    spec: Spec | None = None,
    *,
    address: str | None = None,
    insecure_cluster: bool = False,
    plugins: Sequence[str] = (),
    skip_infeasible: bool = False,
    **keys: Any,
) -> JobResult:
    """Trains one backbone with the same engine, and exports it. Otherwise as `compare`."""
    file = spec_file(spec, keys)
    submission = Submission(file, plugins=load_plugins(tuple(plugins)), skip_infeasible=skip_infeasible)
    return require_success(_run(submission, load_finetune, address, insecure_cluster))


def benchmark(
    spec: Spec | None = None,
    *,
    steps: int = MEASURED,
    warmup: int = WARM_UP,
    occurrence: str | None = None,
    address: str | None = None,
    insecure_cluster: bool = False,
    plugins: Sequence[str] = (),
    skip_infeasible: bool = False,
    **keys: Any,
) -> BenchmarkResult:
    """Measures how fast the backbones of a comparison train. Every call measures anew, unless `occurrence` names one.

    Otherwise as `compare`.
    """
    file = spec_file(spec, keys)
    measured = Benchmark(warmup, steps, occurrence or new_occurrence())
    submission = Submission(
        file, plugins=load_plugins(tuple(plugins)), skip_infeasible=skip_infeasible, benchmark=measured
    )

    def load(path: Path) -> Plan:
        return load_benchmark(path, measured.warm_up, measured.measured, measured.occurrence)

    result = load_report(_run(submission, load, address, insecure_cluster))
    assert isinstance(result, BenchmarkResult)
    return result


def _run(submission: Submission, load: Loaded, address: str | None, insecure: bool) -> Path:
    """Runs a job to its end; the folder of its report."""
    if address is None and default_address() in (os.environ.get(name) for name in ADDRESSES):
        address = default_address()
    if address is not None:
        return _run_in_queue(submission, address, insecure)
    planned = replace(load(submission.spec), plugins=submission.plugins)
    require_feasible(planned, submission.skip_infeasible)
    return run_here(planned, submission)


def _run_in_queue(submission: Submission, address: str, insecure: bool) -> Path:
    check_spec(submission.spec)  # what is wrong with the file is told before anything travels
    client = QueueClient(address, insecure)
    job = client.submit(submission)
    job_id, folder = job["job_id"], Path(job["storage"]) / job["job_id"]
    print(f"{job_id}: submitted to {address}; results go to {folder}", flush=True)
    try:
        for text in client.follow(job_id):
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        print(
            f"\n{job_id} goes on at {address}. Make the same call again to follow it; `backbone status {job_id}` shows "
            f"it, `backbone stop {job_id}` ends it at its next checkpoint"
        )
        raise
    ended = client.status(job_id)
    if not folder.is_dir() and ended["state"] == "SUCCEEDED":
        raise ClusterError(
            f"{job_id} succeeded, and its results are in {folder} on the cluster, which this machine does not see; "
            "mount that storage here, or copy the folder and give it to load_report"
        )
    if not folder.is_dir():
        raise JobError(f"{job_id} ended as {ended['state']}: {ended['reason']}; `backbone logs {job_id}` says more")
    return folder


def require_success(folder: Path) -> JobResult:
    """Raises JobError where no cell succeeded, since then there is nothing to look at but the reasons."""
    result = load_report(folder)
    assert isinstance(result, JobResult)
    cells = result.document["cells"]
    if not any(cell["status"] == "SUCCEEDED" for cell in cells):
        reasons = dict.fromkeys(f"{cell['status']}: {(cell['failure'] or '').strip()}" for cell in cells)
        raise JobError(
            f"{result.job_id}: no cell succeeded. {'; '.join(reasons)}. The report is {folder}; load_report opens it, "
            "and the same call tries again what may be tried"
        )
    return result
