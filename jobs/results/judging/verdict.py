"""The honest verdict of a comparison: which backbone wins, from per-item scores of every finished cell.

The statistics are in `paired_tests`; this module says what they mean, in fields and in sentences.
Over 300 lines: every sentence of a verdict stands here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import floor, isinf, log10, sqrt

import numpy as np

from jobs.formats import listed
from jobs.results.documents import Pair, RankedBackbone, Verdict, VerdictOutcome
from jobs.results.judging.choice_noise import Choice, ChoiceNoise, find_choice_noise
from jobs.results.judging.paired_tests import (
    CellScores,
    ItemNoise,
    PairTests,
    Standings,
    check_scores,
    find_standings,
    holm,
    measure_item_noise,
    model_seeds,
    run_pair_tests,
)
from jobs.results.judging.seed_noise import Array, PairedSeeds, SeedNoise, pair_seeds

FEW_GROUPS = 10.0  # below this many effective degrees of freedom the item noise is worth a note

ALL_SPENT = (
    "No verdict: nothing of alpha is left, earlier looks at this comparison spent it. Declare verdict.max_seeds before "
    "the first look, or raise verdict.alpha."
)

MOST_SEEDS = 2**20  # if even this many would not decide, the item noise stands in the way


def judge(
    cells: Sequence[CellScores],
    item_weights: Array,
    item_groups: Sequence[str],
    *,
    alpha: float,
    margin: float,
    unit: str = "bits per byte",
    choice: Choice | None = None,
) -> Verdict:
    """The verdict over the finished cells, with the ranking.

    `item_weights` is (items,), of the metric; `item_groups` the source group of each item. `alpha` is two-sided,
    `margin` relative to the best score; `choice` is how learning rates were found, where they were tuned. The order of
    the cells does not matter.

    Winner: the best beats every other at `alpha` (an intersection-union claim needs no correction). Tie: whatever the
    best does not beat is equivalent to it and to each other. Every ranked backbone needs two seeds for a verdict.
    Raises InputError where a cell was not scored on these items.
    """
    check_scores(cells, item_weights, item_groups)
    standings = find_standings(cells, item_weights, item_groups)
    obstacle = _obstacle(standings) or (ALL_SPENT if alpha <= 0 else None)
    one_group = len(standings.group_bytes) < 2
    judged, seeds = model_seeds(
        standings.take([k for k, count in enumerate(standings.counts) if count >= 2 and not one_group])
    )
    if obstacle is None:
        standings = judged
    items = measure_item_noise(judged)
    limit = margin * float(standings.means[0]) if standings.ids else 0.0
    chosen = None if choice is None else find_choice_noise(choice, judged.ids, judged.pooled)
    test = partial(run_pair_tests, judged, seeds, items, alpha, limit, choice=chosen)
    tests = test()
    pairs = _pairs(judged, items, chosen, tests)
    outcome, contenders = ("no verdict", []) if obstacle else find_outcome(tests, alpha)
    further = _further_seeds(test, tests, contenders, alpha) if outcome == "undecided" else None
    return Verdict(
        outcome=outcome,
        winner=judged.ids[0] if outcome == "winner" else None,
        sentence=obstacle
        or _sentence(outcome, judged, pairs, contenders, alpha, margin, _outlook(further, choice), unit),
        ranking=_ranking(standings, pairs, alpha),
        pairs=pairs,
        alpha=alpha,
        margin=margin,
        further_seeds=further,
        notes=_notes(outcome, judged, seeds, items, tests, pairs),
        seed_noise=seeds.form,
        noise=_noise(standings, seeds, items, pairs) | {"items": len(item_weights)},
    )


def _obstacle(standings: Standings) -> str | None:
    """Why there can be no verdict, as a sentence; None when there can."""
    if not standings.ids:
        return "No verdict: no finished cell."
    if len(standings.ids) == 1:
        return f"No verdict: one backbone, {standings.ids[0]}; a verdict compares at least two."
    single = [name for name, count in zip(standings.ids, standings.counts, strict=True) if count < 2]
    if single:
        return f"No verdict: one seed of {listed(single)}; every backbone needs at least two finished seeds."
    if len(standings.group_bytes) < 2:
        return "No verdict: one source group; held-out items from at least two are needed to see the item noise."
    return None


def find_outcome(tests: PairTests, alpha: float) -> tuple[VerdictOutcome, list[int]]:
    """The outcome, and the rows of the best and of every backbone that it does not beat."""
    unbeaten = (tests.first == 0) & (tests.p_value >= alpha)
    contenders = [0, *tests.second[unbeaten].tolist()]
    if len(contenders) == 1:
        return "winner", contenders
    among = _among(tests, contenders)
    return ("tie" if np.all(tests.equivalent[among]) else "undecided"), contenders


def _among(tests: PairTests, contenders: list[int]) -> Array:
    """Which pairs consist of contenders only."""
    return np.isin(tests.first, contenders) & np.isin(tests.second, contenders)


def _further_seeds(
    test: Callable[..., PairTests], tests: PairTests, contenders: list[int], alpha: float
) -> int | list[int] | None:
    """Further seeds per backbone after which the observed differences would decide; items and groups stay."""
    from scipy.special import chdtri

    def needed(scale: float) -> int | None:
        def decides(more: int) -> bool:
            return find_outcome(test(more=more, scale=scale), alpha)[0] != "undecided"

        # Doubling finds an upper end in as many tests as the answer has bits, halving finds the answer: `low` never
        # decides (0 further seeds is the undecided present) and `high` always does. More seeds shrink the seed noise
        # alone, so where even MOST_SEEDS do not decide no number does, and the loop would never end.
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


def _pairs(standings: Standings, items: ItemNoise, choice: ChoiceNoise | None, tests: PairTests) -> list[Pair]:
    corrected = holm(tests.p_value)
    pairs = [
        Pair(
            a=standings.ids[a],
            b=standings.ids[b],
            difference=float(tests.difference[p]),
            relative=float(tests.difference[p] / standings.means[b]) if standings.means[b] else 0.0,
            standard_error=float(tests.standard_error[p]),
            item_se=sqrt(items.variance[p]),
            degrees_of_freedom=float(tests.df[p]),
            interval=[float(tests.difference[p] + sign * tests.half_width[p]) for sign in (-1, 1)],
            p_value=float(tests.p_value[p]),
            p_value_holm=float(corrected[p]),
            equivalent=bool(tests.equivalent[p]),
        )
        for p, (a, b) in enumerate(zip(tests.first, tests.second, strict=True))
    ]
    if choice is not None:
        for pair, (a, b) in zip(pairs, zip(tests.first, tests.second, strict=True), strict=True):
            pair["choice_se"] = sqrt(choice.variance[a] + choice.variance[b])
    return pairs


def _ranking(standings: Standings, pairs: list[Pair], alpha: float) -> list[RankedBackbone]:
    best = standings.ids[0] if standings.ids else ""
    worse: dict[str, bool] = {best: False} | {
        pair["b"]: pair["p_value_holm"] < alpha for pair in pairs if pair["a"] == best
    }
    return [
        RankedBackbone(
            rank=k + 1,
            backbone_id=backbone_id,
            score=float(standings.means[k]),
            seed_std=sqrt(standings.variances[k]) if standings.counts[k] > 1 else None,
            seeds=standings.seeds[k],
            difference_to_best=float(standings.means[k] - standings.means[0]),
            worse_than_best=worse.get(backbone_id),
        )
        for k, backbone_id in enumerate(standings.ids)
    ]


def _noise(standings: Standings, seeds: SeedNoise, items: ItemNoise, pairs: list[Pair]) -> dict[str, float | None]:
    variance, df = standings.pooled
    return {
        "seed_std": sqrt(variance) if df else None,
        "seed_df": df,
        "seed_std_paired": sqrt(seeds.variance) if isinstance(seeds, PairedSeeds) else None,
        "shared_seed_share": _shared(standings),
        "item_se": pairs[0]["item_se"] if pairs else None,
        "item_df": items.df if pairs else None,
        "groups": len(standings.group_bytes),
    }


def _shared(standings: Standings) -> float | None:
    """The estimated share of the seed variance that all backbones have in common."""
    found = pair_seeds(standings.seeds)
    return found.shared if found is not None and found.is_estimable else None


def _notes(
    outcome: VerdictOutcome,
    standings: Standings,
    seeds: SeedNoise,
    items: ItemNoise,
    tests: PairTests,
    pairs: list[Pair],
) -> list[str]:
    """What a reader has to know to trust the numbers."""
    notes = []
    still = [name for name, variance in zip(standings.ids, standings.variances, strict=True) if variance == 0]
    if still:
        notes.append(f"Zero variance between the seeds of {listed(still)}: does the seed reach the run?")
    equal = [f"{pair['a']} and {pair['b']}" for pair in pairs if pair["difference"] == pair["standard_error"] == 0]
    if equal:
        notes.append(f"Equal scores to the last digit: {'; '.join(equal)}.")
    if np.any(tests.own):
        how = "in Welch's form, not with the pooled variance" if seeds.form == "pooled" else "with their own variance"
        notes.append(
            f"Seed variances differ {'more than fourfold ' if seeds.form == 'pooled' else ''}in {int(tests.own.sum())} "
            f"of {len(pairs)} pairs: these are tested {how}."
        )
    if len(set(standings.counts.tolist())) > 1:
        notes.append(
            "Backbones have different numbers of seeds; if one with fewer is also noisier, the verdict is too sure: "
            "finish the missing cells."
            if seeds.form == "pooled"
            else "Backbones have different seeds: differences and scores are adjusted to what all would have with the "
            "same ones."
        )
    if pairs and items.df < FEW_GROUPS:
        notes.append(
            f"Few or very unequal source groups ({len(standings.group_bytes)}, {items.df:.1f} degrees of freedom): "
            "the item noise is known poorly."
        )
    unsure = [pair for pair in pairs if pair.get("choice_se", 0.0) ** 2 > pair["standard_error"] ** 2 / 2]
    if unsure:
        notes.append(
            f"Which learning rate is best is so unsure that it is most of the noise in {len(unsure)} of {len(pairs)} "
            "pairs: raise tuning.budget_fraction, or try rates that lie further apart."
        )
    close = [
        pair["b"] for pair in pairs if outcome == "winner" and pair["a"] == standings.ids[0] and pair["equivalent"]
    ]
    if close:
        notes.append(f"The lead over {listed(close)} is real but lies within the margin: it may not matter.")
    return notes


def _sentence(
    outcome: VerdictOutcome,
    standings: Standings,
    pairs: list[Pair],
    contenders: list[int],
    alpha: float,
    margin: float,
    outlook: str,
    unit: str,
) -> str:
    """The verdict in one sentence, for the top of a report."""
    names = listed([standings.ids[k] for k in contenders])
    pair = next(pair for pair in pairs if pair["b"] == standings.ids[1 if outcome == "winner" else contenders[1]])
    best, digits = float(standings.means[0]), _digits(pair)
    low, high = (_number(end, digits) for end in pair["interval"])
    interval = f"{100 * (1 - alpha):.3g} % interval {low} to {high}"
    score, difference = f"{best:.{digits}f} {unit}", f"{pair['difference']:.{digits}f}"
    if outcome == "winner":
        other = pair["b"] if len(standings.ids) == 2 else f"the second, {pair['b']}"
        return f"{names} wins: {score}, {difference} ({100 * pair['relative']:.1f} %) below {other}, {interval}."
    if outcome == "tie":
        beaten = [name for k, name in enumerate(standings.ids) if k not in contenders]
        rest = f"; {listed(beaten)} {'is' if len(beaten) == 1 else 'are'} worse" if beaten else ""
        return (
            f"Tie between {names}: {score}, every {100 * (1 - 2 * alpha):.3g} % interval of a difference lies within "
            f"the margin of {margin * best:.{digits}f} ({100 * margin:g} %){rest}."
        )
    return f"Undecided between {names}: {pair['b']} is {difference} above {pair['a']}, {interval}; {outlook}."


def _outlook(further: int | list[int] | None, choice: Choice | None) -> str:
    if further is None:
        other = "more items to score" if choice is None else "more items to score or longer trials"
        return f"more seeds alone would not decide, {other} might"
    number = str(further) if isinstance(further, int) else f"{further[0]} to {further[1]}"
    return f"about {number} more seed{'' if number == '1' else 's'} per backbone would decide if the differences stay"


def _digits(pair: Pair) -> int:
    """Decimals that show the interval's width with two digits, three to six."""
    width = pair["interval"][1] - pair["interval"][0]
    return 3 if width <= 0 or isinf(width) else min(6, max(3, 1 - floor(log10(width))))


def _number(value: float, digits: int) -> str:
    """Without the minus of a rounded zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"
