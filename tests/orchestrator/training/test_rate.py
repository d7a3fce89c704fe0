"""Progress, learning rate and marks: pure functions of what a run has seen."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.feed import StepWork
from orchestrator.spec_files.spec import Budget, Optimizer
from orchestrator.training.rate import Seen, learning_rate, passed_a_mark, progress

PEAK = 0.01
SHARES = st.floats(0, 1)
WARM_UPS = st.floats(0, 0.99)
SCHEDULES = st.sampled_from(["cosine", "linear", "constant"])
WORK = StepWork(rows=((0, 1), (2,)), examples=3, tokens=100, targets=60, learnable_bytes=240)


def settings(schedule: str, warmup: float) -> Optimizer:
    return Optimizer.model_validate({"learning_rate": PEAK, "schedule": schedule, "warmup": warmup})


@given(share=SHARES, warmup=WARM_UPS, schedule=SCHEDULES)
def test_the_rate_is_never_negative_nor_above_its_peak(share: float, warmup: float, schedule: str) -> None:
    assert 0 <= learning_rate(settings(schedule, warmup), share) <= PEAK


@given(
    warmup=st.floats(0.01, 0.99), part=st.floats(0, 0.999), schedule=st.sampled_from(["cosine", "linear", "constant"])
)
def test_the_warm_up_is_a_straight_line_from_zero_to_the_peak(warmup: float, part: float, schedule: str) -> None:
    assert learning_rate(settings(schedule, warmup), warmup * part) == pytest.approx(PEAK * part)
    assert learning_rate(settings(schedule, warmup), warmup) == pytest.approx(PEAK)


@pytest.mark.parametrize(
    ("schedule", "quarter", "half", "three_quarters", "end"),
    [
        ("cosine", PEAK * (1 + math.sqrt(0.5)) / 2, PEAK / 2, PEAK * (1 - math.sqrt(0.5)) / 2, 0),
        ("linear", PEAK * 0.75, PEAK / 2, PEAK / 4, 0),
        ("constant", PEAK, PEAK, PEAK, PEAK),
    ],
)
def test_after_the_warm_up_the_rate_follows_the_schedule(
    schedule: str, quarter: float, half: float, three_quarters: float, end: float
) -> None:
    warmup = 0.2
    points = [learning_rate(settings(schedule, warmup), warmup + (1 - warmup) * part) for part in (0.25, 0.5, 0.75, 1)]
    assert points == pytest.approx([quarter, half, three_quarters, end], abs=1e-12)


def test_without_a_warm_up_the_rate_starts_at_its_peak() -> None:
    assert learning_rate(settings("cosine", 0), 0) == PEAK


@pytest.mark.parametrize(
    ("kind", "amount", "share"),
    [("steps", 8, 0.25), ("bytes", 960, 0.5), ("tokens", 400, 0.5), ("flops", 4000, 0.5), ("bytes", 100, 1.0)],
)
def test_progress_is_the_share_of_the_budget_that_is_used_up(kind: str, amount: float, share: float) -> None:
    seen = Seen().plus(WORK).plus(WORK)
    assert (seen.steps, seen.examples, seen.tokens, seen.bytes) == (2, 6, 200, 480)
    assert progress(seen, Budget.model_validate({"kind": kind, "amount": amount}), flops_per_token=10) == share


def test_a_budget_of_time_is_hours_times_workers() -> None:
    seen = replace(Seen().plus(WORK), device_seconds=5400.0).plus(WORK)
    assert progress(seen, Budget(kind="gpu_hours", amount=6), flops_per_token=10) == 0.25


@given(every=st.floats(0.001, 1), pieces=st.lists(st.floats(1e-6, 1), min_size=1, max_size=300))
def test_every_mark_is_passed_once_however_long_the_steps_are(every: float, pieces: list[float]) -> None:
    total = math.fsum(pieces)
    stops = [0.0, *(min(math.fsum(pieces[: index + 1]) / total, 1.0) for index in range(len(pieces)))]
    marks = [index * every for index in range(1, math.floor(1 / every + 1e-9) + 1)]

    passed = [(before, after) for before, after in pairwise(stops) if passed_a_mark(before, after, every)]

    for mark in marks:
        assert sum(before < mark - 1e-6 and after > mark + 1e-6 for before, after in passed) <= 1
        assert any(before <= mark + 1e-6 and after >= mark - 1e-6 for before, after in passed)
    for before, after in passed:
        assert any(before <= mark + 1e-6 and after >= mark - 1e-6 for mark in marks)
    assert len(passed) <= len(marks)


@pytest.mark.parametrize("every", [0.1, 0.2, 0.05, 1 / 3, 1.0])
def test_in_a_run_of_many_equal_steps_there_are_as_many_marks_as_fit_the_budget(every: float) -> None:
    budget = Budget(kind="steps", amount=60)
    stops = [progress(Seen(steps=step), budget, 1.0) for step in range(61)]
    passed = [step + 1 for step, (a, b) in enumerate(pairwise(stops)) if passed_a_mark(a, b, every)]
    assert passed == [round(60 * every * number) for number in range(1, round(1 / every) + 1)]
