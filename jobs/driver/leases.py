"""A driver's side of the queue: it says that it lives, hears which cells may train, and gives leases back."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from jobs.cluster.dispatcher import ANSWER_LIMIT_S
from jobs.cluster.ray_cluster import connect
from jobs.driver.counterpart import Counterpart, find_counterpart
from jobs.driver.names import JOB, driver_name
from jobs.queue.reasons import WaitingReason
from jobs.queue.rows import Directives, JobRequest, LeaseRow, Release
from orchestrator.attempt.worker import load_torch
from orchestrator.errors import ClusterError, InputError, ResourcesError, StoreError
from orchestrator.results import CellStatus
from orchestrator.spec_files.spec import Placement

HEARTBEAT_S = 1.0
WAIT_FOR_NODES_S = 20 * 60
ATTACH_LIMIT_S = 180.0


@contextmanager
def hold_leases(placement: Placement, request: JobRequest) -> Iterator["Leases"]:
    """Connects to Ray and joins the queue; the caller calls `finish`. Raises AlreadyRunningError, InputError."""
    import ray

    submitted = os.environ.get(JOB, request.job_id)
    if submitted != request.job_id:
        raise InputError(
            f"this is {request.job_id}, but {submitted} was submitted: the data or a model folder changed since then. "
            "Submit the spec again"
        )
    load_torch()
    connect(placement)
    leases = Leases(find_counterpart(), request, driver_name())
    try:
        leases.start()
        try:
            yield leases
        except BaseException:
            leases.finish(1)
            raise
    finally:
        ray.shutdown()


@dataclass
class Leases:
    """The leases of one driver, kept fresh by a thread that sends heartbeats until `finish`."""

    counterpart: Counterpart
    request: JobRequest
    driver: str
    changed: Callable[[], None] = lambda: None  # called, in the thread, after every answer
    directives: Directives = field(default_factory=lambda: Directives(()))
    problem: str = ""  # why the last heartbeat got no answer
    _released: list[Release] = field(default_factory=list)
    _closed: set[str] = field(default_factory=set)
    _wake: threading.Event = field(default_factory=threading.Event)
    _ended: bool = False

    def start(self) -> None:
        """Attaches; from now on the driver is heard. Raises AlreadyRunningError, InputError, ClusterError."""
        self._attach()
        self._thread = threading.Thread(target=self._send_heartbeats, name="leases", daemon=True)
        self._thread.start()

    def _attach(self) -> None:
        """The dispatcher, or its database, may be starting anew."""
        deadline = time.monotonic() + ATTACH_LIMIT_S
        while True:
            try:
                return self.counterpart.attach(self.request, self.driver)
            except (ClusterError, StoreError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(HEARTBEAT_S)

    def release(self, lease_id: int, cell_id: str, status: CellStatus, note: str = "") -> None:
        """A lease is over; a status that is not terminal asks for another one."""
        if status.is_terminal:
            self._closed.add(cell_id)
        self._released.append(Release(lease_id, status, note))
        self._wake.set()

    def extend(self, request: JobRequest) -> None:
        """Asks for further cells of the same job, once the queue has heard of every lease that is over."""
        deadline = time.monotonic() + ATTACH_LIMIT_S
        while self._released and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.02)
        self.request = request
        self._attach()
        self._wake.set()

    def nodes_of(self, lease: LeaseRow) -> list[str] | None:
        """The node of each worker, or None where Ray may choose."""
        return (
            [node for node, workers in lease.placement for _ in range(workers)] if self.counterpart.is_shared else None
        )

    def finish(self, exit_code: int) -> None:
        """The driver's last word; a second one changes nothing."""
        if self._ended:
            return
        self._ended = True
        self._wake.set()
        self._thread.join(ANSWER_LIMIT_S)
        self._send_heartbeat()
        try:
            self.counterpart.finish(self.request.job_id, self.driver, exit_code)
        except Exception as error:  # it is told once more, by the exit code of this process
            self.problem = str(error)

    def _send_heartbeats(self) -> None:
        while not self._ended:
            self._wake.wait(HEARTBEAT_S)
            self._wake.clear()
            self._send_heartbeat()

    def _send_heartbeat(self) -> None:
        sent = tuple(self._released)
        try:
            answer = self.counterpart.heartbeat(self.request.job_id, self.driver, sent)
            if answer is None:  # its store is new
                cells = tuple(cell for cell in self.request.cells if cell.cell_id not in self._closed)
                self.counterpart.attach(replace(self.request, cells=cells), self.driver)
                del self._released[: len(sent)]  # it numbers its leases anew
                return
            self.problem = ""
        except Exception as error:  # training goes on without it; the next heartbeat tries again
            self.problem = str(error)
            return
        del self._released[: len(sent)]
        self.directives = answer
        self.changed()


class Idle:
    """Says once why nothing trains, and gives up where waiting is vain."""

    def __init__(self, notice: Callable[[str], None]):
        self._notice, self._said, self._since = notice, "", time.monotonic()

    def check(self, directives: Directives, problem: str, is_idle: bool) -> None:
        """Raises ResourcesError where the cluster can never hold a cell, or did not come to it in time."""
        if not is_idle:
            self._said, self._since = "", time.monotonic()
            return
        if directives.hopeless:
            raise ResourcesError(directives.hopeless)
        why = problem or directives.waiting
        if why and not self._said:
            self._notice(f"waiting: {why}")
        self._said = self._said or why
        waited_s = time.monotonic() - self._since
        if directives.waiting.reason is WaitingReason.NEVER_FITS and waited_s > WAIT_FOR_NODES_S:
            raise ResourcesError(f"after {waited_s:.0f} s: {directives.waiting}. Add nodes, or lower placement.workers")
