"""Why an attempt ended: what each rank wrote down, and which of it was the cause. No torch."""

import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from backbones.errors import BackboneError
from orchestrator.cell_job import CellJob
from orchestrator.errors import OrchestratorError
from orchestrator.layout import CellFolder
from orchestrator.parallel import is_peer_lost
from orchestrator.results import CellStatus, read_json, write_json

DESIGNED = (OrchestratorError, BackboneError)  # errors that say themselves what they mean
WORKER_DIED, PEER_LOST, PREEMPTED = "WorkerDiedError", "PeerLostError", "PreemptedError"
ECHOES = (PEER_LOST,)
FAULTS_OF_THE_MACHINE = (WORKER_DIED, PEER_LOST, PREEMPTED)


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended early: the first cause, not what the other ranks saw of it."""

    kind: str  # name of the exception class, or one of the three of FAULTS_OF_THE_MACHINE
    message: str
    rank: int | None
    time: float
    retriable: bool
    status: CellStatus = CellStatus.FAILED  # of the cell, where no other attempt follows

    def repeats(self, other: "Failure") -> bool:
        """Whether a rank gave the very same account twice: a fault of the code or the data, not of the machine."""
        if self.kind in FAULTS_OF_THE_MACHINE or self.rank is None:
            return False
        return (self.kind, self.message) == (other.kind, other.message)

    @property
    def is_echo(self) -> bool:
        """Whether it only tells that another rank went away."""
        return self.kind in ECHOES

    @property
    def is_charged(self) -> bool:
        """Whether it counts against policy.max_failures: a node that was taken away does not."""
        return self.kind != PREEMPTED

    @property
    def account(self) -> str:
        """The failure in one line."""
        rank = "" if self.rank is None else f" on rank {self.rank}"
        return f"{self.kind}{rank}: {self.message.splitlines()[0]}"


def record_failure(job: CellJob, failure: Failure) -> None:
    """Writes a rank's account into the cell's folder, where the driver finds it."""
    write_json(CellFolder(job.folder).failure(job.attempt, failure.rank), asdict(failure))


def account_of(rank: int, error: BaseException) -> Failure:
    """What a rank's exception says: by itself where it was designed, else by its class and last frames.

    The cause of one that was not designed may lie elsewhere, so another attempt is worth it.
    """
    kind = type(error).__name__
    if isinstance(error, DESIGNED):
        return Failure(kind, str(error), rank, time.time(), error.retriable, CellStatus(error.status))
    frames = "".join(traceback.format_exception(error, limit=-4))
    kind = PEER_LOST if is_peer_lost(error) else kind
    return Failure(kind, f"{type(error).__name__}: {error}\n{frames}", rank, time.time(), retriable=True)


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
    echo = min(accounts, key=lambda account: account.time, default=None)
    dead = sorted(rank for rank, one in found.items() if _is_death(one))
    if not dead and echo is not None:
        dead = sorted(set(range(workers)) - {account.rank for account in accounts})
    if not dead:
        return echo or Failure(WORKER_DIED, _start_failed(error), None, time.time(), retriable=True)
    message = "; ".join(_obituary(folder, attempt, rank, found.get(rank)) for rank in dead)
    if echo is not None:
        message += f". Rank {echo.rank} noticed: {echo.message.splitlines()[0]}"
    kind = PREEMPTED if any(_is_preempted(one) for one in found.values()) else WORKER_DIED
    return Failure(kind, message, dead[0], time.time(), retriable=True)


def _accounts(folder: Path, attempt: int) -> list[Failure]:
    files = CellFolder(folder).failures(attempt)
    accounts = [read_json(file) for file in files]
    return [Failure(**{**one, "status": CellStatus(one.get("status", CellStatus.FAILED))}) for one in accounts]


def _obituary(folder: Path, attempt: int, rank: int, error: Exception | None) -> str:
    file = CellFolder(folder).worker(rank)
    known = read_json(file) if file.exists() else {}
    place = f" (pid {known['pid']} on {known['node']})" if known.get("attempt") == attempt else ""
    cause = "killed, out of memory, or its node lost"
    if error is not None and "low on memory" in str(error):  # the words of Ray's memory monitor
        cause = "Ray killed it because its node ran low on memory; use fewer workers a node or a smaller micro batch"
    return f"rank {rank}{place} died without a word: {cause}"


def _is_death(error: Exception) -> bool:
    """Whether Ray Train found the worker's process gone, as against an exception that the worker raised."""
    return hasattr(error, "health_check_failure")


def _is_preempted(error: Exception) -> bool:
    """Whether Ray says that the process died because its node was taken away."""
    return bool(getattr(getattr(error, "health_check_failure", None), "preempted", False))


def _start_failed(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"the workers could not be started or were lost: {text.splitlines()[0][:300]}: {text.splitlines()[-1][:300]}"
