"""The table of what may end an attempt, row by row: an error as it is raised, and all that follows from it."""

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from requests.exceptions import ConnectTimeout
from torch.distributed import DistNetworkError

from backbones.errors import BackboneError
from backbones.reference import HubError, InvalidReferenceError
from orchestrator import errors
from orchestrator.attempt.failure import HANG, PEER_HANGS, PEER_LOST, Failure, account_of, find_first_cause
from orchestrator.attempt.taxonomy import TAXONOMY, Action, Cause
from orchestrator.layout import CellFolder
from orchestrator.results import CellStatus, write_json

PAGE = Path(__file__).parents[3] / "docs" / "faults.md"
FAILED = CellStatus.FAILED

# An error, its row, whether another attempt follows by the error alone, and the cell's status where none does.
ERRORS: list[tuple[BaseException, Cause, bool, CellStatus]] = [
    (torch.OutOfMemoryError("CUDA out of memory"), Cause.OUT_OF_MEMORY, False, CellStatus.OUT_OF_MEMORY),
    (MemoryError(), Cause.OUT_OF_MEMORY, False, CellStatus.OUT_OF_MEMORY),
    (errors.OutOfMemoryError("designed"), Cause.OUT_OF_MEMORY, False, CellStatus.OUT_OF_MEMORY),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
        Cause.OUT_OF_MEMORY,
        False,
        CellStatus.OUT_OF_MEMORY,
    ),
    (errors.DivergedError("NaN at step 3"), Cause.NON_FINITE, False, CellStatus.DIVERGED),
    (errors.HangError("no progress"), Cause.HANG, True, FAILED),
    (DistNetworkError("refused"), Cause.WORKER_LOST, True, FAILED),
    (RuntimeError("[../gloo/transport/tcp/pair.cc:538] Connection closed"), Cause.WORKER_LOST, True, FAILED),
    (OSError(errno.ENOSPC, "No space left on device"), Cause.STORAGE, True, FAILED),
    (OSError(errno.EROFS, "Read-only file system"), Cause.STORAGE, True, FAILED),
    (PermissionError(errno.EACCES, "Permission denied"), Cause.STORAGE, True, FAILED),
    (errors.CheckpointError("cannot write"), Cause.STORAGE, True, FAILED),
    (errors.ExportError("cannot write"), Cause.STORAGE, True, FAILED),
    (HubError("no network"), Cause.NETWORK, True, FAILED),
    (ConnectionResetError(), Cause.NETWORK, True, FAILED),
    (TimeoutError(), Cause.NETWORK, True, FAILED),
    (ConnectTimeout("hub"), Cause.NETWORK, True, FAILED),
    (LocalEntryNotFoundError("hub"), Cause.NETWORK, True, FAILED),
    (errors.spec_error("data.jsonl", "line 3 is no JSON"), Cause.INPUT, False, FAILED),
    (BackboneError("no such template"), Cause.INPUT, False, FAILED),
    (InvalidReferenceError("remote code"), Cause.INPUT, False, CellStatus.INFEASIBLE),
    (errors.ShardingError("no unit"), Cause.INPUT, False, CellStatus.INFEASIBLE),
    (errors.CertificateError("a proof failed"), Cause.INPUT, False, CellStatus.UNCERTIFIED),
    (errors.CancelledError("stopped"), Cause.STOPPED, False, CellStatus.CANCELLED),
    (errors.TimedOutError("used up"), Cause.STOPPED, False, CellStatus.TIMED_OUT),
    (ZeroDivisionError("division by zero"), Cause.CODE, True, FAILED),
    (KeyError("step"), Cause.CODE, True, FAILED),
    (AssertionError(), Cause.CODE, True, FAILED),
]


@pytest.mark.parametrize(("error", "cause", "retriable", "status"), ERRORS, ids=lambda one: type(one).__name__)
def test_an_error_has_the_row_the_charge_and_the_status_of_the_table(
    error: BaseException, cause: Cause, retriable: bool, status: CellStatus
) -> None:
    failure, rule = account_of(1, error, step=7), TAXONOMY[cause]
    assert (failure.cause, failure.retriable, failure.status) == (cause, retriable, status)
    assert failure.is_charged is rule.is_charged
    assert retriable is (rule.action in (Action.RETRY, Action.WAIT))
    assert rule.status in (None, status)
    assert re.match(r"\w+ on rank 1 at step 7: .+", failure.account)
    assert "\n" not in failure.account


def test_every_row_has_an_error_here_but_the_one_that_only_ray_can_tell() -> None:
    assert {cause for _, cause, _, _ in ERRORS} == set(Cause) - {Cause.PREEMPTED}
    assert set(TAXONOMY) == set(Cause)


def designed(base: type[Exception]) -> Iterator[type[Exception]]:
    for one in base.__subclasses__():
        yield one
        yield from designed(one)


@pytest.mark.parametrize("kind", sorted(designed(errors.OrchestratorError), key=lambda kind: kind.__name__))
def test_what_a_designed_error_says_of_itself_is_what_its_row_says(kind: type[errors.OrchestratorError]) -> None:
    failure = account_of(0, kind(()))  # a SpecError wants problems, the others anything
    rule = TAXONOMY[failure.cause]
    assert kind.retriable is (rule.action in (Action.RETRY, Action.WAIT))
    assert rule.status in (None, CellStatus(kind.status))


def test_the_page_shows_the_table() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    shown = {row[0]: row[1:] for row in rows if row[0] in set(Cause)}
    charged = {True: "yes", False: "no"}
    assert shown == {
        str(cause): [rule.recognised_by, str(rule.action), charged[rule.is_charged], rule.status or "the error's own"]
        for cause, rule in TAXONOMY.items()
    }


def leave_account(folder: Path, rank: int, kind: str, step: int, when: float = 1.0) -> None:
    account = Failure(kind, f"at step {step}", rank, when, retriable=True, cause=Cause.HANG, step=step)
    document = {**account.__dict__}
    write_json(CellFolder(folder).failure(1, rank), document)


def first_cause(folder: Path, workers: int = 3) -> Failure:
    return find_first_cause(folder, 1, workers, RuntimeError("the workers are gone"))


def test_of_ranks_that_wait_for_one_that_does_not_the_latter_hangs(tmp_path: Path) -> None:
    leave_account(tmp_path, 0, PEER_HANGS, 3, when=1.0)
    leave_account(tmp_path, 2, PEER_HANGS, 3, when=1.1)
    leave_account(tmp_path, 1, HANG, 3, when=1.2)
    assert (first_cause(tmp_path).rank, first_cause(tmp_path).step) == (1, 3)


def test_a_rank_that_left_no_stack_is_suspected_where_all_others_wait(tmp_path: Path) -> None:
    leave_account(tmp_path, 0, PEER_HANGS, 3)
    leave_account(tmp_path, 1, PEER_HANGS, 3)
    failure = first_cause(tmp_path)
    assert (failure.kind, failure.rank, failure.step, failure.cause) == (HANG, 2, 3, Cause.HANG)


def test_a_rank_that_waits_a_step_behind_all_others_is_named(tmp_path: Path) -> None:
    for rank, step in enumerate((4, 3, 4)):
        leave_account(tmp_path, rank, PEER_HANGS, step)
    assert (first_cause(tmp_path).rank, first_cause(tmp_path).step) == (1, 3)


def test_nobody_is_named_where_all_ranks_wait_at_the_same_place(tmp_path: Path) -> None:
    for rank in range(3):
        leave_account(tmp_path, rank, PEER_HANGS, 3)
    failure = first_cause(tmp_path)
    assert (failure.kind, failure.rank) == (HANG, None)
    assert failure.message.startswith("all ranks wait for each other: ")


def test_a_lost_connection_is_told_with_the_step_at_which_it_was_noticed(tmp_path: Path) -> None:
    write_json(
        CellFolder(tmp_path).failure(1, 0),
        {**Failure(PEER_LOST, "gloo", 0, 1.0, True, cause=Cause.WORKER_LOST, step=5).__dict__},
    )
    failure = first_cause(tmp_path, workers=2)
    assert failure.account.startswith("WorkerDiedError on rank 1 at step 5: ")
