"""What a noisy choice of learning rates adds to a difference's variance, against draws and by its limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.results.judging.choice_noise import CAUTION, Choice, find_choice_noise


def added(gap: float, trials: float, runs: float = 0.0) -> float:
    return float(find_choice_noise(Choice({"a": gap}, trials), ["a"], (runs, 4)).variance[0])


@pytest.mark.parametrize("gap", [0.0, 0.3, 1.0, 2.5])
def test_it_is_the_second_moment_of_what_a_wrong_choice_loses(gap: float) -> None:
    truth = np.random.default_rng(1).normal(gap, np.sqrt(CAUTION), 2_000_000)  # of variance 1 for a trial
    assert added(gap, 1.0) == pytest.approx(np.mean(np.maximum(0, -truth) ** 2), rel=0.02)


@given(st.floats(0, 100), st.floats(1e-8, 100), st.floats(0, 100))
def test_it_falls_with_the_gap_and_scales_as_variances_do(gap: float, trials: float, runs: float) -> None:
    here = added(gap, trials, runs)
    assert 0 <= added(gap + 1, trials, runs) <= here <= CAUTION * max(trials, runs) / 2 * (1 + 1e-9)
    assert added(3 * gap, 9 * trials, 9 * runs) == pytest.approx(9 * here, rel=1e-6, abs=1e-12)


def test_a_clear_choice_adds_nothing() -> None:
    assert added(float("inf"), 1.0) == 0 and added(100.0, 1.0) == 0
    assert added(0.0, 0.0) == 0  # runs that seeds do not change


def test_trials_vary_no_less_than_runs() -> None:
    assert added(0.1, 0.0, 4.0) == added(0.1, 4.0, 0.0) == added(0.1, 4.0, 1.0)


def test_a_backbone_without_a_second_trial_had_no_choice() -> None:
    noise = find_choice_noise(Choice({"a": 0.0}, 1.0), ["b", "a"], (1.0, 4))
    assert noise.variance[0] == 0 and noise.variance[1] > 0 and noise.df == 4


@given(st.floats(0, 5), st.floats(1e-4, 100), st.floats(1e-6, 100))
def test_another_measure_than_the_trials_takes_a_gap_by_its_deviations(gap: float, trials: float, runs: float) -> None:
    """In whatever unit trials are scored, what is added is in that of the verdict."""

    def of(scale: float) -> float:
        choice = Choice({"a": scale * gap * trials**0.5}, scale**2 * trials, is_of_metric=False)
        return float(find_choice_noise(choice, ["a"], (runs, 4)).variance[0])

    assert of(1.0) == pytest.approx(of(100.0), rel=1e-6, abs=1e-12)
    assert of(1.0) == pytest.approx(added(gap * runs**0.5, runs, runs), rel=1e-6, abs=1e-12)
    unknown = Choice({"a": gap, "b": float("inf")}, 0.0, is_of_metric=False)
    noise = find_choice_noise(unknown, ["a", "b"], (runs, 4)).variance
    assert list(noise) == pytest.approx([CAUTION * runs / 2, 0.0])
