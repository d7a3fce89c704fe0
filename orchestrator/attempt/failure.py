"""Why an attempt ended: what each rank wrote down, and which of it was the cause. No torch."""

import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.attempt.taxonomy import DESIGNED, TAXONOMY, Cause, cause_of, is_out_of_memory
from orchestrator.cell_job import CellJob
from orchestrator.errors import OutOfMemoryError
from orchestrator.layout import CellFolder
from orchestrator.parallel import is_peer_lost
from orchestrator.results import CellStatus, read_json, write_json

WORKER_DIED, PEER_LOST, PREEMPTED = "WorkerDiedError", "PeerLostError", "PreemptedError"
HANG, PEER_HANGS = "HangError", "PeerHangsError"
ECHOES = (PEER_LOST, PEER_HANGS)
FAULTS_OF_THE_MACHINE = (WORKER_DIED, *ECHOES, PREEMPTED)
OUT_OF_MEMORY_REMEDY = (
    "A micro-batch that is too large is halved until it fits; where one row does not, or not even the model, "
    "raise placement.workers, set recipe.activation_checkpointing to true, or lower recipe.sequence_length."
)


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended early: the first cause, not what the other ranks saw of it."""

    kind: str  # name of the exception class, or one of FAULTS_OF_THE_MACHINE
    message: str
    rank: int | None
    time: float
    retriable: bool
    status: CellStatus = CellStatus.FAILED  # of the cell, where no other attempt follows
    cause: Cause = Cause.CODE
    step: int | None = None  # that the rank was at, 0 before the first; None before it trained, or where unknown

    def repeats(self, other: "Failure") -> bool:
        """Whether a rank gave the very same account twice: a fault of the code or the data, not of the machine."""
        if self.kind in FAULTS_OF_THE_MACHINE or self.rank is None:
            return False
        return (self.kind, self.message) == (other.kind, other.message)

    @property
    def is_echo(self) -> bool:
        """Whether it only tells that another rank went away, or does not answer."""
        return self.kind in ECHOES

    @property
    def is_charged(self) -> bool:
        """Whether it counts against policy.max_failures."""
        return TAXONOMY[self.cause].is_charged

    @property
    def account(self) -> str:
        """The failure in one line."""
        rank = "" if self.rank is None else f" on rank {self.rank}"
        step = "" if self.step is None else f" at step {self.step}"
        return f"{self.kind}{rank}{step}: {first_line(self.message) or 'it said nothing'}"

    @property
    def full_account(self) -> str:
        """The same, and below it whatever else is known, such as frames."""
        return "\n".join([self.account, *self.message.splitlines()[1:]])


_FAILURE = TypeAdapter(Failure)


def record_failure(job: CellJob, failure: Failure) -> None:
    """Writes a rank's account into the cell's folder, where the driver finds it."""
    write_json(CellFolder(job.folder).failure(job.attempt, failure.rank), asdict(failure))


def account_of(rank: int, error: BaseException, step: int | None = None) -> Failure:
    """What a rank's exception says: by itself where it was designed, else by its class and last frames.

    The cause of one that was not designed may lie elsewhere, so another attempt is worth it.
    """
    if is_out_of_memory(error) and not isinstance(error, DESIGNED):
        where = f"rank {rank}" if step is None else f"rank {rank} at step {step}"
        error = OutOfMemoryError(f"{where} ran out of memory: {error}\n{OUT_OF_MEMORY_REMEDY}")
    kind, cause = type(error).__name__, cause_of(error)
    if isinstance(error, DESIGNED):
        status = CellStatus(error.status)
        return Failure(kind, str(error), rank, time.time(), error.retriable, status, cause, step)
    frames = "".join(traceback.format_exception(error, limit=-4))
    if is_peer_lost(error):
        kind, cause = PEER_LOST, Cause.WORKER_LOST
    message = f"{type(error).__name__}: {error}\n{frames}"
    return Failure(kind, message, rank, time.time(), retriable=True, cause=cause, step=step)


def find_first_cause(folder: Path, attempt: int, workers: int, error: Exception) -> Failure:
    """Why an attempt ended: the earliest fault that a rank wrote down itself, else a rank that died without a word.

    `error` is what Ray Train raised. Ranks that only lost the connection to another one are heard last.
    """
    found: dict[int, Exception] = getattr(error, "worker_failures", {})
    accounts = _accounts(folder, attempt)
    heard = {account.rank for account in accounts}
    # A rank that could not write its account, because the storage is what failed, still told Ray.
    accounts += [account_of(rank, one) for rank, one in found.items() if rank not in heard and not _is_death(one)]
    own = [account for account in accounts if not account.is_echo]
    if own:
        return min(own, key=lambda account: account.time)
    silent = sorted(set(range(workers)) - {account.rank for account in accounts})
    if waiting := [account for account in accounts if account.kind == PEER_HANGS]:
        return _hang(folder, attempt, waiting, silent)
    echo = min(accounts, key=lambda account: account.time, default=None)
    dead = sorted(rank for rank, one in found.items() if _is_death(one))
    if not dead and echo is not None:
        dead = silent
    if not dead:
        start = Failure(WORKER_DIED, _start_failed(error), None, time.time(), retriable=True, cause=Cause.WORKER_LOST)
        return echo or start
    message = "; ".join(_obituary(folder, attempt, rank, found.get(rank)) for rank in dead)
    if echo is not None:
        message += f". Rank {echo.rank} noticed: {first_line(echo.message)}"
    kind, cause = WORKER_DIED, Cause.WORKER_LOST
    if any(_is_preempted(one) for one in found.values()):
        kind, cause = PREEMPTED, Cause.PREEMPTED
    step = None if echo is None else echo.step
    return Failure(kind, message, dead[0], time.time(), retriable=True, cause=cause, step=step)


def first_line(text: str) -> str:
    """The first line of a text, or nothing."""
    return (text.splitlines() or [""])[0]


def _hang(folder: Path, attempt: int, waiting: list[Failure], silent: list[int]) -> Failure:
    """Where every rank that spoke waits for another: that is one that did not speak, else the one that is behind."""
    behind = min(waiting, key=lambda account: (account.step or 0, account.time))
    step, rank = behind.step, None
    if silent:
        rank = silent[0]
        message = f"{_place(folder, attempt, rank)} does not answer: stopped, or its node out of reach"
    elif len({account.step for account in waiting}) > 1:
        rank = behind.rank
        message = f"rank {rank} waits where no other rank does: {first_line(behind.message)}"
    else:
        message = f"all ranks wait for each other: {first_line(behind.message)}"
    return Failure(HANG, message, rank, time.time(), retriable=True, cause=Cause.HANG, step=step)


def _accounts(folder: Path, attempt: int) -> list[Failure]:
    return [_FAILURE.validate_json(file.read_bytes()) for file in CellFolder(folder).failures(attempt)]


def _place(folder: Path, attempt: int, rank: int) -> str:
    file = CellFolder(folder).worker(rank)
    known = read_json(file) if file.exists() else {}
    place = f" (pid {known['pid']} on {known['node']})" if known.get("attempt") == attempt else ""
    return f"rank {rank}{place}"


def _obituary(folder: Path, attempt: int, rank: int, error: Exception | None) -> str:
    cause = "killed, out of memory, or its node lost"
    if error is not None and "low on memory" in str(error):  # the words of Ray's memory monitor
        cause = "Ray killed it because its node ran low on memory; use fewer workers a node or a smaller micro batch"
    return f"{_place(folder, attempt, rank)} died without a word: {cause}"


def _is_death(error: Exception) -> bool:
    """Whether Ray Train found the worker's process gone, as against an exception that the worker raised."""
    return hasattr(error, "health_check_failure")


def _is_preempted(error: Exception) -> bool:
    """Whether Ray says that the process died because its node was taken away."""
    return bool(getattr(getattr(error, "health_check_failure", None), "preempted", False))


def _start_failed(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"the workers could not be started or were lost: {text.splitlines()[0][:300]}: {text.splitlines()[-1][:300]}"
