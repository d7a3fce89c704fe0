"""The dispatcher: it owns the queue, starts drivers and watches over them; `jobs/dispatch/actor.py` holds it."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from jobs.cluster.jobs_api import RayJob, RayJobs
from jobs.cluster.ray_cluster import NodeRequest, largest_cluster, live_nodes
from jobs.dispatch.schedules.thread import SCHEDULE_VERBS, ScheduleThread
from jobs.dispatch.wire import (
    CellFacts,
    EventFacts,
    JobStatus,
    JobSummary,
    LeaseFacts,
    NodeFacts,
    Ping,
    QueueListing,
    ScheduleFacts,
    SyncAnswer,
)
from jobs.driver.kinds.table import KINDS
from jobs.driver.names import DRIVER, JOB, OWNER
from jobs.queue.gangs import Node
from jobs.queue.model import Settings
from jobs.queue.queue import SILENT_S, Queue
from jobs.queue.reasons import Waiting
from jobs.queue.rows import Directives, JobRequest, JobRow, Release
from jobs.queue.store import Store, shown
from jobs.simulation.trace import load_queue_settings
from jobs.tracking.reconciler import Reconciler
from orchestrator.errors import InputError

TICK_S = 1.0
LOOK_AFTER_S = 10.0  # a driver that is silent for so long is asked for at Ray
log = logging.getLogger("backbone.dispatcher")


@dataclass(frozen=True)
class Setup:
    """What the dispatcher is started with, and again after it died."""

    store_url: str
    jobs_address: str
    settings_file: str | None
    autoscaling_config: str | None
    may_grow: bool  # an autoscaler adds nodes, nobody says how many


class DispatcherService:
    """Its methods are what drivers and the gateway call; a thread does the rest, once a second."""

    def __init__(self, setup: Setup):
        import ray

        self._setup = setup
        settings = load_queue_settings(Path(setup.settings_file)) if setup.settings_file else Settings()
        self._store = Store(setup.store_url)
        self._queue = Queue(self._store, settings)
        self._queue.see_cluster(ray.get_runtime_context().get_node_id())
        self._growth = largest_cluster(Path(setup.autoscaling_config)) if setup.autoscaling_config else []
        self._seen: dict[str, Node] = {}
        self._seeing = threading.Lock()
        self._nodes_asked_for = NodeRequest(None)
        self._trouble = ""
        self._reconciler = Reconciler()
        self._schedules = ScheduleThread(setup.store_url, setup.jobs_address, self._queue.jobs)
        self._see_nodes()
        threading.Thread(target=self._loop, name="dispatcher", daemon=True).start()

    # --- drivers ---

    def attach(self, request: JobRequest, driver: str) -> None:
        self._queue.attach(request, driver)

    def heartbeat(self, job_id: str, driver: str, released: Sequence[Release]) -> Directives | None:
        return self._queue.heartbeat_and_decide(job_id, driver, released)

    def finish(self, job_id: str, driver: str, exit_code: int) -> None:
        self._queue.finish(job_id, driver, exit_code)

    # --- clients ---

    def ping(self) -> Ping:
        """That it lives, which store it has, and what went wrong in its last round."""
        return {"store": shown(self._setup.store_url), "pid": os.getpid(), "trouble": self._trouble}

    def submit(self, request: JobRequest) -> JobStatus:
        self._see_nodes()
        job = self._queue.submit(request)
        self._queue.decide()
        return self.status(job.job_id)

    def stop(self, job_id: str, why: str) -> JobStatus:
        self._queue.stop(job_id, why)
        return self.status(job_id)

    def cancel(self, job_id: str, why: str) -> JobStatus:
        driver = self._queue.find(job_id).driver
        self._queue.cancel(job_id, why)
        if driver is not None:
            RayJobs(self._setup.jobs_address).stop(driver)
        return self.status(job_id)

    def sync(self) -> SyncAnswer:
        """Tries at once what MLflow still lacks of jobs that are over."""
        return {"waiting": self._reconciler.expedite(self._queue.jobs()), "trouble": self._reconciler.trouble}

    def status(self, job_id: str) -> JobStatus:
        """A job with its cells and its last events."""
        events = [cast(EventFacts, asdict(event)) for event in self._queue.events(job_id, limit=30)]
        cells = [cast(CellFacts, asdict(cell)) for cell in self._queue.cells(job_id)]
        return {**self._summary(self._queue.find(job_id)), "cells": cells, "events": events}

    def queue(self) -> QueueListing:
        """Every job with its counts; the nodes and who holds what."""
        return {
            "jobs": [self._summary(job) for job in self._queue.jobs()],
            "leases": [cast(LeaseFacts, asdict(lease)) for lease in self._queue.leases()],
            "nodes": [cast(NodeFacts, asdict(node)) for node in live_nodes()],
            "trouble": self._trouble,
        }

    # --- schedules ---

    def schedule(self, verb: str, *arguments: Any) -> ScheduleFacts | list[ScheduleFacts]:
        """A verb of `ScheduleThread`: add, all, show, pause, resume, remove, run_now."""
        if verb not in SCHEDULE_VERBS:
            raise InputError(f"no verb {verb!r} for schedules; there are: {', '.join(SCHEDULE_VERBS)}")
        answer: ScheduleFacts | list[ScheduleFacts] = getattr(self._schedules, verb)(*arguments)
        return answer

    def _summary(self, job: JobRow) -> JobSummary:
        states = [str(cell.state) for cell in self._queue.cells(job.job_id)]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        why = Waiting() if job.state.is_over else self._queue.why_waiting(job.job_id)
        waits = {"waiting": str(why), "waiting_reason": str(why.reason)}
        return cast(JobSummary, {**asdict(job), "state": str(job.state), "counts": counts, **waits})

    # --- the loop ---

    def _loop(self) -> None:
        while True:
            began = time.monotonic()
            steps = (self._see_nodes, self._queue.decide, self._start, self._watch, self._reconcile)
            trouble = [self._tried(step) for step in steps]
            self._trouble = "; ".join(filter(None, [*trouble, self._schedules.trouble, self._reconciler.trouble]))
            time.sleep(max(0.05, TICK_S - (time.monotonic() - began)))

    def _tried(self, step: Callable[[], None]) -> str:
        """A round goes on where one step fails: the next round tries it again."""
        try:
            step()
        except Exception as error:
            log.exception("dispatcher: %s", step.__name__)
            return f"{step.__name__.strip('_')}: {error}"
        return ""

    def _see_nodes(self) -> None:
        with self._seeing:
            self._look_at_nodes()

    def _look_at_nodes(self) -> None:
        nodes = live_nodes()
        setup = self._setup
        if setup.autoscaling_config is not None:
            self._queue.see_nodes(nodes, [*nodes, *self._growth])
        else:
            self._seen |= {node.node_id: node for node in nodes}  # one that was here may come back
            self._queue.see_nodes(nodes, None if setup.may_grow else list(self._seen.values()))
        if setup.may_grow or setup.autoscaling_config is not None:
            self._nodes_asked_for.update(self._queue.demands())

    def _reconcile(self) -> None:
        """MLflow hears of what a driver could not say any more."""
        self._reconciler.step(self._queue.jobs())

    def _start(self) -> None:
        if not self._queue.wants_drivers():
            return
        ray_jobs = RayJobs(self._setup.jobs_address)  # if it does not answer, no job is to blame
        for job in self._queue.drivers_to_start():
            try:
                self._start_driver(ray_jobs, job)
            except Exception as error:
                self._queue.driver_lost(job.job_id, job.driver or "", f"could not be started: {error}")

    def _start_driver(self, ray_jobs: RayJobs, job: JobRow) -> None:
        assert job.driver is not None
        if (stale := ray_jobs.find(job.driver)) is not None and stale.is_over:  # of a store that was lost
            ray_jobs.forget(job.driver)
        command = ["python", "-m", KINDS[job.kind].entry_point, job.spec_file, *job.arguments]
        variables = {DRIVER: job.driver, JOB: job.job_id, OWNER: job.owner, "BACKBONE_STORAGE": job.storage}
        ray_jobs.submit(job.driver, command, job.code, variables)

    def _watch(self) -> None:
        """Looks after silent drivers: one that ended by itself is done, any other is replaced."""
        running = self._queue.running()  # one that was just started is silent too, for less than no time
        silent = [(job, silence_s) for job, silence_s in running if silence_s > LOOK_AFTER_S or silence_s < 0]
        if not silent:
            return
        ray_jobs = RayJobs(self._setup.jobs_address)
        for job, silence_s in silent:
            assert job.driver is not None
            found = ray_jobs.find(job.driver)
            if found is not None and not found.is_over:
                continue
            if found is None and silence_s < SILENT_S:  # a process of its own: only its silence tells
                continue
            self._driver_ended(job, found, silence_s)

    def _driver_ended(self, job: JobRow, found: RayJob | None, silence_s: float) -> None:
        assert job.driver is not None
        if found is None:
            self._queue.driver_lost(job.job_id, job.driver, f"silent for {silence_s:.0f} s, and unknown to Ray")
        elif found.status == "STOPPED":
            self._queue.cancel(job.job_id, "stopped with `ray job stop`")
        elif found.exit_code is not None and found.exit_code >= 0 and found.exit_code < 128:
            self._queue.finish(job.job_id, job.driver, found.exit_code)
        else:
            said = found.message.strip().splitlines()  # the first line is Ray's, the others are the driver's last words
            self._queue.driver_lost(job.job_id, job.driver, said[0].partition(", last available")[0] if said else "")
