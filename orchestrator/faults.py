"""Faults on demand: what `BACKBONE_FAULT` asks for, and where it strikes. No torch until one does.

    BACKBONE_FAULT=KIND@rankR:stepS[:POINT][@attemptN|@always][,...]

The driver parses it and each cell's job carries it: the environment of Ray's workers is not the driver's. Without a
fault a hook is one look at an empty tuple. docs/faults.md tells people how to use it.
"""

import errno
import os
import re
import signal
import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.errors import InputError

if TYPE_CHECKING:
    import torch

VARIABLE = "BACKBONE_FAULT"
SLOW_S = 0.5  # how long a slow rank sleeps in each step


class Kind(StrEnum):
    """What happens to the rank."""

    RAISE = "raise"  # an error of the code
    KILL = "kill"  # SIGKILL, as by a kernel that is out of memory
    HANG = "hang"  # waits for ever
    NAN = "nan"  # its loss is NaN, on the device, before the ranks add theirs up
    OOM = "oom"  # its device has no memory for a micro-batch
    SLOW = "slow"  # sleeps in each step from this one on
    ENOSPC = "enospc"  # the storage is full while it writes its part of a checkpoint


class Point(StrEnum):
    """When. The last two are of the first checkpoint at this step or later."""

    STEP = "step"  # before the step's work
    BATCH = "batch"  # in its first micro-batch
    SAVE = "save"  # while its files of a checkpoint are written
    MANIFEST = "manifest"  # when all files are written and the manifest is not


OF_A_CHECKPOINT = (Point.SAVE, Point.MANIFEST)
_USUAL = {Kind.NAN: Point.BATCH, Kind.OOM: Point.BATCH, Kind.ENOSPC: Point.SAVE}
_ONLY = {Kind.NAN: (Point.BATCH,), Kind.SLOW: (Point.STEP,)}
_ONE = re.compile(
    rf"(?P<kind>{'|'.join(Kind)})@rank(?P<rank>\d{{1,6}}):step(?P<step>[1-9]\d{{0,8}})"
    rf"(?::(?P<point>{'|'.join(Point)}))?(?:@(?:attempt(?P<attempt>[1-9]\d{{0,5}})|(?P<always>always)))?",
    re.ASCII,
)


class InjectedFaultError(RuntimeError):
    """What kind `raise` raises: to everybody else an error that nobody designed."""


@dataclass(frozen=True)
class Fault:
    """One fault of one rank. `attempt`: the attempt that it strikes; None: every one."""

    kind: Kind
    rank: int
    step: int
    point: Point
    attempt: int | None = 1


def parse_faults(text: str) -> tuple[Fault, ...]:
    """The faults that a value of `BACKBONE_FAULT` asks for. Raises InputError that names the grammar."""
    return tuple(_parse(part) for part in text.split(",")) if text else ()


def _parse(text: str) -> Fault:
    match = _ONE.fullmatch(text)
    kind = Kind(match["kind"]) if match else None
    point = None if match is None or kind is None else Point(match["point"] or _USUAL.get(kind, Point.STEP))
    if match is None or kind is None or point is None or point not in _ONLY.get(kind, tuple(Point)):
        raise InputError(
            f"{VARIABLE}: {text!r} is no fault. Write KIND@rankR:stepS, such as kill@rank1:step3, KIND one of "
            f"{', '.join(Kind)}; behind it ':POINT' for another moment than the usual one ({', '.join(Point)}; nan "
            "only at batch, slow only at step), and '@attemptN' or '@always' for another attempt than the first; "
            f"several with ',' between them. Unset {VARIABLE} to run without faults"
        )
    attempt = None if match["always"] else int(match["attempt"] or 1)
    return Fault(kind, int(match["rank"]), int(match["step"]), point, attempt)


@dataclass
class Faults:
    """Those that may still strike this rank in this attempt."""

    armed: tuple[Fault, ...] = ()
    _step: int = field(default=0, init=False)

    @classmethod
    def of(cls, faults: tuple[Fault, ...], rank: int, attempt: int) -> "Faults":
        """Those of a job that are this rank's in this attempt."""
        return cls(tuple(one for one in faults if one.rank == rank and one.attempt in (None, attempt)))

    def strike(self, point: Point, step: int | None = None) -> None:
        """A hook: does what is asked for at this point; `step` where a step or a checkpoint begins."""
        if not self.armed:
            return
        if point is Point.STEP and step is not None:
            self._step = step
        for fault in self._due(point, self._step if step is None else step):
            _happen(fault)

    def spoil(self, loss: "torch.Tensor") -> "torch.Tensor":
        """The hook of a micro-batch: its loss as it was, or NaN."""
        if not self.armed:
            return loss
        due = self._due(Point.BATCH, self._step)
        for fault in due:
            if fault.kind is not Kind.NAN:
                _happen(fault)
        return loss * float("nan") if due else loss

    def _due(self, point: Point, step: int) -> list[Fault]:
        """Each is due once, but for a slow rank, which stays so."""
        due = []
        for fault in self.armed:
            stays = fault.point in OF_A_CHECKPOINT or fault.kind is Kind.SLOW
            if fault.point is point and (step >= fault.step if stays else step == fault.step):
                due.append(fault)
        self.armed = tuple(one for one in self.armed if one not in due or one.kind is Kind.SLOW)
        return due


def _happen(fault: Fault) -> None:
    match fault.kind:
        case Kind.RAISE:
            raise InjectedFaultError(f"{VARIABLE} asked for it")
        case Kind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Kind.HANG:
            threading.Event().wait()
        case Kind.OOM:
            import torch

            raise torch.OutOfMemoryError(f"{VARIABLE} asked for it: tried to allocate more than there is")
        case Kind.SLOW:
            time.sleep(SLOW_S)
        case Kind.ENOSPC:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case Kind.NAN:
            raise AssertionError("a loss is spoilt where it is computed")
