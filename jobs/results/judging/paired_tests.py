"""Paired tests between backbones over the same held-out items, with two components of noise.

For two backbones A and B the difference of corpus bits per byte has two independent sources of noise:

    SE^2 = s2_seed (1/n_A + 1/n_B)  +  s2(D_g) / n_groups

That is the pooled form of the seed term. Since a seed is common to all backbones it can also be paired by seed, which
leaves out what a seed does to all of them: `seed_noise` has both forms, and says when which is used. The item term is
the delete-one-group jackknife of the byte-weighted corpus ratio of the seed-averaged difference: with groups of equal
bytes exactly s2(D_g) / n_groups, with unequal ones still cluster-robust.

Does it count something twice? A seed effect that is the same per byte in every group moves every D_g alike, so the
item term does not see it. The part of seed noise that differs between groups (variance v per group) is in both terms:
in expectation v (1/n_A + 1/n_B) / n_groups. If seeds differed *only* so and groups had no noise of their own, SE^2
would be twice the truth. Subtracting that part takes a difference of two noisy estimates that turns negative just
when it matters, so we keep the sum and err towards "undecided".

Where each backbone trained at a learning rate of its own, that choice is a third term: `choice_noise`.

Degrees of freedom: SE^2 / df = sum over its terms of (variance / df). Satterthwaite squares the variances in this sum;
with two or three seeds it trusts too much that seeds which happen to lie close are close: 9 % false winners at alpha
0.05 where items and seeds matter alike and one of two backbones is three times as noisy, against 5 % here.

Not covered by the pooled form: a backbone that has fewer seeds *and* much more seed noise than its rival (2 seeds
against 5, three times the deviation: about 15 % false winners, since two seeds cannot show it). A note says where seed
counts differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from jobs.results.judging.choice_noise import ChoiceNoise
from jobs.results.judging.seed_noise import ROUNDING, Array, PairedSeeds, SeedNoise, find_seed_noise, shared_seeds
from orchestrator.errors import InputError


@dataclass(frozen=True)
class CellScores:
    """Per-item scores of one finished cell; every cell of a comparison has the same items in the same order."""

    backbone_id: str
    seed: int
    totals: Array  # (items,) float64, such as bits; the score is their sum over the sum of the items' weights


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
    by_seed: list[dict[str, Array]]  # seed -> (G,) bits

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
            by_seed=[self.by_seed[k] for k in rows],
        )

    def paired(self, noise: PairedSeeds) -> "Standings":
        """The same with means adjusted for the seeds that each backbone has: equal where all have the same ones."""
        names = shared_seeds(self.seeds)
        none = np.full(len(self.group_bytes), np.nan)
        bits = np.array([[one.get(seed, none) for seed in names] for one in self.by_seed])
        means, group_bits = noise.fit(noise.scores), noise.fit(bits)
        order = sorted(range(len(self.ids)), key=lambda k: (means[k], self.ids[k]))
        return replace(self, means=means, group_bits=group_bits).take(order)

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
    own: Array  # whose seed noise is the pair's own, not that of all
    p_value: Array
    half_width: Array  # of the 1 - alpha interval
    equivalent: Array


def check_scores(cells: Sequence[CellScores], item_weights: Array, item_groups: Sequence[str]) -> None:
    """Refuses scores that do not belong to these items."""
    if len(item_groups) != len(item_weights) or not np.all(np.asarray(item_weights) > 0):
        raise InputError(
            "every held-out item needs a source group and a weight above zero, such as its bytes; drop empty items"
        )
    seen = set()
    for cell in cells:
        name = f"{cell.backbone_id} seed {cell.seed}"
        if np.shape(cell.totals) != (len(item_weights),):
            raise InputError(
                f"{name} has scores of shape {np.shape(cell.totals)} for {len(item_weights)} held-out items; "
                "evaluate it again on the items of this comparison"
            )
        if not np.all(np.isfinite(cell.totals)):
            raise InputError(f"{name} has scores that are not finite; leave it out or evaluate it again")
        if (cell.backbone_id, cell.seed) in seen:
            raise InputError(f"{name} is given twice; keep one of the two")
        seen.add((cell.backbone_id, cell.seed))


def find_standings(cells: Sequence[CellScores], item_weights: Array, item_groups: Sequence[str]) -> Standings:
    """Sorts first, so that the order of the cells cannot change even the last bit."""
    names, group_of_item = np.unique(np.asarray(item_groups, dtype=str), return_inverse=True)
    bits: dict[str, dict[str, Array]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.backbone_id, cell.seed)):
        of_groups = np.bincount(group_of_item, cell.totals, minlength=len(names))
        bits.setdefault(cell.backbone_id, {})[str(cell.seed)] = of_groups
    return rank_backbones(bits, np.bincount(group_of_item, weights=item_weights, minlength=len(names)))


def rank_backbones(bits: Mapping[str, dict[str, Array]], group_bytes: Array) -> Standings:
    """From each backbone's bits by seed and source group, (G,) each."""
    total = group_bytes.sum()
    scores = {name: {seed: float(one.sum() / total) for seed, one in by_seed.items()} for name, by_seed in bits.items()}
    means = {name: float(np.mean(list(by_seed.values()))) for name, by_seed in scores.items()}
    ids = sorted(bits, key=lambda name: (means[name], name))
    group_bits = [np.mean(list(bits[name].values()), axis=0) for name in ids]
    return Standings(
        ids=ids,
        seeds=[scores[name] for name in ids],
        means=np.array([means[name] for name in ids]),
        counts=np.array([len(bits[name]) for name in ids], dtype=int),
        variances=np.array([_seed_variance(list(scores[name].values())) for name in ids]),
        group_bits=np.array(group_bits).reshape(len(ids), len(group_bytes)),
        group_bytes=group_bytes,
        by_seed=[bits[name] for name in ids],
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


def model_seeds(standings: Standings) -> tuple[Standings, SeedNoise]:
    """The form of the seed noise, and the standings under it. Every backbone has two seeds or more."""
    noise = find_seed_noise(standings.seeds, standings.counts, standings.variances)
    if not isinstance(noise, PairedSeeds) or (noise.present.all() and len(noise.present[0]) == standings.counts.max()):
        return standings, noise
    adjusted = standings.paired(noise)
    return adjusted, find_seed_noise(adjusted.seeds, adjusted.counts, adjusted.variances)


def run_pair_tests(
    standings: Standings,
    noise: SeedNoise,
    items: ItemNoise,
    alpha: float,
    limit: float,
    *,
    choice: ChoiceNoise | None = None,
    more: int = 0,
    scale: float = 1.0,
) -> PairTests:
    """Tests every pair. `choice`: where learning rates were tuned, in the order of the standings; no number of seeds
    makes it smaller. `more` seeds per backbone and a seed variance `scale` times as large make it a projection."""
    from scipy.special import stdtr, stdtrit

    first, second = np.triu_indices(len(standings.ids), 1)
    variance, inverse, own = noise.measure(more, scale)
    variance, inverse = variance + items.variance, inverse + items.variance / items.df
    if choice is not None:
        chosen = choice.variance[first] + choice.variance[second]
        variance, inverse = variance + chosen, inverse + chosen / choice.df
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
        own,
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


def find_beaten(tests: PairTests, alpha: float) -> list[int]:
    """The rows that are worse than the best, corrected for all pairs, since the best was picked by the data."""
    return [int(row) for row in tests.second[(tests.first == 0) & (holm(tests.p_value) < alpha)]]
