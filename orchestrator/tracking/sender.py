"""Who may send a job's runs: its driver while it lives, and somebody else only once it is certainly gone.

Every driver of a job holds a shared lock in the job's folder from start to end; the kernel takes it away from one
that is killed. Whoever wants to send in a driver's place needs the same lock alone, and leaves when a driver waits.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.layout import JobFolder


@contextmanager
def driver_of(job_folder: Path) -> Iterator[None]:
    """Says, to whoever looks, that the job has a living driver. Waits for a sync to leave: one request at most."""
    job_folder.mkdir(parents=True, exist_ok=True)
    with _lock_file(job_folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            (JobFolder(job_folder).driver_waits).touch()
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            (JobFolder(job_folder).driver_waits).unlink(missing_ok=True)
        yield


@contextmanager
def instead_of_driver(job_folder: Path) -> Iterator[bool]:
    """Whether the caller may send the job's runs: no driver lives, and nobody else does the same already."""
    with _lock_file(job_folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        (JobFolder(job_folder).driver_waits).unlink(missing_ok=True)  # of a driver that was killed while it waited
        yield True


def has_driver(job_folder: Path) -> bool:
    """Whether a driver of the job lives, or somebody who sends in its place, which takes seconds."""
    if not JobFolder(job_folder).driver_lock.exists():
        return False
    with _lock_file(job_folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def driver_waits(job_folder: Path) -> bool:
    """Whether a driver wants to begin, and so whoever sends in its place must leave."""
    return (JobFolder(job_folder).driver_waits).exists()


@contextmanager
def _lock_file(job_folder: Path) -> Iterator[int]:
    descriptor = os.open(JobFolder(job_folder).driver_lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
