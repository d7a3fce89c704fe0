"""Syncs every job that is over, one after the other, in a process of its own: the dispatcher never waits for MLflow."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jobs.queue.rows import JobRow
from jobs.tracking.sync import DRIVER_DIED, LIMIT_S
from orchestrator.layout import Storage

GRACE_S = 60.0  # beyond the limit that a sync sets itself
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 600.0


@dataclass(frozen=True)
class _Sync:
    """One that runs."""

    job: JobRow
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    began_s: float


class Reconciler:
    """Call `step` once a second; it starts at most one process at a time and waits for none.

    What is done is noted in the storage by the sync itself, so a new dispatcher does it at most once more.
    """

    def __init__(self, limit_s: float = LIMIT_S, clock: Callable[[], float] = time.monotonic):
        self._limit_s, self._clock = limit_s, clock
        self._done: set[tuple[str, float | None]] = set()
        self._backoff: dict[str, tuple[float, float]] = {}  # job: when it is tried again, and how long that wait was
        self._running: _Sync | None = None
        self.trouble = ""  # what the last sync could not do

    def step(self, jobs: Sequence[JobRow]) -> None:
        """Looks after the sync that runs, else starts the next one."""
        if self._running is not None:
            self._look_after(self._running)
            return
        over = (job for job in jobs if job.state.is_over and _key(job) not in self._done)
        if (job := next((job for job in over if self._is_due(job)), None)) is not None:
            self._start(job)

    def expedite(self, jobs: Sequence[JobRow]) -> list[str]:
        """Forgets every backoff; the jobs that are still to be synced."""
        self._backoff.clear()
        return [job.job_id for job in jobs if job.state.is_over and not _is_done(job)]

    @property
    def is_at_work(self) -> bool:
        """Whether a sync runs."""
        return self._running is not None

    def close(self) -> None:
        """Ends the sync that runs; another one continues it."""
        if self._running is not None:
            self._end(self._running)

    def _is_due(self, job: JobRow) -> bool:
        if self._clock() < self._backoff.get(job.job_id, (0.0, 0.0))[0]:
            return False
        if _is_done(job):
            self._done.add(_key(job))
            return False
        return True

    def _start(self, job: JobRow) -> None:
        command = [sys.executable, "-m", "jobs.tracking.sync", "--storage", job.storage, "--job", job.job_id]
        command += ["--limit", str(self._limit_s), f"--reason={job.reason or DRIVER_DIED}"]
        output = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._running = _Sync(job, process, output, self._clock())

    def _look_after(self, sync: _Sync) -> None:
        is_late = self._clock() - sync.began_s > self._limit_s + GRACE_S
        if sync.process.poll() is None and not is_late:
            return
        said = self._end(sync)
        if _is_done(sync.job):
            self._backoff.pop(sync.job.job_id, None)
            self.trouble = ""
            return
        backoff_s = min(LONGEST_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * self._backoff.get(sync.job.job_id, (0.0, 0.0))[1]))
        self._backoff[sync.job.job_id] = (self._clock() + backoff_s, backoff_s)
        self.trouble = f"sync, tried again in {backoff_s:.0f} s: {said}"

    def _end(self, sync: _Sync) -> str:
        """Makes sure that it is over; what it said."""
        sync.process.kill()
        sync.process.wait()
        self._running = None
        with sync.output as output:
            output.seek(0)
            return output.read().decode(errors="replace").strip()[-500:]


def _key(job: JobRow) -> tuple[str, float | None]:
    return job.job_id, job.ended_s


def _is_done(job: JobRow) -> bool:
    """Whether MLflow has everything of a job, or was never to hear of it."""
    files = Storage(Path(job.storage)).job(job.job_id)
    return not files.tracking.exists() or files.synced.exists()
