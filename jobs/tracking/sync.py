"""`python -m jobs.tracking.sync --storage DIR`: gives MLflow what it lacks of the jobs whose drivers are gone.

A driver sends its runs itself. One that was killed, or ended while MLflow was down, leaves behind what it spooled and
what it wrote down of its runs; this sends the rest with the same writer, and ends runs that nobody trains any more.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.tracking.runs import open_writer, take_result
from orchestrator.errors import InputError, OrchestratorError
from orchestrator.layout import JobFolder, Storage
from orchestrator.results import CellResult, find_cell_result, write_json
from orchestrator.tracking.run import (
    HIDDEN,
    Destination,
    TrackedRun,
    describe,
    described_runs,
    recall_sent,
    without_password,
)
from orchestrator.tracking.sender import driver_waits, instead_of_driver
from orchestrator.tracking.spool import read_spool

LIMIT_S = 600.0
DRIVER_DIED = "its driver died"
PASSWORD_HELP = (
    "its runs belong to MLflow at {address}, whose password is kept nowhere; set MLFLOW_TRACKING_URI to that address "
    "with its password"
)
ENDED_BECAUSE, ENDED_NOTICED = "ended_because", "ended_noticed"  # tags of runs that no driver ended


@dataclass
class JobSync:
    """What a sync found and did for one job."""

    job_id: str
    is_live: bool = False  # its driver sends by itself
    ended: list[TrackedRun] = field(default_factory=list)  # runs that only looked as if they were running
    sent: int = 0  # runs that MLflow did not have in full, and has now
    unsent: list[TrackedRun] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_in_order(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.is_live or self.ended or self.sent or self.unsent or self.problems)

    def __str__(self) -> str:
        if self.is_live:
            return f"{self.job_id}: a driver is at work on it and sends by itself"
        ended = ", ".join(f"{run.name} {run.status}" for run in self.ended)
        parts = [
            f"{self.sent} of its runs brought up to date" if self.sent else "",
            f"{len(self.unsent)} of its runs not sent in full" if self.unsent else "",
            f"ended: {ended}" if ended else "",
            *self.problems,
        ]
        return f"{self.job_id}: {'; '.join(filter(None, parts))}"


@dataclass(frozen=True)
class Outcome:
    """What a sync came to. Exit code 1: some of it is still to be sent; the same call continues."""

    jobs: tuple[JobSync, ...]

    @property
    def exit_code(self) -> int:
        return 1 if any(job.unsent or job.problems for job in self.jobs) else 0


def sync(
    storage: Path,
    job_ids: Sequence[str] | None,
    limit_s: float,
    console: Console,
    reason: str = DRIVER_DIED,
) -> Outcome:
    """Brings MLflow up to date with a storage, or with some of its jobs; what a living driver does is left alone.

    `reason` is told of runs that neither a driver nor a result ended. Idempotent. Raises InputError.
    """
    deadline = time.monotonic() + limit_s
    silent: set[str] = set()  # addresses where nothing answered: asked once, not once a job
    jobs = []
    for folder in _job_folders(storage, job_ids):
        jobs.append(_sync_job(folder, storage, deadline, reason, silent))
        if not jobs[-1].is_in_order:
            console.print(str(jobs[-1]), highlight=False, markup=False, soft_wrap=True)
    whole = sum(not (job.is_live or job.unsent or job.problems) for job in jobs)
    console.print(f"MLflow has everything of {whole} of {len(jobs)} jobs", highlight=False)
    return Outcome(tuple(jobs))


def _job_folders(storage: Path, job_ids: Sequence[str] | None) -> list[Path]:
    """The folders of jobs that told of MLflow runs."""
    known = [job.path for job in Storage(storage).tracked_jobs()]
    names = [folder.name for folder in known]
    for job_id in job_ids or ():
        if job_id not in names:
            raise InputError(
                f"{storage} has no job {job_id!r} with MLflow runs; it has: {', '.join(names[-10:]) or 'none'}"
            )
    return [folder for folder in known if job_ids is None or folder.name in job_ids]


def _sync_job(folder: Path, storage: Path, deadline: float, reason: str, silent: set[str]) -> JobSync:
    job = JobSync(folder.name)
    with instead_of_driver(folder) as is_alone:
        job.is_live = not is_alone
        if is_alone:
            runs = described_runs(JobFolder(folder).tracking)
            job.ended = [run for run in runs if _end(run, runs, reason)]
            for destination, group in _by_destination(runs):
                _send(job, folder, storage, destination, group, deadline, silent)
            if not job.unsent and not job.problems:
                write_json(JobFolder(folder).synced, {"runs": len(runs)})
    return job


def _end(run: TrackedRun, runs: Sequence[TrackedRun], reason: str) -> bool:
    """Ends a run that its driver left open: as its cell ended, else KILLED. Whether that was so is returned."""
    if run.status != "RUNNING" and ENDED_BECAUSE not in run.tags:
        return False
    if (result := _find_result(run)) is not None:
        run.tags = {key: value for key, value in run.tags.items() if key not in (ENDED_BECAUSE, ENDED_NOTICED)}
        take_result(run, result)
        run.status = result.status.mlflow_status
    elif run.status == "RUNNING":
        run.tags |= {ENDED_BECAUSE: reason, ENDED_NOTICED: datetime.now(UTC).isoformat(timespec="seconds")}
        run.ended_ms = _last_sign_ms(run, runs)
        run.status = "KILLED"
    else:
        return False
    describe(run)
    return True


def _find_result(run: TrackedRun) -> CellResult | None:
    """The result of a run's cell, unless an attempt began after it."""
    if run.spool_folder is None:
        return None
    folder = run.spool_folder.parent
    result = find_cell_result(folder)
    is_newest = result is not None and result.attempts >= int(run.tags["attempt"])
    return replace(result, folder=str(folder)) if result is not None and is_newest else None


def _last_sign_ms(run: TrackedRun, runs: Sequence[TrackedRun]) -> int:
    """When the last was heard of a run, or of its children."""
    spools = [one.spool_folder for one in runs if one is run or one.parent is run]
    heard = [entry.time_ms for spool in spools if spool is not None for entry in read_spool(spool)]
    return max([run.began_ms, *heard])


def _by_destination(runs: Sequence[TrackedRun]) -> Iterator[tuple[Destination, list[TrackedRun]]]:
    """Runs with where they belong: children go where their parent is."""

    def destination(run: TrackedRun) -> Destination:
        found = (run.parent or run).destination
        assert found is not None
        return found

    ordered = sorted(runs, key=lambda run: (destination(run).address, destination(run).experiment))
    return ((place, list(group)) for place, group in groupby(ordered, key=destination))


def _send(
    job: JobSync,
    folder: Path,
    storage: Path,
    destination: Destination,
    runs: list[TrackedRun],
    deadline: float,
    silent: set[str],
) -> None:
    """Sends what is missing of a job's runs at one place."""
    for run in runs:
        run.sent = recall_sent(run, destination.address)
    missing = [run for run in runs if not run.is_settled]
    if not missing:
        return
    uri = find_uri(destination)
    if uri is None or destination.address in silent:
        job.unsent += missing
        job.problems += [] if uri else [PASSWORD_HELP.format(address=destination.address)]
        return
    job.problems += [f"{file} is gone" for run in missing for file in run.artifacts if not file.exists()]
    writer = open_writer(uri, destination.experiment, storage)
    for run in missing:
        writer.track(run)
        run.artifacts = tuple(file for file in run.artifacts if file.exists())
    writer.start()
    unsent = writer.close(deadline - time.monotonic(), is_unwanted=lambda: driver_waits(folder))
    writer.wait_until_silent()
    job.unsent += unsent
    job.sent += len(missing) - len(unsent) - len(writer.problems)
    job.problems += [f"MLflow refused {problem}" for problem in writer.problems]
    if writer.unreachable is not None:
        silent.add(destination.address)
        job.problems.append(f"MLflow at {destination.address} does not answer ({writer.unreachable}); nothing is lost")


def find_uri(destination: Destination) -> str | None:
    """The URI of a destination; one with a password comes from the environment, since none is ever written down."""
    if HIDDEN not in destination.address:
        return destination.address
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri if without_password(uri) == destination.address else None


def main(
    storage: Annotated[Path, typer.Option(help="The folder with the jobs' results.")],
    job: Annotated[list[str] | None, typer.Option(help="Only this job; may be repeated.")] = None,
    reason: Annotated[str, typer.Option(help="What is told of runs that nothing else ended.")] = DRIVER_DIED,
    limit: Annotated[float, typer.Option(help="Seconds after which the rest is left to the next call.")] = LIMIT_S,
) -> None:
    """Gives MLflow what it lacks of the jobs whose drivers are gone."""
    try:
        outcome = sync(storage.expanduser().absolute(), job or None, limit, Console(), reason)
    except OrchestratorError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    raise typer.Exit(outcome.exit_code)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
