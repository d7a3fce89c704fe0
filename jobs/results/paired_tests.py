"""Paired tests between backbones over the same held-out items, with two components of noise.

For two backbones A and B the difference of corpus bits per byte has two independent sources of noise:

    SE^2 = s2_seed (1/n_A + 1/n_B)  +  s2(D_g) / n_groups

The seed term pools the variance between seeds over all backbones; a pair whose variances differ more than fourfold
uses Welch's form. The item term is the delete-one-group jackknife of the byte-weighted corpus ratio of the
seed-averaged difference: with groups of equal bytes exactly s2(D_g) / n_groups, with unequal ones still cluster-robust.

Does it count something twice? A seed effect that is the same per byte in every group moves every D_g alike, so the
item term does not see it. The part of seed noise that differs between groups (variance v per group) is in both terms:
in expectation v (1/n_A + 1/n_B) / n_groups. If seeds differed *only* so and groups had no noise of their own, SE^2
would be twice the truth. Subtracting that part takes a difference of two noisy estimates that turns negative just
when it matters, so we keep the sum and err towards "undecided".

Degrees of freedom: SE^2 / df = sum over its terms of (variance / df). Satterthwaite squares the variances in this sum;
with two or three seeds it trusts too much that seeds which happen to lie close are close: 9 % false winners at alpha
0.05 where items and seeds matter alike and one of two backbones is three times as noisy, against 5 % here.

Not covered: a backbone that has fewer seeds *and* much more seed noise than its rival (2 seeds against 5, three times
the deviation: about 15 % false winners, since two seeds cannot show it). A note says where seed counts differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import log, sqrt
from typing import Any

import numpy as np

from orchestrator.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

WELCH_RATIO = 4.0  # a pair whose seed variances differ more than this is not pooled

ROUNDING = 1e-12  # a deviation below this share of the score is float noise of equal runs


@dataclass(frozen=True)
class CellScores:
    """Per-item scores of one finished cell; every cell of a comparison has the same items in the same order."""

    backbone_id: str
    seed: int
    nats: Array  # (items,) float64 negative log-likelihood summed over the item's scored tokens


@dataclass(frozen=True)
class Standings:
    """The backbones with a finished cell, best first (K of them), over G source groups."""

    ids: list[str]
    seeds: list[dict[str, float]]  # seed -> bits per byte
    means: Array  # (K,) bits per byte
    counts: Array  # (K,) seeds
    variances: Array  # (K,) between seeds; 0 with one, which then has no weight
    group_bits: Array  # (K, G) averaged over seeds
    group_bytes: Array  # (G,)

    def take(self, rows: list[int]) -> "Standings":
        """The same for some of the backbones."""
        return Standings(
            ids=[self.ids[k] for k in rows],
            seeds=[self.seeds[k] for k in rows],
            means=self.means[rows],
            counts=self.counts[rows],
            variances=self.variances[rows],
            group_bits=self.group_bits[rows],
            group_bytes=self.group_bytes,
        )

    @property
    def pooled(self) -> tuple[float, int]:
        """Seed variance pooled over the backbones, and its degrees of freedom."""
        df = int(np.sum(self.counts - 1))
        return (float(np.dot(self.counts - 1, self.variances)) / df if df else 0.0), df


@dataclass(frozen=True)
class ItemNoise:
    """Variance of every pair's difference from the choice of held-out source groups."""

    variance: Array  # (P,)
    df: float


@dataclass(frozen=True)
class PairTests:
    """The test of every pair (P of them): rows `first` < `second` of the standings."""

    first: Array
    second: Array
    difference: Array
    standard_error: Array
    df: Array
    welch: Array
    p_value: Array
    half_width: Array  # of the 1 - alpha interval
    equivalent: Array


def check_scores(cells: Sequence[CellScores], item_bytes: Array, item_groups: Sequence[str]) -> None:
    """Refuses scores that do not belong to these items."""
    if len(item_groups) != len(item_bytes) or not np.all(np.asarray(item_bytes) > 0):
        raise InputError("every held-out item needs a source group and at least one byte; drop empty items")
    seen = set()
    for cell in cells:
        name = f"{cell.backbone_id} seed {cell.seed}"
        if np.shape(cell.nats) != (len(item_bytes),):
            raise InputError(
                f"{name} has scores of shape {np.shape(cell.nats)} for {len(item_bytes)} held-out items; "
                "evaluate it again on the items of this comparison"
            )
        if not np.all(np.isfinite(cell.nats)):
            raise InputError(f"{name} has scores that are not finite; leave it out or evaluate it again")
        if (cell.backbone_id, cell.seed) in seen:
            raise InputError(f"{name} is given twice; keep one of the two")
        seen.add((cell.backbone_id, cell.seed))


def find_standings(cells: Sequence[CellScores], item_bytes: Array, item_groups: Sequence[str]) -> Standings:
    """Sorts first, so that the order of the cells cannot change even the last bit."""
    names, group_of_item = np.unique(np.asarray(item_groups, dtype=str), return_inverse=True)
    group_bytes = np.bincount(group_of_item, weights=item_bytes, minlength=len(names))
    rows = []
    by_backbone = groupby(sorted(cells, key=lambda cell: (cell.backbone_id, cell.seed)), lambda cell: cell.backbone_id)
    for backbone_id, members in by_backbone:
        seeds = {str(cell.seed): cell.nats / log(2) for cell in members}
        bits = np.mean(list(seeds.values()), axis=0)
        scores = {seed: float(values.sum() / np.sum(item_bytes)) for seed, values in seeds.items()}
        rows.append((float(np.mean(list(scores.values()))), backbone_id, scores, np.bincount(group_of_item, bits)))
    rows.sort(key=lambda row: row[:2])
    return Standings(
        ids=[row[1] for row in rows],
        seeds=[row[2] for row in rows],
        means=np.array([row[0] for row in rows]),
        counts=np.array([len(row[2]) for row in rows], dtype=int),
        variances=np.array([_seed_variance(list(row[2].values())) for row in rows]),
        group_bits=np.array([row[3] for row in rows]).reshape(len(rows), len(names)),
        group_bytes=group_bytes,
    )


def _seed_variance(scores: list[float]) -> float:
    """Zero, not rounding noise, for equal runs."""
    variance = float(np.var(scores, ddof=1)) if len(scores) > 1 else 0.0
    return variance if sqrt(variance) > ROUNDING * abs(float(np.mean(scores))) else 0.0


def measure_item_noise(standings: Standings) -> ItemNoise:
    """Delete-one-group jackknife of every pair's corpus ratio; with G equal groups it is s2(D_g) / G with G - 1 df.

    Degrees of freedom match the first two moments of the estimate (Bell and McCaffrey 2002, for independent groups of
    equal noise per byte): a group that holds half of the bytes leaves little more than one.
    """
    first, second = np.triu_indices(len(standings.ids), 1)
    if not len(first):
        return ItemNoise(np.zeros(0), 0.0)
    total, groups = standings.group_bytes.sum(), len(standings.group_bytes)
    weight = standings.group_bytes / total
    bits = standings.group_bits[second] - standings.group_bits[first]
    per_byte = bits / standings.group_bytes - bits.sum(axis=1, keepdims=True) / total
    factor = (groups - 1) / groups * (weight / (1 - weight)) ** 2
    # The estimate is r' M r with M = (I - 1w')' diag(factor) (I - 1w') for the groups' rates r. A quadratic form in
    # equally noisy rates has mean tr(M) and variance 2 |M|^2 (Frobenius), up to constants that cancel, and the
    # chi-squared variable with the same two moments has df = tr(M)^2 / |M|^2.
    # Both are multiplied out into sums over the groups, so that no matrix of groups x groups is ever made:
    # M = diag(f) - f w' - w f' + (sum f) w w', and each line of `norm` holds products of two of these four terms.
    squared, cross, scale = weight @ weight, factor @ weight, factor.sum()
    trace = scale - 2 * cross + scale * squared
    norm = factor @ factor + 2 * ((factor @ factor) * squared + cross**2) + (scale * squared) ** 2
    norm += 2 * scale * (factor @ weight**2) - 4 * (factor**2 @ weight) - 4 * scale * cross * squared
    return ItemNoise(per_byte**2 @ factor, float(trace**2 / norm))


def measure_seed_noise(standings: Standings, more: int, scale: float) -> tuple[Array, Array, Array]:
    """Seed variance V of every pair's difference, sum of V / df over its terms, and which pairs are not pooled."""
    pair = np.stack(np.triu_indices(len(standings.ids), 1))  # (2, P)
    counts, variances = standings.counts + more, standings.variances * scale
    welch = variances[pair].max(axis=0) > WELCH_RATIO * variances[pair].min(axis=0)
    own = variances[pair] / counts[pair]
    pooled = standings.pooled[0] * scale * (1 / counts[pair]).sum(axis=0)
    variance = np.where(welch, own.sum(axis=0), pooled)
    return variance, np.where(welch, (own / (counts[pair] - 1)).sum(axis=0), pooled / np.sum(counts - 1)), welch


def run_pair_tests(
    standings: Standings, items: ItemNoise, alpha: float, limit: float, *, more: int = 0, scale: float = 1.0
) -> PairTests:
    """Tests every pair; `more` seeds per backbone and a seed variance `scale` times as large make it a projection."""
    from scipy.special import stdtr, stdtrit

    first, second = np.triu_indices(len(standings.ids), 1)
    variance, inverse, welch = measure_seed_noise(standings, more, scale)
    variance, inverse = variance + items.variance, inverse + items.variance / items.df
    df = np.divide(variance, inverse, out=np.full(len(first), items.df), where=inverse > 0)
    difference = standings.means[second] - standings.means[first]
    rounding = ROUNDING * standings.means[first]
    difference = np.where(difference <= rounding, 0.0, difference)
    error = np.where(np.sqrt(variance) <= rounding, 0.0, np.sqrt(variance))
    # Without any noise a difference is either none (t = 0) or certain (t = infinity).
    t = np.divide(difference, error, out=np.where(difference > 0, np.inf, 0.0), where=error > 0)
    return PairTests(
        first,
        second,
        difference,
        error,
        df,
        welch,
        p_value=2 * stdtr(df, -t),
        half_width=stdtrit(df, 1 - alpha / 2) * error,
        equivalent=difference + stdtrit(df, 1 - alpha) * error <= limit,
    )


def holm(p_values: Array) -> Array:
    """Step-down corrected p-values (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)))
    return corrected
