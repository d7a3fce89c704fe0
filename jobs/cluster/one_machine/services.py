"""Processes that outlive the command that starts them, and that are found again without mistake.

A service's processes inherit a mark that no other process has. Ray's workers overwrite their environment when they
rename themselves, so a process that writes into the service's own folder belongs to it too.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.errors import ResourcesError

MARK = "BACKBONE_SERVICE"
LOG = "output.log"
KILL_LIMIT_S = 20.0


@dataclass(frozen=True)
class Service:
    """One service as the state file keeps it. `pid` and `started_s` are its first process, None before that starts."""

    name: str
    mark: str
    folder: str  # only this service writes there
    pid: int | None = None
    started_s: float | None = None  # seconds since the epoch, as the system tells it of the process

    @property
    def log(self) -> Path:
        return Path(self.folder) / LOG


def start(service: Service, command: Sequence[str], environment: Mapping[str, str]) -> Service:
    """Starts the first process in a session of its own, so that no terminal ends it."""
    with open(service.log, "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=service.folder,
            env={**environment, MARK: service.mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Service(service.name, service.mark, service.folder, process.pid, psutil.Process(process.pid).create_time())


def is_running(service: Service) -> bool:
    """Whether its first process lives: the same pid, started at the same time."""
    if service.pid is None or service.started_s is None:
        return False
    try:
        process = psutil.Process(service.pid)
        return abs(process.create_time() - service.started_s) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_of(service: Service) -> list[psutil.Process]:
    """Every living process of a service, by its mark or by what it writes; never this one."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _is_of(process, service)]


def stop(service: Service, patience_s: float) -> int:
    """Ends a service: asks its first process, or all where that is gone, then kills. Returns how many processes it had.

    Raises ResourcesError when one cannot be killed.
    """
    living = processes_of(service)
    first = [process for process in living if process.pid == service.pid and is_running(service)]
    for process in first or living:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(living, timeout=patience_s)
    for _ in range(10):  # a process may start another one while it is found
        rest = processes_of(service)
        if not rest:
            return len(living)
        for process in rest:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(rest, timeout=KILL_LIMIT_S / 10)
    names = ", ".join(str(process.pid) for process in processes_of(service))
    raise ResourcesError(f"{service.name} does not end: the processes {names} survive SIGKILL; see `ps -o stat,wchan`")


def last_lines(service: Service, number: int = 15) -> str:
    """The end of what a service printed."""
    if not service.log.exists():
        return ""
    return "\n".join(service.log.read_text(encoding="utf-8", errors="replace").splitlines()[-number:])


def _is_of(process: psutil.Process, service: Service) -> bool:
    try:
        if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.environ().get(MARK) == service.mark:
            return True
        files = process.open_files()
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False
    return any(file.mode != "r" and file.path.startswith(f"{service.folder}/") for file in files)
