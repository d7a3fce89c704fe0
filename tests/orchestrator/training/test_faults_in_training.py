"""Faults that strike one rank of two, what all ranks make of them, and that the next attempt ends as if none had been.

What a killed or hanging rank does to a gang is proved on Ray Train workers: tests/orchestrator/attempt, tests/e2e.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gang import RankError, run_ranks
from small_jobs import curve, entries, make_job

from orchestrator.attempt.failure import Failure, account_of
from orchestrator.attempt.stages import run_cell
from orchestrator.attempt.taxonomy import Cause
from orchestrator.cell_job import CellJob
from orchestrator.faults import parse_faults
from orchestrator.layout import CellFolder
from orchestrator.results import CellStatus
from orchestrator.training.checkpoints.checkpoint import find_latest
from orchestrator.training.pulse import Pulse

STEPS = 8


def attempt(job: CellJob) -> Failure | None:
    """One rank's account of an attempt, as a worker gives it."""
    pulse = Pulse()
    try:
        run_cell(job, torch.device("cpu"), pulse)
    except BaseException as error:
        return account_of(torch.distributed.get_rank(), error, pulse.step)
    return None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> CellJob:
    """Checkpoints at steps 2, 4, 6 and 8; each rank computes its four rows of a step in one micro-batch."""
    budget, often = {"kind": "steps", "amount": STEPS}, {"every": 0.25, "keep": 9}
    job = make_job(
        tmp_path_factory.mktemp("job"), workers=2, budget=budget, checkpoint=often, micro_batch_size=4, packing=False
    )
    assert run_ranks(2, attempt, job) == [None, None]
    return job


@pytest.fixture
def struck(undisturbed: CellJob, tmp_path: Path) -> CellJob:
    """The same cell in a folder of its own."""
    return replace(undisturbed, folder=tmp_path / "cell")


def weights(job: CellJob) -> dict[str, bytes]:
    """The bytes of a cell's last checkpoint, by file."""
    newest, _ = find_latest(job.checkpoint_root)
    assert newest is not None
    assert newest.step == STEPS
    return {file.name: file.read_bytes() for file in newest.folder.glob("__*.distcp")}


def assert_ended_alike(job: CellJob, undisturbed: CellJob) -> None:
    for metric in ("loss", "grad_norm", "learning_rate"):
        assert curve(job, metric) == curve(undisturbed, metric), metric
    assert weights(job) == weights(undisturbed)


def test_a_disk_that_is_full_for_one_rank_is_told_by_all_and_costs_the_steps_since_the_last_checkpoint(
    undisturbed: CellJob, struck: CellJob
) -> None:
    accounts = run_ranks(2, attempt, replace(struck, faults=parse_faults("enospc@rank1:step5")))

    for account in accounts:
        assert account is not None
        assert (account.kind, account.cause) == ("CheckpointError", Cause.STORAGE)
        assert account.step is not None and account.step >= 6
        assert account.retriable and account.is_charged
        assert "No space left on device" in account.message
        assert "Earlier checkpoints are untouched; running the same command resumes" in account.message
    kept, passed_over = find_latest(struck.checkpoint_root)
    assert kept is not None and kept.step == 4
    assert len(passed_over) == 1 and "step-00000006-attempt-001: it was never committed" in passed_over[0]

    assert run_ranks(2, attempt, replace(struck, attempt=2)) == [None, None]
    assert_ended_alike(struck, undisturbed)


def test_a_loss_that_is_nan_on_one_rank_ends_all_of_them_before_the_update(struck: CellJob) -> None:
    accounts = run_ranks(2, attempt, replace(struck, faults=parse_faults("nan@rank1:step3")))

    for account in accounts:
        assert account is not None
        assert (account.kind, account.cause, account.status) == ("DivergedError", Cause.NON_FINITE, CellStatus.DIVERGED)
        assert not account.retriable and not account.is_charged
        assert account.step == 3
        assert "at step 3; the update was not made" in account.message
    assert [math.isnan(loss) for loss in curve(struck)] == [False, False, True]
    kept, _ = find_latest(struck.checkpoint_root)
    assert kept is not None and kept.step == 2


@pytest.mark.parametrize("world", [1, 4])
def test_a_checkpoint_of_two_ranks_goes_on_with_fewer_or_more(
    world: int, undisturbed: CellJob, struck: CellJob
) -> None:
    """As after a node was lost for good: the same rows a step, so the same losses but for the order of sums."""
    half = "step-00000004-attempt-001"
    shutil.copytree(undisturbed.checkpoint_root / half, struck.checkpoint_root / half)
    placement = struck.cell.placement.model_copy(update={"workers": world})
    cell = replace(struck.cell, placement=placement, micro_batch_size=2)

    assert run_ranks(world, attempt, replace(struck, cell=cell, attempt=2)) == [None] * world
    assert [entry.fields["step"] for entry in entries(struck, "step")] == [5, 6, 7, 8]
    assert curve(struck) == pytest.approx(curve(undisturbed)[4:], abs=1e-5)


@pytest.mark.parametrize("point", ["save", "manifest"])
def test_a_rank_killed_in_a_checkpoint_leaves_the_one_before_it(
    point: str, undisturbed: CellJob, struck: CellJob
) -> None:
    with pytest.raises(RankError):  # a process that is gone, or the connection to it
        run_ranks(2, attempt, replace(struck, faults=parse_faults(f"kill@rank1:step3:{point}")))

    assert run_ranks(2, attempt, replace(struck, attempt=2)) == [None, None]
    resumed = [entry.fields["step"] for entry in entries(struck, "phase") if entry.fields["phase"] == "resumed"]
    # Who writes the manifest may have done so before it could notice that rank 1 was gone.
    assert resumed in ([[2]] if point == "save" else [[2], [4]])
    assert_ended_alike(struck, undisturbed)


def test_a_rank_out_of_memory_is_told_and_half_the_micro_batch_ends_within_rounding(
    undisturbed: CellJob, struck: CellJob
) -> None:
    with pytest.raises(RankError):  # the other rank waits in a collective, until this one's process is gone
        run_ranks(2, out_of_memory, replace(struck, faults=parse_faults("oom@rank1:step4")))

    smaller = replace(struck, attempt=2, cell=replace(struck.cell, micro_batch_size=2))
    assert run_ranks(2, attempt, smaller) == [None, None]
    assert curve(struck) == pytest.approx(curve(undisturbed), abs=1e-5)
    assert [entry.attempt for entry in entries(struck, "step")] == [1] * 3 + [2] * 5
    measured = CellFolder(struck.folder).contract.read_text()
    assert '"micro_batch_size": 2' in measured and '"accumulation_steps": 2' in measured


def out_of_memory(job: CellJob) -> None:
    account = attempt(job)
    assert account is not None and (account.cause, account.rank, account.step) == (Cause.OUT_OF_MEMORY, 1, 4)
    raise RuntimeError("this rank's process ends here")
