"""What may end an attempt: how it is known, what follows, who pays. One table, which docs/faults.md shows. No torch."""

from dataclasses import dataclass
from enum import StrEnum

from backbones.errors import BackboneError
from backbones.reference import HubError
from orchestrator.errors import (
    CancelledError,
    CheckpointError,
    DivergedError,
    ExportError,
    HangError,
    OrchestratorError,
    OutOfMemoryError,
    TimedOutError,
)
from orchestrator.results import CellStatus

DESIGNED = (OrchestratorError, BackboneError)  # errors that say themselves what they mean
# What libraries of the network call their errors: whoever raises them may not be installed here.
NETWORK_LIBRARIES = ("requests", "urllib3", "httpx", "httpcore", "aiohttp", "huggingface_hub", "http", "socket")
# torch has no class of its own for a host without memory.
HOST_MEMORY_WORDS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


class Cause(StrEnum):
    """What ended an attempt."""

    OUT_OF_MEMORY = "out of memory"
    NON_FINITE = "non-finite loss"
    HANG = "hang"
    WORKER_LOST = "worker or node lost"
    PREEMPTED = "node taken away"
    STORAGE = "storage"
    NETWORK = "hub or network"
    INPUT = "data or another input"
    STOPPED = "asked to stop"
    CODE = "code"


class Action(StrEnum):
    """What follows."""

    FINAL = "final"
    RETRY = "another attempt from the last checkpoint"
    SHRINK = "another attempt with a smaller micro-batch"
    WAIT = "waits for a node, then another attempt"


@dataclass(frozen=True)
class Rule:
    """A row of the table. `status` is what the cell gets where no attempt follows; None: what its error says."""

    recognised_by: str
    action: Action
    is_charged: bool  # against policy.max_failures
    status: CellStatus | None


FAILED = CellStatus.FAILED
TAXONOMY = {
    Cause.OUT_OF_MEMORY: Rule(
        "torch.OutOfMemoryError, MemoryError, the words of torch's allocator for the host",
        Action.SHRINK,
        False,
        CellStatus.OUT_OF_MEMORY,
    ),
    Cause.NON_FINITE: Rule(
        "loss or gradient norm of all ranks together, before the update", Action.FINAL, False, CellStatus.DIVERGED
    ),
    Cause.HANG: Rule("no step ends within policy.hang_timeout; every rank's stack", Action.RETRY, True, FAILED),
    Cause.WORKER_LOST: Rule("Ray finds the process dead, or others lose its connection", Action.RETRY, True, FAILED),
    Cause.PREEMPTED: Rule("Ray says that the node was taken away", Action.WAIT, False, FAILED),
    Cause.STORAGE: Rule("OSError, a checkpoint or an export that cannot be written", Action.RETRY, True, FAILED),
    Cause.NETWORK: Rule("HubError, ConnectionError, TimeoutError, an HTTP library's error", Action.RETRY, True, FAILED),
    Cause.INPUT: Rule("an error that says that no attempt could mend it", Action.FINAL, True, None),
    Cause.STOPPED: Rule("the cell's stop file, policy.timeout", Action.FINAL, True, None),
    Cause.CODE: Rule("anything else; the same account twice in a row is final", Action.RETRY, True, FAILED),
}
_DESIGNED: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Cause], ...] = (
    (OutOfMemoryError, Cause.OUT_OF_MEMORY),
    (DivergedError, Cause.NON_FINITE),
    (HangError, Cause.HANG),
    ((CheckpointError, ExportError), Cause.STORAGE),
    (HubError, Cause.NETWORK),
    ((CancelledError, TimedOutError), Cause.STOPPED),
)


def cause_of(error: BaseException) -> Cause:
    """The row of an error that a rank raised."""
    if isinstance(error, DESIGNED):
        usual = Cause.CODE if error.retriable else Cause.INPUT
        return next((cause for classes, cause in _DESIGNED if isinstance(error, classes)), usual)
    if is_out_of_memory(error):
        return Cause.OUT_OF_MEMORY
    if isinstance(error, ConnectionError | TimeoutError) or _is_of_the_network(error):
        return Cause.NETWORK
    return Cause.STORAGE if isinstance(error, OSError) else Cause.CODE


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left. torch's class is known by its name: nothing here loads torch."""
    if isinstance(error, MemoryError) or any(one.__name__ == "OutOfMemoryError" for one in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in HOST_MEMORY_WORDS)


def _is_of_the_network(error: BaseException) -> bool:
    return any(one.__module__.partition(".")[0] in NETWORK_LIBRARIES for one in type(error).__mro__)
