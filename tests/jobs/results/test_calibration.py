"""Identical backbones have a winner no more often than alpha, at one look and at many, tuned or not: benchmarks in
short.
"""

from math import sqrt

import numpy as np
import pytest

from benchmarks.verdict_calibration import ALPHA, Setting, blind, decided, peeked, rates, sample, tune, winner

REPLICATES = 400
BOUND = ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / REPLICATES)

SETTINGS = [
    Setting(2, 2, "seeds"),
    Setting(2, 3, "seeds", shared=0.9),
    Setting(2, 5, "seeds", noisy=3.0),
    Setting(2, 2, "both", noisy=3.0),
    Setting(2, 3, "items", lognormal=True),
    Setting(2, 3, "clustered"),
    Setting(2, 3, "seed x item"),
    Setting(4, 2, "seeds", noisy=3.0, shared=0.9),
    Setting(4, 3, "seeds", shared=0.5),
    Setting(8, 3, "both", lognormal=True, shared=0.9),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_identical_backbones_have_a_winner_no_more_often_than_alpha(setting: Setting) -> None:
    rng = np.random.default_rng(20)
    found = [winner(sample(rng, setting), 0.0) for _ in range(REPLICATES)]
    assert np.mean([name is not None for name in found]) <= BOUND


@pytest.mark.parametrize(("backbones", "noisy", "shared"), [(2, 1.0, 0.0), (4, 3.0, 0.9)])
def test_adding_seeds_until_somebody_wins_names_no_more_false_winners(
    backbones: int, noisy: float, shared: float
) -> None:
    rng = np.random.default_rng(21)
    samples = [sample(rng, Setting(backbones, 8, "seeds", noisy=noisy, shared=shared)) for _ in range(200)]
    bound = ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / 200)
    assert np.mean([decided(one) for one in samples]) <= bound
    assert np.mean([peeked(one) for one in samples]) <= bound


@pytest.mark.parametrize(("seeds", "curve", "trial_noise"), [(3, 10.0, 2.0), (5, 3.0, 1.0), (10, 1.0, 2.0)])
def test_learning_rates_that_noise_chose_name_no_more_false_winners(
    seeds: int, curve: float, trial_noise: float
) -> None:
    rng, setting = np.random.default_rng(23), Setting(2, seeds, "seeds")
    pairs = [(sample(rng, setting), tune(rng, setting, curve, trial_noise)) for _ in range(REPLICATES)]
    assert np.mean([winner(one, 0.0, how) is not None for one, how in pairs]) <= BOUND
    if seeds == 10:  # the reason for the term: without it
        assert np.mean([winner(one, 0.0, blind(how)) is not None for one, how in pairs]) > 2 * BOUND


def test_seeds_in_common_give_power_to_three_backbones_and_more() -> None:
    _, power, oracle = rates(np.random.default_rng(22), Setting(4, 5, "seeds", shared=0.9), 200)
    assert power > 0.85 * oracle
