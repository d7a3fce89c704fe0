"""A driver's side of the queue: it says that it lives, hears which cells may train, and gives leases back."""

import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from jobs.cluster.ray_cluster import NAMESPACE, NodeRequest, connect, demand_of, is_remote, live_nodes
from jobs.driver.kinds.benchmark import KIND as BENCHMARK
from jobs.queue.model import Settings
from jobs.queue.policy import NEVER_FITS
from jobs.queue.queue import Queue
from jobs.queue.rows import CellRequest, Directives, JobRequest, LeaseRow, Release
from jobs.queue.store import Store
from orchestrator.attempt.worker import load_torch
from orchestrator.errors import ClusterError, InputError, ResourcesError, StoreError
from orchestrator.identity import backbone_identity, content_hash
from orchestrator.planning.plan import Cell, Plan
from orchestrator.planning.preflight import IN_RAY_JOB
from orchestrator.results import CellStatus
from orchestrator.spec_files.spec import Placement

ACTOR_NAME = "backbone-dispatcher"
DRIVER, JOB, OWNER = "BACKBONE_DRIVER", "BACKBONE_JOB", "BACKBONE_OWNER"
HEARTBEAT_S = 1.0
WAIT_FOR_NODES_S = 20 * 60
ATTACH_LIMIT_S = 180.0
ANSWER_LIMIT_S = 60.0  # the dispatcher may be starting anew


class Counterpart(Protocol):
    """Whom a driver asks for leases."""

    is_shared: bool  # by other drivers too: then workers stay on the nodes of their lease

    def attach(self, request: JobRequest, driver: str) -> None: ...

    def heartbeat(self, job_id: str, driver: str, released: Sequence[Release]) -> Directives | None: ...

    def finish(self, job_id: str, driver: str, exit_code: int) -> None: ...


class OwnQueue:
    """The same queue for one driver alone, where no dispatcher rules the cluster."""

    is_shared = False  # what other drivers hold cannot be seen, so Ray places the workers

    def __init__(self, settings: Settings):
        self._queue = Queue(Store("sqlite://"), settings)
        self._nodes_asked_for = NodeRequest([])

    def attach(self, request: JobRequest, driver: str) -> None:
        self._queue.attach(request, driver)

    def heartbeat(self, job_id: str, driver: str, released: Sequence[Release]) -> Directives | None:
        nodes = live_nodes()
        self._queue.see_nodes(nodes, None if is_remote() else nodes)
        self._queue.heartbeat(job_id, driver, released)
        self._queue.decide()
        if is_remote():
            self._nodes_asked_for.update(self._queue.demands())
        return self._queue.heartbeat(job_id, driver)

    def finish(self, job_id: str, driver: str, exit_code: int) -> None:
        self._queue.finish(job_id, driver, exit_code)
        if is_remote():
            self._nodes_asked_for.update([])


class Dispatcher:
    """The cluster's dispatcher, as an actor of another process."""

    is_shared = True

    def __init__(self, actor: Any):
        self._actor = actor

    def attach(self, request: JobRequest, driver: str) -> None:
        ask(self._actor, "attach", request, driver)

    def heartbeat(self, job_id: str, driver: str, released: Sequence[Release]) -> Directives | None:
        answer: Directives | None = ask(self._actor, "heartbeat", job_id, driver, tuple(released))
        return answer

    def finish(self, job_id: str, driver: str, exit_code: int) -> None:
        ask(self._actor, "finish", job_id, driver, exit_code)


def ask(actor: Any, method: str, *arguments: Any) -> Any:
    """Calls the dispatcher. Raises what it raised, or ClusterError when it does not answer."""
    import ray

    try:
        return ray.get(getattr(actor, method).remote(*arguments), timeout=ANSWER_LIMIT_S)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]  # the last line is why it could not start
        raise ClusterError(
            f"the dispatcher did not answer within {ANSWER_LIMIT_S:.0f} s ({said[-1].strip()}); "
            "`backbone doctor` finds the cause; on the head `python -m jobs.dispatcher start --storage DIR` starts it"
        ) from error


def find_dispatcher() -> Any | None:
    """The dispatcher of the cluster that this process is connected to, or None."""
    import ray

    try:
        return ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError:
        return None


def find_counterpart() -> Counterpart:
    """The cluster's dispatcher, else a queue of this driver's own."""
    actor = find_dispatcher() if is_remote() else None
    return OwnQueue(Settings()) if actor is None else Dispatcher(actor)


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


def driver_name() -> str:
    """What the dispatcher knows this driver by: the id of its Ray job, so that it can look after it."""
    if name := os.environ.get(DRIVER):
        return name
    job = json.loads(os.environ.get(IN_RAY_JOB, "{}")).get("metadata", {}).get("job_submission_id")
    return str(job or f"{socket.gethostname()}:{os.getpid()}")


def default_owner() -> str:
    """Whose share and quota this process counts for."""
    return os.environ.get(OWNER) or getpass.getuser()


def job_request(plan: Plan, cells: Sequence[Cell]) -> JobRequest:
    """What a plan asks of the queue, for those of its cells that are not finished."""
    policy = plan.job.policy
    return JobRequest(
        job_id=plan.job_id,
        kind=plan.kind,
        owner=default_owner(),
        priority=policy.priority,
        preemptible=policy.preemptible,
        storage=str(plan.storage),
        cells=tuple(_cell_request(cell, policy.timeout_s) for cell in cells),
        gpu_hours=policy.gpu_hours,
        hours=policy.hours,
        in_turn=plan.kind == BENCHMARK,
    )


def _cell_request(cell: Cell, limit_s: float) -> CellRequest:
    recipe = cell.recipe.model_dump(mode="json")
    placement = cell.placement.model_dump(mode="json")
    likeness = content_hash([backbone_identity(cell.backbone), recipe, placement, cell.train_digest])
    return CellRequest(cell.cell_id, demand_of(cell.placement), limit_s, likeness)


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

    def wait_for_one(self, notice: Callable[[str], None]) -> LeaseRow:
        """Blocks until a lease is held; `notice` is told why none is. Raises ResourcesError."""
        idle, changed = Idle(notice), threading.Event()
        self.changed = changed.set
        while not (directives := self.directives).leases:
            if directives.stop or directives.closed:
                raise ResourcesError(
                    f"the queue gives {self.request.job_id} no lease: {directives.stop or directives.closed[0][1]}"
                )
            idle.check(directives, self.problem, is_idle=True)
            changed.wait(HEARTBEAT_S)
            changed.clear()
        return directives.leases[0]

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
        if NEVER_FITS in directives.waiting and waited_s > WAIT_FOR_NODES_S:
            raise ResourcesError(f"after {waited_s:.0f} s: {directives.waiting}. Add nodes, or lower placement.workers")
