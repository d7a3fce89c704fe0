"""Which states of jobs and cells follow which: every change is held against it, and docs/queue.md shows it.

None is the state of what the queue does not know yet. A change that is not here is a bug of ours.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from jobs.queue.rows import JobState
from orchestrator.results import CellStatus

State = TypeVar("State", bound=StrEnum)

J, C = JobState, CellStatus
OVER = (C.SUCCEEDED, C.OUT_OF_MEMORY, C.DIVERGED, C.FAILED, C.TIMED_OUT, C.UNCERTIFIED, C.CANCELLED)

# A job that was asked to stop stays RUNNING, with the reason in `stop`, until its driver has kept a checkpoint.
JOBS: Mapping[JobState | None, Mapping[JobState, str]] = {
    None: {J.QUEUED: "submitted", J.RUNNING: "a driver attaches that nobody submitted"},
    J.QUEUED: {
        J.QUEUED: "submitted again",
        J.RUNNING: "its first lease starts a driver, or a driver attaches",
        J.FAILED: "its budget is used up before it began",
        J.CANCELLED: "stopped or cancelled while it waits",
    },
    J.RUNNING: {
        J.RUNNING: "asked to stop, or another driver takes over",
        J.QUEUED: "its driver is lost; another one starts with the next lease",
        J.SUCCEEDED: "its driver ends with 0",
        J.FAILED: "its driver ends with another code, or drivers keep dying",
        J.CANCELLED: "stopped, cancelled, or interrupted by a person",
        J.INTERRUPTED: "its driver died, and only whoever ran it can run it again",
    },
    **{
        over: {J.QUEUED: "submitted again", J.RUNNING: "a driver attaches again"}
        for over in (J.SUCCEEDED, J.FAILED, J.CANCELLED, J.INTERRUPTED)
    },
}

CELLS: Mapping[CellStatus | None, Mapping[CellStatus, str]] = {
    None: {C.QUEUED: "its job wants it"},
    C.QUEUED: {
        C.QUEUED: "waits on",
        C.RUNNING: "granted a lease",
        **dict.fromkeys(OVER, "closed while it waits: found finished, or its job stops"),
    },
    C.RUNNING: {
        C.RUNNING: "trains on",
        C.QUEUED: "requeued: its driver or a worker is lost, or a failure is worth another attempt",
        C.PREEMPTED: "requeued: it gave way at a checkpoint",
        **dict.fromkeys(OVER, "its attempt ended it"),
    },
    C.PREEMPTED: {
        C.QUEUED: "waits on",
        C.PREEMPTED: "waits on",
        C.RUNNING: "granted a lease",
        **dict.fromkeys(OVER, "closed while it waits: found finished, or its job stops"),
    },
    **{over: {C.QUEUED: "wanted again", **dict.fromkeys(OVER, "told once more")} for over in OVER},
}


def check(table: Mapping[State | None, Mapping[State, str]], before: State | None, after: State, name: str) -> None:
    """Raises AssertionError for a change that the table does not have."""
    assert after in table[before], f"{name} cannot go from {before} to {after}"


def as_markdown(table: Mapping[State | None, Mapping[State, str]]) -> str:
    """The table as docs/queue.md shows it: states with the same ways out, and ways with the same cause, share a row."""
    alike: list[tuple[list[str], Mapping[State, str]]] = []
    for before, changes in table.items():
        same = next((names for names, known in alike if known == changes), None)
        if same is None:
            alike.append(([str(before or "-")], changes))
        else:
            same.append(str(before))
    lines = ["| from | to | when |", "|---|---|---|"]
    for names, changes in alike:
        by_cause: dict[str, list[str]] = {}
        for after, cause in changes.items():
            by_cause.setdefault(cause, []).append(str(after))
        lines += [f"| {', '.join(names)} | {', '.join(after)} | {cause} |" for cause, after in by_cause.items()]
    return "\n".join(lines)
