"""Sends spools to a tracker from a thread of the driver: acknowledged, resumable, and never in the way of training.

Workers know no tracker. What was acknowledged is remembered in a state file per run; after a crash between
acknowledgement and note the same rows are sent again, byte for byte, and MLflow stores identical rows once.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from orchestrator.results import write_json
from orchestrator.tracking.run import Destination, Sent, TrackedRun, describe, recall_sent, without_password
from orchestrator.tracking.tracker import Forgotten, Refused, Tracker, find_tracker

INTERVAL_S = 1.0
LONGEST_WAIT_S = 10.0
SETTLED_LIMIT_S = 30.0
UNREACHABLE_LIMIT_S = 30.0  # how long `close` waits for a place that does not answer: a restart, not an outage


class RunWriter:
    """Owns the connection to one tracker and a thread that brings every tracked run up to date."""

    def __init__(self, uri: str, experiment: str, artifact_folder: Path):
        self._uri, self._experiment, self._artifact_folder = uri, experiment, artifact_folder
        self._destination = Destination(without_password(uri), experiment)
        self._runs: list[TrackedRun] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._hurried = threading.Event()
        self._tracker: Tracker | None = None
        self._thread = threading.Thread(target=self._loop, name="run-writer", daemon=True)
        self.unreachable: str | None = None  # why the last attempt failed, while it does

    def start(self) -> None:
        """Starts sending in the background."""
        self._thread.start()

    def track(self, run: TrackedRun) -> TrackedRun:
        """Takes a run over, remembering what an earlier process already sent to the same place."""
        run.sent = recall_sent(run, self._destination.address)
        run.destination = self._destination
        describe(run)
        with self._lock:
            self._runs.append(run)
        self._wake.set()
        return run

    def finish(self, run: TrackedRun, status: str) -> None:
        """Gives the run its terminal status, to be sent after everything else."""
        run.ended_ms = run.ended_ms or time.time_ns() // 1_000_000
        run.status = status
        if run.destination is not None:
            describe(run)
        self._wake.set()

    def close(self, timeout_s: float, is_unwanted: Callable[[], bool] = lambda: False) -> list[TrackedRun]:
        """Waits until everything is acknowledged, at most `timeout_s`; returns the runs that are not settled.

        Waits less for a place that does not answer, and not at all once `expedite` was called or it `is_unwanted`.
        """
        started = time.monotonic()

        def time_left() -> float:
            limit = timeout_s if self.unreachable is None else min(timeout_s, UNREACHABLE_LIMIT_S)
            return 0.0 if self._hurried.is_set() or is_unwanted() else started + limit - time.monotonic()

        self._wake.set()
        while self._thread.is_alive() and self._open_runs() and time_left() > 0:
            self._hurried.wait(0.05)
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            # In the middle of a request it is left behind: what that sends is sent again. With nothing open it is at
            # its last lines, and an interpreter that ends under it may abort; a busy machine needs a while for them.
            self._thread.join(timeout=1.0 if self._open_runs() else SETTLED_LIMIT_S)
        return self._open_runs()

    def wait_until_silent(self) -> None:
        """After `close`: waits for the run whose turn it is; nothing is sent afterwards."""
        self._thread.join()

    def expedite(self) -> None:
        """Makes `close` return at once."""
        self._hurried.set()

    @property
    def is_hurried(self) -> bool:
        """Whether `expedite` was called."""
        return self._hurried.is_set()

    @property
    def problems(self) -> list[str]:
        """What the tracker refused for good."""
        return [f"{run.name}: {run.problem}" for run in self._runs if run.problem]

    def _open_runs(self) -> list[TrackedRun]:
        with self._lock:
            return [run for run in self._runs if not run.is_settled]

    def _loop(self) -> None:
        wait = INTERVAL_S
        while not self._closing.is_set():
            self._wake.clear()
            try:
                for run in self._open_runs():
                    if self._closing.is_set():
                        return
                    self._bring_up_to_date(run)
                wait, self.unreachable = INTERVAL_S, None
                self._wake.wait(wait)
            except Exception as error:  # a server's absence takes many shapes; all of them mean: try again later
                said = (str(error).strip() or repr(error)).replace(self._uri, self._destination.address)
                self.unreachable = said.splitlines()[0][:300]
                wait = min(wait * 2, LONGEST_WAIT_S)
                self._closing.wait(wait)

    def _bring_up_to_date(self, run: TrackedRun) -> None:
        if run.parent is not None and run.parent.sent.run_id is None:  # its turn comes after the parent's
            run.problem = run.parent.problem
            return
        # Connects when there is something to send, so that a launch with nothing to do does not import MLflow.
        tracker = self._tracker = self._tracker or self._open()
        try:
            with _remembered(run):
                tracker.bring_up_to_date(run)
        except Forgotten:
            run.sent, self._tracker = Sent(uri=self._destination.address), None
        except Refused as refusal:
            run.problem = str(refusal)

    def _open(self) -> Tracker:
        """The tracker of the URI; what no other answers for is MLflow's, who reads any path as a store."""
        open_tracker = find_tracker(self._uri) or find_tracker("sqlite://")
        assert open_tracker is not None
        return open_tracker(self._uri, self._experiment, self._artifact_folder)


@contextmanager
def _remembered(run: TrackedRun) -> Iterator[None]:
    """Notes in the run's state file whatever was acknowledged, also when a later call fails."""
    before = asdict(run.sent)
    try:
        yield
    finally:
        if asdict(run.sent) != before:
            write_json(run.state_file, asdict(run.sent))
