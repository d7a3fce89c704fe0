"""The gangs of a driver: workers that run, and attempt one cell after another.

Starting workers, their imports, a CUDA context and a process group takes longer than a small cell trains. So a gang
outlives its cell, and waits for the next lease on the same nodes. What it must not outlive is its right to them: a cell
that was stopped (its lease goes elsewhere), another gang that needs the room, and a wait in vain end it.
"""

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from orchestrator.attempt.failure import WORKER_DIED, Failure, find_first_cause
from orchestrator.attempt.mailbox import Call, Mailbox
from orchestrator.attempt.worker import run_gang
from orchestrator.cell_job import CellJob
from orchestrator.layout import CellFolder
from orchestrator.results import CellStatus
from orchestrator.spec_files.spec import Placement

IDLE_S = 5.0  # how long a gang waits for its next cell: whoever was leased its nodes meanwhile waits as long
LOOK_S = 0.2  # between two looks for an answer, which may take hours
END_LIMIT_S = 30.0  # workers leave within a second or two, but for those whose node was lost


@dataclass(frozen=True)
class Shape:
    """What cells must have in common to be served by the same workers."""

    placement: Placement
    nodes: tuple[str, ...] | None  # of each worker; None: wherever Ray puts them
    plugins: tuple[str, ...]

    def is_in_the_way_of(self, other: "Shape") -> bool:
        """Whether workers of this shape may take room that the other's lease counts on."""
        return self.nodes is None or other.nodes is None or not set(self.nodes).isdisjoint(other.nodes)


class Gang:
    """A group of workers, started at once, and what it was called to do last."""

    def __init__(self, shape: Shape, first: CellJob):
        self.shape = shape
        self._folder = CellFolder(first.folder).gang(first.attempt)
        self.mailbox = Mailbox(self._folder)
        self.mailbox.create()
        self.calls = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(first,), name=f"gang of {first.name}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether Ray Train has workers for it, or is about to."""
        return self._thread.is_alive()

    def next_call(self, job: CellJob | None) -> Call:
        """The call to put into the mailbox."""
        self.calls += 1
        return Call(self.calls, job)

    def wait(self, job: CellJob) -> Failure | None:
        """Blocks until the last call is answered, or the gang is gone; None means that the attempt finished."""
        while True:
            is_over = not self.is_alive  # looked up first: an answer may be the last thing that workers write
            if (answer := self.mailbox.find_answer(self.calls)) is not None:
                return answer.failure
            if is_over:
                error = self._error if isinstance(self._error, Exception) else RuntimeError(f"{WORKER_DIED}: no answer")
                return find_first_cause(job.folder, job.attempt, self.shape.placement.most, error)
            self._thread.join(LOOK_S)

    def end(self) -> None:
        """Asks its workers to leave, and waits until they have."""
        if self.is_alive:
            self.mailbox.put(self.next_call(None))
            self._thread.join(END_LIMIT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, first: CellJob) -> None:
        name, storage = f"{first.name}-{first.attempt:03d}", CellFolder(first.folder).ray
        try:
            run_gang(self._folder, name, storage, self.shape.placement, self.shape.nodes)
        except BaseException as error:  # for `wait`, in another thread
            self._error = error


class Gangs:
    """All gangs of a driver. Leaving the context ends those that wait for a cell."""

    def __init__(self) -> None:
        self._idle: dict[Gang, threading.Timer] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end_idle(list(self._idle))

    def run_attempt(self, job: CellJob, placement: Placement, nodes: Sequence[str] | None = None) -> Failure | None:
        """Runs one attempt on a gang of this shape, a new one where none waits; blocks. None means it finished.

        `nodes`: the Ray node id of each worker, where a lease binds them; Ray chooses otherwise.
        """
        shape = Shape(placement, None if nodes is None else tuple(nodes), job.plugins)
        gang = self._take(shape) or Gang(shape, job)
        gang.mailbox.put(gang.next_call(job))
        failure = gang.wait(job)
        # Who was stopped gives its nodes back, and whoever gets them must find them free.
        if gang.is_alive and not (failure is not None and failure.status is CellStatus.CANCELLED):
            self._keep(gang)
        else:
            gang.end()
        return failure

    def _take(self, shape: Shape) -> Gang | None:
        """An idle gang of this shape. Where there is none, those in the way of a new one end first."""
        with self._lock:
            fit = next((gang for gang in self._idle if gang.shape == shape and gang.is_alive), None)
            if fit is not None:
                self._idle.pop(fit).cancel()
                return fit
            in_the_way = [gang for gang in self._idle if gang.shape.is_in_the_way_of(shape)]
        self._end_idle(in_the_way)
        return None

    def _keep(self, gang: Gang) -> None:
        timer = threading.Timer(IDLE_S, self._end_idle, [[gang]])
        timer.daemon = True
        with self._lock:
            self._idle[gang] = timer
        timer.start()

    def _end_idle(self, gangs: Sequence[Gang]) -> None:
        """Ends those of them that still wait for a cell."""
        with self._lock:
            ended = [gang for gang in gangs if gang in self._idle]
            for gang in ended:
                self._idle.pop(gang).cancel()
        for gang in ended:
            gang.end()
