"""A thread of each worker that sees when its rank makes no progress, and ends it with its stack kept.

A rank that hangs leaves the others in a collective, where the process group would keep them for ten minutes and say
nothing of the one that is missing. Each rank looks at its own pulse, in its own memory: a step costs nothing, and no
file system has to show one node what another wrote.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import StackSummary, walk_stack
from types import FrameType

from orchestrator.attempt.failure import PEER_HANGS, Failure, account_of, record_failure
from orchestrator.attempt.taxonomy import Cause
from orchestrator.cell_job import CellJob
from orchestrator.errors import HangError
from orchestrator.layout import CellFolder
from orchestrator.training.pulse import Pulse

LOOK_S = 0.5
SHORTEST_S, SLOWEST_STEPS = 120.0, 20  # a hang is what takes longer than either: so many of the slowest recent step
# Outside of steps and in an attempt's first, which may download, compile, score or write for long. Ranks that wait for
# one that hangs there have the limit of the process group.
OUTSIDE_S = 2 * 3600.0
GRACE_S = 10.0  # how long a rank waits for the other ranks' stacks, before its end breaks their connections
NEAREST = 8  # frames among which a collective stands, if a rank waits in one


@contextmanager
def watched(job: CellJob, rank: int, pulse: Pulse) -> Iterator[None]:
    """Meanwhile, a rank whose pulse stops for longer than its limit is killed, after its stack and account are kept."""
    over, watched_thread = threading.Event(), threading.get_ident()

    def watch() -> None:
        waited_s = find_hang(pulse, job.hang_timeout_s, over)
        if waited_s is not None:
            _testify(job, rank, pulse, waited_s, sys._current_frames()[watched_thread])
            _wait_for_the_others(job)
            os.kill(os.getpid(), signal.SIGKILL)

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def find_hang(pulse: Pulse, hang_timeout_s: float | None, over: threading.Event) -> float | None:
    """Blocks until a pulse stood still for too long, and says how long, or until it is `over`.

    Counts its own looks, not the clock: a process that was stopped, or a machine that slept, lost no time.
    """
    beats, waited_s = pulse.beats, 0.0
    while not over.wait(LOOK_S):
        waited_s = waited_s + LOOK_S if pulse.beats == beats else 0.0
        beats = pulse.beats
        if waited_s > limit_s(pulse, hang_timeout_s):
            return waited_s
    return None


def limit_s(pulse: Pulse, hang_timeout_s: float | None) -> float:
    """How long what a rank does now may take."""
    if not pulse.is_in_a_step:
        return max(OUTSIDE_S, hang_timeout_s or 0.0)
    return hang_timeout_s or max(SHORTEST_S, SLOWEST_STEPS * max(pulse.step_times_s))


def _testify(job: CellJob, rank: int, pulse: Pulse, waited_s: float, frame: FrameType) -> None:
    """Keeps the stacks of all threads, then says where the rank stands: in a collective, it is not to blame."""
    file = CellFolder(job.folder).stack(job.attempt, rank)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(f"rank {rank}, {pulse.doing}, step {pulse.step}, no progress for {waited_s:.0f} s\n\n")
        stream.flush()
        faulthandler.dump_traceback(stream, all_threads=True)
        os.fsync(stream.fileno())
    stack = StackSummary.extract(walk_stack(frame), lookup_lines=False)
    nearest = stack[:NEAREST]
    place = next((one for one in nearest if is_ours(one.filename)), stack[0])
    doing = "in a step" if pulse.doing == "step" else pulse.doing
    message = f"no progress for {waited_s:.0f} s {doing}; at {place.name}, {Path(place.filename).name}:{place.lineno}"
    if any(is_of_a_collective(one.filename) for one in nearest) or is_step(stack[0].filename):
        waits = f"{message}, where it waits for other ranks. The stack: {file}"
        failure = Failure(PEER_HANGS, waits, rank, time.time(), retriable=True, cause=Cause.HANG, step=pulse.step)
    else:
        failure = account_of(rank, HangError(f"{message}. The stacks of all ranks: {file.parent}"), pulse.step)
    record_failure(job, failure)


def is_ours(filename: str) -> bool:
    """Whether a frame is of our own code."""
    return "orchestrator" in Path(filename).parts or "backbones" in Path(filename).parts


def is_of_a_collective(filename: str) -> bool:
    """Whether a frame is of torch's communication."""
    return "torch/distributed/" in filename or filename.endswith("_functional_collectives.py")


def is_step(filename: str) -> bool:
    """Whether a rank stands in the step's own lines: there it waits for its device, which waits in a collective."""
    return filename.endswith("orchestrator/training/step.py")


def _wait_for_the_others(job: CellJob) -> None:
    """Until every rank has testified, or will not."""
    limit, workers = time.monotonic() + GRACE_S, job.cell.placement.most
    while time.monotonic() < limit and len(list(CellFolder(job.folder).failures(job.attempt))) < workers:
        time.sleep(LOOK_S)
