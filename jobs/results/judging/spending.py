"""What a look at the data may cost of alpha: significance levels for verdicts that are made again with more seeds.

- *Declared* looks (`verdict.max_seeds`): alpha is spent by Lan and DeMets' (1983) Pocock-type function of the share of
  the declared seeds, alpha ln(1 + (e - 1) t). Seeds are counted, not information, so the data has no say in when a look
  is (Lan and DeMets 1989: calendar time). The level of a look makes the chance to cross by then exactly what is spent,
  for increments as independent as those of fresh seeds; looks that share item noise are more alike and cost less
  (Slepian 1962). The levels are used with t tests (Jennison and Turnbull 2000, on unknown variance). With one to four
  degrees of freedom these are less alike from look to look than z tests, which costs up to a quarter more false winners
  in simulation: so where there is more than one look, `DECLARED` of alpha is spent.
- Looks *by hand* were not declared, and there may be any number: each spends `BY_HAND` of what is left of alpha. The
  sum never passes alpha, whatever the dependence between looks (Bonferroni; alpha spending without an end).
"""

from collections.abc import Sequence
from math import e, log
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BY_HAND = 0.8  # of the alpha that is left

DECLARED = 0.65  # of alpha, over several declared looks

POINTS = 256  # of the grid over the scores that go on


def spent_by(alpha: float, share: float) -> float:
    """The Pocock-type spending function: of `alpha`, after this share of the declared seeds."""
    return alpha * log(1 + (e - 1) * min(share, 1.0))


def spent_by_looks(alpha: float, shares: Sequence[float]) -> float:
    """Of `alpha`, after looks at these shares of the declared seeds; all of it where the first look is the last."""
    return spent_by(DECLARED * alpha if shares[0] < 1 else alpha, shares[-1])


def nominal_levels(alpha: float, shares: Sequence[float]) -> list[float]:
    """The two-sided significance level of each look at rising shares of the declared seeds.

    Recursive integration of the score process S(t) ~ N(0, t) over what did not cross before (Armitage, McPherson and
    Rowe 1969), by the trapezoid rule.
    """
    from scipy.special import ndtr

    if shares and shares[0] < 1:
        alpha *= DECLARED
    levels: list[float] = []
    grid, weight, before, spent = np.zeros(1), np.ones(1), 0.0, 0.0
    for share in shares:
        due = spent_by(alpha, share) - spent
        deviation = np.sqrt(share - before)

        def crossing(bound: float, grid: Array = grid, weight: Array = weight, by: float = deviation) -> float:
            return float(weight @ (ndtr((-bound - grid) / by) + ndtr((grid - bound) / by)))

        low, high = 0.0, 40.0 * float(np.sqrt(share))
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if crossing(middle) > due else (low, middle)
        levels.append(float(2 * ndtr(-high / np.sqrt(share))))
        points = np.linspace(-high, high, POINTS)
        steps = np.full(POINTS, points[1] - points[0])
        steps[[0, -1]] /= 2
        density = np.exp(-(((points[:, None] - grid) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
        grid, weight, before, spent = points, (density @ weight) * steps, share, spent + due
    return levels
