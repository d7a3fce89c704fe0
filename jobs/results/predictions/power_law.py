"""Scores at a larger budget, from scores at smaller ones: a power law with a floor, and how unsure its end is. Pure.

    score(b) = c + a b^-p        c >= 0, a >= 0, 0 < p

(Kaplan et al. 2020, arXiv:2001.08361; with the floor, Hoffmann et al. 2022, arXiv:2203.15556.) For a given p this is a
line in z = (b^-p - e^-p) / (s^-p - e^-p), which falls from 1 at the smallest budget s to 0 at the largest e: its two
coefficients are the score at e, and the drop from s to e. Priors are flat on these, and on the logs of p and of the
noise; coefficients and noise are integrated out in closed form, p on a grid, and draws from what is left are the
prediction. No exponent is picked, so a few budgets that many exponents fit give the wide interval that they deserve.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXPONENTS = np.geomspace(0.02, 2.0, 4001)
FEWEST_BUDGETS = 4  # three parameters and something to see the noise by
LEAST_SPAN = 4.0  # the largest over the smallest
FARTHEST = 10.0  # times the largest
DRAWS = 20_000
LEAST_KEPT = 0.1  # of the draws; below that the scores do not fall as the law does
_ROUNDING = 1e-9  # of the score


@dataclass(frozen=True)
class Unpredictable:
    """Why there is no prediction."""

    reason: str


def find_obstacle(budgets: Array, at: float) -> str | None:
    """Why scores at these budgets say nothing of the one `at`; None where they may."""
    distinct = np.unique(budgets)
    if len(distinct) < FEWEST_BUDGETS:
        return f"{len(distinct)} budget{'' if len(distinct) == 1 else 's'}, at least {FEWEST_BUDGETS} are needed"
    span = distinct[-1] / distinct[0]
    if span < LEAST_SPAN:
        return f"the largest budget is {span:.3g} times the smallest, at least {LEAST_SPAN:g} times is needed"
    if not 1 < at / distinct[-1] <= FARTHEST:
        times = at / distinct[-1]
        return f"{at:.6g} is {times:.3g} times the largest budget; more than 1 and at most {FARTHEST:g} times is said"
    return None


def extrapolate(budgets: Array, scores: Array, at: float, rng: np.random.Generator) -> Array | Unpredictable:
    """Draws of the mean score at the budget `at`, (DRAWS,); `budgets` and `scores` are (N,), one of each run."""
    if (obstacle := find_obstacle(budgets, at)) is not None:
        return Unpredictable(obstacle)
    start, end = budgets.min(), budgets.max()
    powers = -EXPONENTS[:, None]
    span = start**powers - end**powers  # (P, 1)
    z = (budgets**powers - end**powers) / span  # (P, N)
    z_at, z_ever = (at**powers - end**powers)[:, 0] / span[:, 0], -(end**powers)[:, 0] / span[:, 0]

    # Least squares for each exponent, multiplied out: two coefficients, (end score, drop).
    number, mean_z, mean_score = len(scores), z.mean(axis=1), scores.mean()
    spread = ((z - mean_z[:, None]) ** 2).sum(axis=1)
    drop = ((z - mean_z[:, None]) @ (scores - mean_score)) / spread
    ends = mean_score - drop * mean_z
    rest = ((scores - ends[:, None] - drop[:, None] * z) ** 2).sum(axis=1)
    rest = np.maximum(rest, number * (_ROUNDING * abs(mean_score)) ** 2)
    df = number - 2
    weight = -0.5 * df * np.log(rest) - 0.5 * np.log(number * spread)
    weight = np.exp(weight - weight.max())

    chosen = rng.choice(len(EXPONENTS), DRAWS, p=weight / weight.sum())
    noise = np.sqrt(rest[chosen] / rng.chisquare(df, DRAWS))
    drops = drop[chosen] + noise / np.sqrt(spread[chosen]) * rng.normal(size=DRAWS)
    centres = mean_score + noise / np.sqrt(number) * rng.normal(size=DRAWS)
    ends_drawn = centres - drops * mean_z[chosen]
    possible = (drops >= 0) & (ends_drawn + drops * z_ever[chosen] >= 0)
    if possible.mean() < LEAST_KEPT:
        return Unpredictable("its scores do not fall as a power law does")
    predicted = (ends_drawn + drops * z_at[chosen])[possible]
    return rng.choice(predicted, DRAWS) if len(predicted) < DRAWS else predicted
