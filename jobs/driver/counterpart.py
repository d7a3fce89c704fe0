"""Whom a driver asks for leases: the cluster's dispatcher, else a queue of its own."""

from collections.abc import Sequence
from typing import Any, Protocol

from jobs.cluster.dispatcher import ask, find_dispatcher
from jobs.cluster.ray_cluster import NodeRequest, is_remote, live_nodes
from jobs.queue.model import Settings
from jobs.queue.queue import Queue
from jobs.queue.rows import Directives, JobRequest, Release
from jobs.queue.store import Store


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


def find_counterpart() -> Counterpart:
    """The cluster's dispatcher, else a queue of this driver's own."""
    actor = find_dispatcher() if is_remote() else None
    return OwnQueue(Settings()) if actor is None else Dispatcher(actor)
