"""Faults on demand: a grammar that is read strictly, and what each kind does to a rank, where and how often."""

import errno
import math
import multiprocessing
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.faults import Fault, Faults, InjectedFaultError, Kind, Point, parse_faults

USUAL = {
    Kind.NAN: Point.BATCH,
    Kind.OOM: Point.BATCH,
    Kind.ENOSPC: Point.SAVE,
    **dict.fromkeys((Kind.RAISE, Kind.KILL, Kind.HANG, Kind.SLOW), Point.STEP),
}


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_has_its_usual_moment_and_strikes_the_first_attempt(kind: Kind) -> None:
    assert parse_faults(f"{kind}@rank1:step3") == (Fault(kind, 1, 3, USUAL[kind], 1),)


def test_nothing_is_asked_for_by_an_empty_value() -> None:
    assert parse_faults("") == ()


@given(
    rank=st.integers(0, 999_999),
    step=st.integers(1, 999_999_999),
    point=st.sampled_from(Point),
    attempt=st.none() | st.integers(1, 99_999),
)
def test_what_is_written_is_what_strikes(rank: int, step: int, point: Point, attempt: int | None) -> None:
    when = "always" if attempt is None else f"attempt{attempt}"
    asked = Fault(Kind.KILL, rank, step, point, attempt)
    other = Fault(Kind.NAN, 0, 7, Point.BATCH, 1)
    assert parse_faults(f"kill@rank{rank}:step{step}:{point}@{when},nan@rank0:step7") == (asked, other)


@pytest.mark.parametrize(
    "text",
    [
        "kill",
        "kill@rank1",
        "kill@rank1:step0",
        "kill@rank-1:step3",
        "kill@rank1:step3@attempt0",
        "kill@rank1:step3:later",
        "kill@rank1:step3@sometimes",
        "explode@rank1:step3",
        "nan@rank1:step3:save",
        "slow@rank1:step3:manifest",
        "kill@rank1:step3,",
        "kill@rank1:step3, nan@rank1:step4",
        "KILL@rank1:step3",
        "kill@rank١:step3",
    ],
)
def test_anything_else_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(InputError, match=r"BACKBONE_FAULT: .* is no fault\. Write KIND@rankR:stepS") as raised:
        parse_faults(text)
    assert all(kind in str(raised.value) for kind in Kind)


def struck(text: str, rank: int, attempt: int, *moments: tuple[Point, int]) -> list[tuple[Point, int]]:
    """At which of some moments a rank is struck; a step's own comes first, as in training."""
    faults, found = Faults.of(parse_faults(text), rank, attempt), []
    for point, step in moments:
        try:
            faults.strike(point, step)
        except InjectedFaultError:
            found.append((point, step))
    return found


def test_a_fault_strikes_its_rank_its_step_and_its_attempt_once() -> None:
    moments = [(Point.STEP, step) for step in (1, 2, 3, 3, 4)]
    assert struck("raise@rank1:step3", 1, 1, *moments) == [(Point.STEP, 3)]
    assert struck("raise@rank1:step3", 0, 1, *moments) == []
    assert struck("raise@rank1:step3", 1, 2, *moments) == []
    assert struck("raise@rank1:step3@attempt2", 1, 2, *moments) == [(Point.STEP, 3)]
    assert [struck("raise@rank1:step3@always", 1, n, *moments) for n in (1, 2, 9)] == [[(Point.STEP, 3)]] * 3


@pytest.mark.parametrize("point", [Point.SAVE, Point.MANIFEST])
def test_a_fault_of_a_checkpoint_strikes_the_first_one_from_its_step_on(point: Point) -> None:
    moments = [(point, 2), (Point.STEP, 3), (point, 4), (point, 6)]
    assert struck(f"raise@rank0:step3:{point}", 0, 1, *moments) == [(point, 4)]


def test_a_loss_is_spoilt_in_one_micro_batch_and_is_itself_otherwise() -> None:
    loss = torch.tensor(2.0, requires_grad=True)
    faults = Faults.of(parse_faults("nan@rank0:step3"), 0, 1)
    seen = []
    for step in (2, 3, 3, 4):
        faults.strike(Point.STEP, step)
        seen += [faults.spoil(loss)]
    assert [math.isnan(one.item()) for one in seen] == [False, True, False, False]
    assert seen[0] is loss and seen[3] is loss
    seen[1].backward()
    assert loss.grad is not None and loss.grad.isnan(), "the gradients of that rank are spoilt with it"


def test_memory_runs_out_where_torch_says_so_and_a_disk_is_full_where_the_kernel_says_so() -> None:
    faults = Faults.of(parse_faults("oom@rank0:step1,enospc@rank0:step1"), 0, 1)
    faults.strike(Point.STEP, 1)
    with pytest.raises(torch.OutOfMemoryError):
        faults.spoil(torch.tensor(1.0))
    with pytest.raises(OSError, match="No space left on device") as raised:
        faults.strike(Point.SAVE, 1)
    assert raised.value.errno == errno.ENOSPC


def test_a_killed_rank_is_gone_at_once() -> None:
    process = multiprocessing.get_context("spawn").Process(target=be_killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def be_killed() -> None:
    Faults.of(parse_faults("kill@rank0:step1"), 0, 1).strike(Point.STEP, 1)
