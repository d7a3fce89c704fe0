"""What choosing a learning rate by short, noisy trials adds to the noise of a difference.

Two identical backbones may be given different rates by noise alone. Their runs then differ in truth, at every seed, so
seeds do not show it: without this term up to 37 % false winners at alpha 5 % (ten seeds).

Of the best two trials, gap g apart, let each have variance v. Knowing nothing else, their true difference is normal
around g with variance 2 v, and the chosen rate is worse than the other by max(0, -difference), whose second moment is

    2 v h(g / sqrt(2 v)),    h(z) = (1 + z^2) Phi(-z) - z phi(z)

v is what seeds change at the trials' share of the budget, as the judged runs' own curves show it. `CAUTION` times as
much covers that it is estimated, and more than two close rates: docs/decisions/0013-a-choice-is-noise.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf, sqrt

import numpy as np

from jobs.results.judging.seed_noise import Array

CAUTION = 2.5


@dataclass(frozen=True)
class Choice:
    """How each backbone got its learning rate: what is known of the noise in that."""

    gaps: Mapping[str, float]  # by backbone: score of its second-best trial less that of its best; infinite without
    variance: float  # of one trial's score
    is_of_metric: bool = True  # whether the verdict judges what trials are scored by

    def told_by(self, variance: float) -> "Choice":
        """For a verdict by another measure: a gap of as many seed deviations, which is none where trials have none."""
        factor = sqrt(variance / self.variance) if self.variance else 0.0
        return Choice({name: gap if isinf(gap) else factor * gap for name, gap in self.gaps.items()}, variance)


@dataclass(frozen=True)
class ChoiceNoise:
    """Variance that the choice adds to the mean of every backbone, in the order of the standings."""

    variance: Array  # (K,)
    df: float


def find_choice_noise(choice: Choice, ids: Sequence[str], pooled: tuple[float, int]) -> ChoiceNoise:
    """`pooled` is the variance between the judged runs' seeds, and its degrees of freedom: trials vary no less."""
    variance, df = pooled
    choice = choice if choice.is_of_metric else choice.told_by(variance)
    spread = np.sqrt(CAUTION * max(choice.variance, variance))
    gaps = np.array([choice.gaps.get(name, np.inf) for name in ids])
    return ChoiceNoise(spread**2 * _second_moment(gaps, float(spread)), float(max(df, 1)))


def _second_moment(gaps: Array, spread: float) -> Array:
    """Of what a choice loses, over the variance of the difference: h of the module's text."""
    from scipy.special import ndtr

    if spread == 0:
        return np.zeros(len(gaps))
    z = np.minimum(gaps / spread, 38.0)  # beyond, h is 0 in float64
    moment = (1 + z**2) * ndtr(-z) - z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(np.maximum(moment, 0.0))  # its two terms cancel to the last bit
