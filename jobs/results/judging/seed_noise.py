"""What another seed changes: the seed noise of every pair's difference, pooled or paired by seed.

Seed s gives every backbone the same order of the data, so a part of its effect is common to all and leaves their
differences alone. Two forms, and `find_seed_noise` says which is used:

- *pooled*: the variance between seeds, as if every run were independent; Welch's form where two variances of a pair
  differ more than fourfold. Sound with a common part too, but blind to it.
- *paired*: score = backbone + seed + rest, by least squares (a randomised block design with seeds as blocks); only the
  rest is noise. Seeds that one backbone alone has say nothing about a difference and drop out, so unequal sets of seeds
  work. A pair whose own rest varies more than `OWN_RATIO` times the average keeps its own.

Three or more backbones are always paired. Two have so few degrees of freedom that pairing must earn its place: it is
used where the seeds' common part shows at `PRETEST`, since a choice that looks at the data costs false winners.
docs/decisions/0011-seeds-are-blocks.md has the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Form = Literal["pooled", "paired"]

WELCH_RATIO = 4.0  # a pair whose seed variances differ more than this is not pooled

OWN_RATIO = 1.5  # a pair whose own rest varies this many times as much as the average keeps its own

PRETEST = 0.01  # two backbones are paired where an F test finds a common part of the seeds at this level

ROUNDING = 1e-12  # a deviation below this share of the score is float noise of equal runs


class SeedNoise(Protocol):
    """The seed noise of every pair of K backbones."""

    @property
    def form(self) -> Form: ...

    def measure(self, more: int, scale: float) -> tuple[Array, Array, Array]:
        """By pair: variance V of the difference, the sum of V / df over its terms, and whether it is the pair's own.

        `more` seeds for every backbone and a seed variance `scale` times as large make it a projection.
        """


@dataclass(frozen=True)
class PooledSeeds:
    """Every run is independent of every other."""

    counts: Array  # (K,) seeds
    variances: Array  # (K,) between seeds
    form: Form = "pooled"

    def measure(self, more: int, scale: float) -> tuple[Array, Array, Array]:
        """Pooled over all backbones, or Welch's form."""
        pair = np.stack(np.triu_indices(len(self.counts), 1))  # (2, P)
        counts, variances = self.counts + more, self.variances * scale
        df = int(np.sum(self.counts - 1))
        mean = float(np.dot(self.counts - 1, variances)) / df if df else 0.0
        welch = variances[pair].max(axis=0) > WELCH_RATIO * variances[pair].min(axis=0)
        own, pooled = variances[pair] / counts[pair], mean * (1 / counts[pair]).sum(axis=0)
        variance = np.where(welch, own.sum(axis=0), pooled)
        return variance, np.where(welch, (own / (counts[pair] - 1)).sum(axis=0), pooled / np.sum(counts - 1)), welch


@dataclass(frozen=True)
class PairedSeeds:
    """Score = backbone + seed + rest, fitted to the seeds (S of them) that at least two of the K backbones have."""

    scores: Array  # (K, S); NaN where a backbone lacks a seed
    form: Form = "paired"

    @cached_property
    def present(self) -> Array:
        return ~np.isnan(self.scores)

    @cached_property
    def information(self) -> Array:
        """(K, K) of the backbones' effects, seeds eliminated: diag(r) - N diag(1 / k) N', N the incidence."""
        here = self.present.astype(float)
        return np.asarray(np.diag(here.sum(axis=1)) - (here / here.sum(axis=0)) @ here.T)

    @cached_property
    def inverse(self) -> Array:
        """(K, K) generalised inverse: the variance of a difference is the variance of the rest times its contrast."""
        return np.linalg.pinv(self.information, hermitian=True)

    @property
    def df(self) -> int:
        """Of the rest."""
        backbones, seeds = self.present.shape
        return int(np.sum(self.present)) - int(backbones) - int(seeds) + 1

    @property
    def is_estimable(self) -> bool:
        """Whether every difference can be estimated and some noise is left to see."""
        backbones, seeds = self.present.shape
        return seeds >= 2 and self.df >= 1 and int(np.linalg.matrix_rank(self.information)) == backbones - 1

    def fit(self, scores: Array) -> Array:
        """(K, ...) effects of the backbones in scores of shape (K, S, ...), adjusted for the seeds that each has."""
        here = self.present.reshape(*self.present.shape, *(1 for _ in scores.shape[2:]))
        known = np.where(here, scores, 0.0)
        means = known.sum(axis=0) / here.sum(axis=0)
        totals = np.where(here, known - means, 0.0).sum(axis=1)
        effects = np.tensordot(self.inverse, totals, axes=1)
        # The level is free in this model: it is the mean over seeds of what the backbones that have each came to.
        level = np.where(here, known - effects[:, None], 0.0).sum(axis=0) / here.sum(axis=0)
        return np.asarray(effects + level.mean(axis=0))

    @cached_property
    def rest(self) -> Array:
        """(K, S) residuals, 0 where a backbone lacks the seed."""
        left = np.where(self.present, self.scores - self.fit(self.scores)[:, None], 0.0)
        rest = np.where(self.present, left - left.sum(axis=0) / self.present.sum(axis=0), 0.0)
        rounding = ROUNDING * float(np.nanmax(np.abs(self.scores)))
        return np.where(np.abs(rest) <= rounding, 0.0, rest)

    @property
    def variance(self) -> float:
        """Of the rest."""
        return float(np.sum(self.rest**2)) / self.df

    @property
    def shared(self) -> float | None:
        """The share of the seed variance that all backbones have in common, at least 0; None without any variance."""
        between, rest = self._between, self.variance
        common = max(0.0, between - rest) / float(self.present.sum(axis=0).mean())
        return common / (common + rest) if common + rest > 0 else None

    @property
    def p_value(self) -> float:
        """Of the F test that seeds have nothing in common."""
        from scipy.special import fdtrc

        between, rest = self._between, self.variance
        if rest == 0:
            return 0.0 if between > 0 else 1.0
        return float(fdtrc(self.present.shape[1] - 1, self.df, between / rest))

    @property
    def _between(self) -> float:
        """Mean square of the seeds, adjusted for the backbones that each has."""
        centred = np.where(self.present, self.scores - np.nanmean(self.scores, axis=1, keepdims=True), 0.0)
        explained = float(np.sum(centred**2)) - float(np.sum(self.rest**2))
        rounding = (ROUNDING * float(np.nanmax(np.abs(self.scores)))) ** 2
        return explained / (self.present.shape[1] - 1) if explained > rounding else 0.0

    def measure(self, more: int, scale: float) -> tuple[Array, Array, Array]:
        """The variance of the rest times the contrast of each pair, or the pair's own."""
        backbones, seeds = self.present.shape
        first, second = np.triu_indices(backbones, 1)
        factor = np.diag(self.inverse)[first] + np.diag(self.inverse)[second] - 2 * self.inverse[first, second]
        factor = factor * seeds / (seeds + more)
        mean, df = self.variance * scale, self.df + (backbones - 1) * more
        variance, inverse = mean * factor, mean * factor / df
        own, own_df = self._own(first, second, more)
        own = own * scale
        differs = own > OWN_RATIO * mean
        if backbones == 2:
            differs = np.zeros_like(differs)
        return (
            np.where(differs, own * factor, variance),
            np.where(differs, own * factor / np.minimum(own_df, df), inverse),
            differs,
        )

    def _own(self, first: Array, second: Array, more: int) -> tuple[Array, Array]:
        """Each pair's own variance of the rest and its df, from the seeds that every backbone has.

        Backbone k has rest variance v_k = (S_k - v / K) / (1 - 2 / K), S_k its squared rest per degree of freedom and
        v the average (Grubbs 1948). Without two such seeds, or with two backbones, there is nothing of their own.
        """
        whole = self.scores[:, self.present.all(axis=0)]
        backbones, seeds = whole.shape
        if backbones < 3 or seeds < 2:
            return np.zeros(len(first)), np.ones(len(first))
        rest = whole - whole.mean(axis=1, keepdims=True)
        squares = np.sum((rest - rest.mean(axis=0)) ** 2, axis=1) / (seeds - 1)
        average = squares.sum() / (backbones - 1)
        each = np.maximum(0.0, (squares - average / backbones) / (1 - 2 / backbones))
        both = each[first] + each[second]
        norm = each[first] ** 2 + each[second] ** 2
        df = np.divide(both**2, norm, out=np.ones(len(first)), where=norm > 0) * (seeds + more - 1)
        return both / 2, df


def find_seed_noise(scores: Sequence[dict[str, float]], counts: Array, variances: Array) -> SeedNoise:
    """The form that fits these backbones; `scores` by seed."""
    pooled = PooledSeeds(counts, variances)
    paired = pair_seeds(scores)
    if paired is None or not paired.is_estimable:
        return pooled
    return paired if len(counts) > 2 or paired.p_value < PRETEST else pooled


def pair_seeds(scores: Sequence[dict[str, float]]) -> PairedSeeds | None:
    """The table of backbones by seeds, without the seeds that only one backbone has; None where none is left."""
    table = np.array([[one.get(seed, np.nan) for seed in shared_seeds(scores)] for one in scores])
    return PairedSeeds(table) if table.size and not np.isnan(table).all(axis=1).any() else None


def shared_seeds(scores: Sequence[dict[str, float]]) -> list[str]:
    """The seeds that at least two backbones have, in a fixed order."""
    every = {seed for one in scores for seed in one}
    return sorted(
        (seed for seed in every if sum(seed in one for one in scores) > 1), key=lambda seed: (len(seed), seed)
    )
