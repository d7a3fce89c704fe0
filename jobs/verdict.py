"""The honest verdict of a comparison: which backbone wins, from per-item scores of every finished cell.

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
from dataclasses import asdict, dataclass
from itertools import groupby
from math import floor, log, log10, sqrt
from typing import Any, Literal

import numpy as np

from orchestrator.errors import InputError

Outcome = Literal["winner", "tie", "undecided", "no verdict"]
Array = np.ndarray[Any, np.dtype[Any]]

WELCH_RATIO = 4.0  # a pair whose seed variances differ more than this is not pooled
ROUNDING = 1e-12  # a deviation below this share of the score is float noise of equal runs
FEW_GROUPS = 10.0  # below this many effective degrees of freedom the item noise is worth a note
MOST_SEEDS = 2**20  # if even this many would not decide, the item noise stands in the way


@dataclass(frozen=True)
class CellScores:
    """Per-item scores of one finished cell; every cell of a comparison has the same items in the same order."""

    backbone_id: str
    seed: int
    nats: Array  # (items,) float64 negative log-likelihood summed over the item's scored tokens


@dataclass(frozen=True)
class RankedBackbone:
    """One row of the ranking; scores are bits per byte."""

    rank: int  # from 1; equal scores rank by id
    backbone_id: str
    val_bits_per_byte: float  # mean over seeds
    seed_std: float | None  # between seeds; None with one seed
    seeds: dict[str, float]  # seed -> score; text keys, as JSON has them
    difference_to_best: float  # never negative
    worse_than_best: bool | None  # Holm over all pairs, since the best was picked by the data; None: not tested


@dataclass(frozen=True)
class Pair:
    """Two backbones, `a` ranked above `b`; differences are bits per byte of b minus those of a."""

    a: str
    b: str
    difference: float  # never negative
    relative: float  # difference / score of b: a is that share below b
    standard_error: float  # of the difference, seeds and items together
    item_se: float  # the items' part of it
    degrees_of_freedom: float
    interval: list[float]  # two-sided, 1 - alpha
    p_value: float  # two-sided, uncorrected
    p_value_holm: float  # corrected over all pairs
    equivalent: bool  # two one-sided tests at alpha: the 1 - 2 alpha interval lies within +-margin


@dataclass(frozen=True)
class Verdict:
    """What a comparison showed. `further_seeds` is per backbone and assumes that the observed differences stay."""

    outcome: Outcome
    winner: str | None
    sentence: str
    ranking: list[RankedBackbone]  # best first
    pairs: list[Pair]  # every two backbones with two seeds or more, in order of rank
    alpha: float
    margin: float  # relative to the best score
    further_seeds: int | list[int] | None  # [low, high] below 3 degrees of freedom; None: seeds alone would not decide
    notes: list[str]
    noise: dict[str, float | None]  # seed_std (pooled), seed_df, item_se (best against second), item_df, groups, items


@dataclass(frozen=True)
class _Standings:
    """The backbones with a finished cell, best first (K of them), over G source groups."""

    ids: list[str]
    seeds: list[dict[str, float]]  # seed -> bits per byte
    means: Array  # (K,) bits per byte
    counts: Array  # (K,) seeds
    variances: Array  # (K,) between seeds; 0 with one, which then has no weight
    group_bits: Array  # (K, G) averaged over seeds
    group_bytes: Array  # (G,)

    def take(self, rows: list[int]) -> "_Standings":
        """The same for some of the backbones."""
        return _Standings(
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
class _ItemNoise:
    """Variance of every pair's difference from the choice of held-out source groups."""

    variance: Array  # (P,)
    df: float


@dataclass(frozen=True)
class _Tests:
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


def judge(
    cells: Sequence[CellScores], item_bytes: Array, item_groups: Sequence[str], *, alpha: float, margin: float
) -> dict[str, Any]:
    """The verdict over the finished cells, as the JSON document of `Verdict`.

    `item_bytes` is (items,) UTF-8 bytes of the scored text, `item_groups` the source group of each item. `alpha` is
    two-sided, `margin` relative to the best score. The order of the cells does not matter.

    Winner: the best beats every other at `alpha` (an intersection-union claim needs no correction). Tie: whatever the
    best does not beat is equivalent to it and to each other. Every ranked backbone needs two seeds for a verdict.
    Raises InputError where a cell was not scored on these items.
    """
    _check(cells, item_bytes, item_groups)
    standings = _standings(cells, item_bytes, item_groups)
    obstacle = _obstacle(standings)
    one_group = len(standings.group_bytes) < 2
    judged = standings.take([k for k, count in enumerate(standings.counts) if count >= 2 and not one_group])
    items = _item_noise(judged)
    limit = margin * float(standings.means[0]) if standings.ids else 0.0
    tests = _test(judged, items, alpha, limit)
    pairs = _pairs(judged, items, tests)
    outcome, contenders = ("no verdict", []) if obstacle else _outcome(tests, alpha)
    further = _further_seeds(judged, items, tests, contenders, alpha, limit) if outcome == "undecided" else None
    verdict = Verdict(
        outcome=outcome,
        winner=judged.ids[0] if outcome == "winner" else None,
        sentence=obstacle or _sentence(outcome, judged, pairs, contenders, alpha, margin, further),
        ranking=_ranking(standings, pairs, alpha),
        pairs=pairs,
        alpha=alpha,
        margin=margin,
        further_seeds=further,
        notes=_notes(outcome, judged, items, tests, pairs),
        noise=_noise(standings, items, pairs) | {"items": len(item_bytes)},
    )
    return asdict(verdict)


def _check(cells: Sequence[CellScores], item_bytes: Array, item_groups: Sequence[str]) -> None:
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


def _standings(cells: Sequence[CellScores], item_bytes: Array, item_groups: Sequence[str]) -> _Standings:
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
    return _Standings(
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


def _obstacle(standings: _Standings) -> str | None:
    """Why there can be no verdict, as a sentence; None when there can."""
    if not standings.ids:
        return "No verdict: no finished cell."
    if len(standings.ids) == 1:
        return f"No verdict: one backbone, {standings.ids[0]}; a verdict compares at least two."
    single = [name for name, count in zip(standings.ids, standings.counts, strict=True) if count < 2]
    if single:
        return f"No verdict: one seed of {_listed(single)}; every backbone needs at least two finished seeds."
    if len(standings.group_bytes) < 2:
        return "No verdict: one source group; held-out items from at least two are needed to see the item noise."
    return None


def _item_noise(standings: _Standings) -> _ItemNoise:
    """Delete-one-group jackknife of every pair's corpus ratio; with G equal groups it is s2(D_g) / G with G - 1 df.

    Degrees of freedom match the first two moments of the estimate (Bell and McCaffrey 2002, for independent groups of
    equal noise per byte): a group that holds half of the bytes leaves little more than one.
    """
    first, second = np.triu_indices(len(standings.ids), 1)
    if not len(first):
        return _ItemNoise(np.zeros(0), 0.0)
    total, groups = standings.group_bytes.sum(), len(standings.group_bytes)
    weight = standings.group_bytes / total
    bits = standings.group_bits[second] - standings.group_bits[first]
    per_byte = bits / standings.group_bytes - bits.sum(axis=1, keepdims=True) / total
    factor = (groups - 1) / groups * (weight / (1 - weight)) ** 2
    # The estimate is r' (I - 1w')' diag(factor) (I - 1w') r for rates r; df = trace^2 / squared Frobenius norm.
    squared, cross, scale = weight @ weight, factor @ weight, factor.sum()
    trace = scale - 2 * cross + scale * squared
    norm = factor @ factor + 2 * ((factor @ factor) * squared + cross**2) + (scale * squared) ** 2
    norm += 2 * scale * (factor @ weight**2) - 4 * (factor**2 @ weight) - 4 * scale * cross * squared
    return _ItemNoise(per_byte**2 @ factor, float(trace**2 / norm))


def _seed_noise(standings: _Standings, more: int, scale: float) -> tuple[Array, Array, Array]:
    """Seed variance V of every pair's difference, sum of V / df over its terms, and which pairs are not pooled."""
    pair = np.stack(np.triu_indices(len(standings.ids), 1))  # (2, P)
    counts, variances = standings.counts + more, standings.variances * scale
    welch = variances[pair].max(axis=0) > WELCH_RATIO * variances[pair].min(axis=0)
    own = variances[pair] / counts[pair]
    pooled = standings.pooled[0] * scale * (1 / counts[pair]).sum(axis=0)
    variance = np.where(welch, own.sum(axis=0), pooled)
    return variance, np.where(welch, (own / (counts[pair] - 1)).sum(axis=0), pooled / np.sum(counts - 1)), welch


def _test(
    standings: _Standings, items: _ItemNoise, alpha: float, limit: float, *, more: int = 0, scale: float = 1.0
) -> _Tests:
    """Tests every pair; `more` seeds per backbone and a seed variance `scale` times as large make it a projection."""
    from scipy.special import stdtr, stdtrit

    first, second = np.triu_indices(len(standings.ids), 1)
    variance, inverse, welch = _seed_noise(standings, more, scale)
    variance, inverse = variance + items.variance, inverse + items.variance / items.df
    df = np.divide(variance, inverse, out=np.full(len(first), items.df), where=inverse > 0)
    difference = standings.means[second] - standings.means[first]
    rounding = ROUNDING * standings.means[first]
    difference = np.where(difference <= rounding, 0.0, difference)
    error = np.where(np.sqrt(variance) <= rounding, 0.0, np.sqrt(variance))
    # Without any noise a difference is either none (t = 0) or certain (t = infinity).
    t = np.divide(difference, error, out=np.where(difference > 0, np.inf, 0.0), where=error > 0)
    return _Tests(
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


def _outcome(tests: _Tests, alpha: float) -> tuple[Outcome, list[int]]:
    """The outcome, and the rows of the best and of every backbone that it does not beat."""
    unbeaten = (tests.first == 0) & (tests.p_value >= alpha)
    contenders = [0, *tests.second[unbeaten].tolist()]
    if len(contenders) == 1:
        return "winner", contenders
    among = _among(tests, contenders)
    return ("tie" if np.all(tests.equivalent[among]) else "undecided"), contenders


def _among(tests: _Tests, contenders: list[int]) -> Array:
    """Which pairs consist of contenders only."""
    return np.isin(tests.first, contenders) & np.isin(tests.second, contenders)


def _further_seeds(
    standings: _Standings, items: _ItemNoise, tests: _Tests, contenders: list[int], alpha: float, limit: float
) -> int | list[int] | None:
    """Further seeds per backbone after which the observed differences would decide; items and groups stay."""
    from scipy.special import chdtri

    def needed(scale: float) -> int | None:
        def decides(more: int) -> bool:
            return _outcome(_test(standings, items, alpha, limit, more=more, scale=scale), alpha)[0] != "undecided"

        if not decides(MOST_SEEDS):
            return None
        low, high = 0, 1
        while not decides(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if decides(middle) else (middle, high)
        return high

    df = float(np.min(tests.df[_among(tests, contenders)]))
    if df >= 3:
        return needed(1.0)
    ends = [needed(df / float(chdtri(df, tail))) for tail in (0.1, 0.9)]  # 80 % range of the true seed variance
    return None if ends[0] is None or ends[1] is None else [ends[0], ends[1]]


def _holm(p_values: Array) -> Array:
    """Step-down corrected p-values (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)))
    return corrected


def _pairs(standings: _Standings, items: _ItemNoise, tests: _Tests) -> list[Pair]:
    holm = _holm(tests.p_value)
    return [
        Pair(
            a=standings.ids[a],
            b=standings.ids[b],
            difference=float(tests.difference[p]),
            relative=float(tests.difference[p] / standings.means[b]),
            standard_error=float(tests.standard_error[p]),
            item_se=sqrt(items.variance[p]),
            degrees_of_freedom=float(tests.df[p]),
            interval=[float(tests.difference[p] + sign * tests.half_width[p]) for sign in (-1, 1)],
            p_value=float(tests.p_value[p]),
            p_value_holm=float(holm[p]),
            equivalent=bool(tests.equivalent[p]),
        )
        for p, (a, b) in enumerate(zip(tests.first, tests.second, strict=True))
    ]


def _ranking(standings: _Standings, pairs: list[Pair], alpha: float) -> list[RankedBackbone]:
    best = standings.ids[0] if standings.ids else ""
    worse: dict[str, bool] = {best: False} | {pair.b: pair.p_value_holm < alpha for pair in pairs if pair.a == best}
    return [
        RankedBackbone(
            rank=k + 1,
            backbone_id=backbone_id,
            val_bits_per_byte=float(standings.means[k]),
            seed_std=sqrt(standings.variances[k]) if standings.counts[k] > 1 else None,
            seeds=standings.seeds[k],
            difference_to_best=float(standings.means[k] - standings.means[0]),
            worse_than_best=worse.get(backbone_id),
        )
        for k, backbone_id in enumerate(standings.ids)
    ]


def _noise(standings: _Standings, items: _ItemNoise, pairs: list[Pair]) -> dict[str, float | None]:
    variance, df = standings.pooled
    return {
        "seed_std": sqrt(variance) if df else None,
        "seed_df": df,
        "item_se": pairs[0].item_se if pairs else None,
        "item_df": items.df if pairs else None,
        "groups": len(standings.group_bytes),
    }


def _notes(outcome: Outcome, standings: _Standings, items: _ItemNoise, tests: _Tests, pairs: list[Pair]) -> list[str]:
    """What a reader has to know to trust the numbers."""
    notes = []
    still = [name for name, variance in zip(standings.ids, standings.variances, strict=True) if variance == 0]
    if still:
        notes.append(f"Zero variance between the seeds of {_listed(still)}: does the seed reach the run?")
    equal = [f"{pair.a} and {pair.b}" for pair in pairs if pair.difference == pair.standard_error == 0]
    if equal:
        notes.append(f"Equal scores to the last digit: {'; '.join(equal)}.")
    if np.any(tests.welch):
        notes.append(
            f"Seed variances differ more than fourfold in {int(tests.welch.sum())} of {len(pairs)} pairs: "
            "these are tested in Welch's form, not with the pooled variance."
        )
    if len(set(standings.counts.tolist())) > 1:
        notes.append(
            "Backbones have different numbers of seeds; if one with fewer is also noisier, the verdict is too sure: "
            "finish the missing cells."
        )
    if pairs and items.df < FEW_GROUPS:
        notes.append(
            f"Few or very unequal source groups ({len(standings.group_bytes)}, {items.df:.1f} degrees of freedom): "
            "the item noise is known poorly."
        )
    close = [pair.b for pair in pairs if outcome == "winner" and pair.a == standings.ids[0] and pair.equivalent]
    if close:
        notes.append(f"The lead over {_listed(close)} is real but lies within the margin: it may not matter.")
    return notes


def _sentence(
    outcome: Outcome,
    standings: _Standings,
    pairs: list[Pair],
    contenders: list[int],
    alpha: float,
    margin: float,
    further: int | list[int] | None,
) -> str:
    """The verdict in one sentence, for the top of a report."""
    names = _listed([standings.ids[k] for k in contenders])
    pair = next(pair for pair in pairs if pair.b == standings.ids[1 if outcome == "winner" else contenders[1]])
    best, digits = float(standings.means[0]), _digits(pair)
    interval = (
        f"{100 * (1 - alpha):g} % interval {_number(pair.interval[0], digits)} to {_number(pair.interval[1], digits)}"
    )
    score, difference = f"{best:.{digits}f} bits per byte", f"{pair.difference:.{digits}f}"
    if outcome == "winner":
        other = pair.b if len(standings.ids) == 2 else f"the second, {pair.b}"
        return f"{names} wins: {score}, {difference} ({100 * pair.relative:.1f} %) below {other}, {interval}."
    if outcome == "tie":
        beaten = [name for k, name in enumerate(standings.ids) if k not in contenders]
        rest = f"; {_listed(beaten)} {'is' if len(beaten) == 1 else 'are'} worse" if beaten else ""
        return (
            f"Tie between {names}: {score}, every {100 * (1 - 2 * alpha):g} % interval of a difference lies within "
            f"the margin of {margin * best:.{digits}f} ({100 * margin:g} %){rest}."
        )
    return f"Undecided between {names}: {pair.b} is {difference} above {pair.a}, {interval}; {_outlook(further)}."


def _outlook(further: int | list[int] | None) -> str:
    if further is None:
        return "more seeds alone would not decide, more held-out text might"
    number = str(further) if isinstance(further, int) else f"{further[0]} to {further[1]}"
    return f"about {number} more seed{'' if number == '1' else 's'} per backbone would decide if the differences stay"


def _digits(pair: Pair) -> int:
    """Decimals that show the interval's width with two digits, three to six."""
    width = pair.interval[1] - pair.interval[0]
    return 3 if width <= 0 else min(6, max(3, 1 - floor(log10(width))))


def _number(value: float, digits: int) -> str:
    """Without the minus of a rounded zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
