"""What backbones would score at a larger budget, by the reports of comparisons that differ in their budget alone.

One report is enough only where its learning rate stays constant: elsewhere it falls towards the end of each run, and a
score within a run is not what a shorter run would have reached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jobs.formats import chance, fixed, listed, some
from jobs.results.differences.comparability import find_difference, shown
from jobs.results.differences.sides import BITS_PER_BYTE, Scores, Side, side_of_report
from jobs.results.documents import Report
from jobs.results.predictions.power_law import Array, Unpredictable, extrapolate
from orchestrator.errors import InputError

AMOUNT = "recipe.budget.amount"
CURVE_FROM = 0.1  # of a run: before it the learning rate warms up


@dataclass(frozen=True)
class PredictedBackbone:
    """A backbone at the budget asked for. Without a prediction `reason` says why."""

    backbone_id: str
    trained: float  # mean score at the largest budget that was trained
    score: float | None  # median
    interval: tuple[float, float] | None
    first: float | None  # probability that nobody is better; None where somebody cannot be predicted
    reason: str | None


@dataclass(frozen=True)
class Prediction:
    """What `backbone predict --json` prints. Backbones in the order of their scores at the largest budget trained."""

    at: float
    kind: str  # of the budget
    trained: tuple[float, ...]  # budgets
    level: float  # of the intervals
    metric: str
    leader: str
    leader_stays: float | None
    sentence: str
    backbones: tuple[PredictedBackbone, ...]


@dataclass(frozen=True)
class _Runs:
    """Scores of a backbone by budget, (N,) each. `shift`: the deviation of a noise that they share, and its df."""

    budgets: Array
    scores: Array
    shift: tuple[float, int] = (0.0, 1)


def predict_scores(reports: Sequence[tuple[str, Report]], at: float) -> Prediction:
    """From (how people name it, report). Raises InputError for reports that do not differ in their budget alone."""
    sides = sorted((side_of_report(report, source) for source, report in reports), key=_amount)
    _check(sides)
    last, of_last = sides[-1], next(report for source, report in reports if source == sides[-1].source)
    runs = _ladder(sides) if len(sides) > 1 else _curves(last, of_last)
    trained = {name: float(np.mean(list(seeds.values()))) for name, seeds in last.judged.items()}
    order = sorted(trained, key=lambda name: (trained[name], name))
    drawn = {name: runs if isinstance(runs, Unpredictable) else _draw(name, runs[name], at) for name in order}
    level = 1 - float(str(last.spec.get("verdict.alpha", 0.05)))
    first = _firsts({name: found for name, found in drawn.items() if not isinstance(found, Unpredictable)}, order)
    backbones = tuple(_predicted(name, trained[name], drawn[name], first.get(name), level) for name in order)
    kind = str(last.spec["recipe.budget.kind"])
    stays = first.get(order[0])
    budgets = tuple(dict.fromkeys(map(_amount, sides)))
    sentence = _sentence(f"{shown(at)} {kind}", at / budgets[-1], backbones)
    return Prediction(at, kind, budgets, level, last.metric, order[0], stays, sentence, backbones)


def _amount(side: Side) -> float:
    return float(str(side.spec[AMOUNT]))


def _check(sides: Sequence[Side]) -> None:
    for side in sides:
        if not side.judged:
            raise InputError(f"{side.source} ranks no backbones; give comparisons with finished cells")
        if side.metric != sides[0].metric:
            raise InputError(f"{side.source} is judged by {side.metric}, {sides[0].source} by {sides[0].metric}")
        same_amount = replace(side, spec={**side.spec, AMOUNT: sides[0].spec[AMOUNT]})
        found = find_difference(sides[0], same_amount)
        if found.comparable == "no":
            raise InputError(
                f"{side.source} differs from {sides[0].source} in more than the amount of its budget: "
                f"{listed(found.reasons)}; give reports that differ in that alone"
            )


def _ladder(sides: Sequence[Side]) -> dict[str, _Runs]:
    """Every run that ended is a point: its budget, its last score. The same run in two reports is one."""
    found: dict[str, dict[tuple[float, int], float]] = {}
    for side in sides:
        for name, seeds in side.judged.items():
            found.setdefault(name, {}).update({(_amount(side), seed): score for seed, score in seeds.items()})
    return {
        name: _Runs(np.array([budget for budget, _ in points]), np.array([*points.values()]))
        for name, points in found.items()
    }


def _curves(side: Side, report: Report) -> dict[str, _Runs] | Unpredictable:
    """The points within the runs of one report, averaged over the seeds, whose runs lie above each other as a whole."""
    schedule = side.spec.get("recipe.optimizer.schedule")
    if schedule != "constant":
        return Unpredictable(f"one report, whose learning rate falls ({schedule}); give reports of more budgets")
    if side.metric != BITS_PER_BYTE:
        return Unpredictable(f"runs are not scored by {side.metric} on their way; give reports of more budgets")
    deviation, df = _seed_noise(side.judged)
    if not df:
        return Unpredictable("one seed, so nobody knows what another would change")
    by_name: dict[str, dict[float, list[float]]] = {name: {} for name in side.judged}
    for cell in report["cells"]:
        if cell["seed"] in side.judged.get(cell["backbone_id"], {}):
            for point in cell["evaluations"]:
                progress, score = point["progress"], point["val_bits_per_byte"]
                if progress is not None and score is not None and progress >= CURVE_FROM:
                    by_name[cell["backbone_id"]].setdefault(round(progress, 6), []).append(score)
    found = {}
    for name, points in by_name.items():
        seeds = len(side.judged[name])
        whole = {progress: scores for progress, scores in points.items() if len(scores) == seeds}
        budgets = _amount(side) * np.array([*whole])
        found[name] = _Runs(budgets, np.array([np.mean(one) for one in whole.values()]), (deviation / seeds**0.5, df))
    return found


def _seed_noise(scores: Scores) -> tuple[float, int]:
    """Standard deviation between seeds, pooled over the backbones, and its degrees of freedom."""
    df = sum(len(seeds) - 1 for seeds in scores.values())
    squares = sum(float(np.var([*seeds.values()]) * len(seeds)) for seeds in scores.values())
    return ((squares / df) ** 0.5 if df else 0.0), df


def _draw(name: str, runs: _Runs, at: float) -> Array | Unpredictable:
    rng = np.random.default_rng([*name.encode()])
    found = extrapolate(runs.budgets, runs.scores, at, rng)
    shift, df = runs.shift
    return found if isinstance(found, Unpredictable) else found + shift * rng.standard_t(df, len(found))


def _firsts(drawn: Mapping[str, Array], order: Sequence[str]) -> dict[str, float]:
    """How often each is the best; nothing where somebody who might be it cannot be predicted."""
    if len(drawn) < len(order) or len(order) < 2:
        return {}
    best = np.argmin([drawn[name] for name in order], axis=0)
    return {name: float(np.mean(best == place)) for place, name in enumerate(order)}


def _predicted(
    name: str, trained: float, drawn: Array | Unpredictable, first: float | None, level: float
) -> PredictedBackbone:
    if isinstance(drawn, Unpredictable):
        return PredictedBackbone(name, trained, None, None, None, drawn.reason)
    low, middle, high = np.quantile(drawn, ((1 - level) / 2, 0.5, (1 + level) / 2)).tolist()
    return PredictedBackbone(name, trained, middle, (low, high), first, None)


def _sentence(at: str, times: float, backbones: Sequence[PredictedBackbone]) -> str:
    unknown: dict[str, list[str]] = {}
    for one in backbones:
        if one.reason is not None:
            unknown.setdefault(one.reason, []).append(one.backbone_id)
    leader = backbones[0]
    begin = f"At {at}, {times:.3g} times the largest budget trained,"
    if unknown:
        told = [
            reason if len(names) == len(backbones) else f"{some(names)} ({reason})" for reason, names in unknown.items()
        ]
        return f"{begin} it cannot be predicted who leads: {'; '.join(told)}."
    if leader.first is None:
        return f"{begin} {leader.backbone_id} would score {fixed(leader.score)}; nobody else was ranked."
    likely = max(backbones, key=lambda one: one.first or 0.0)
    other = "" if likely is leader else f"; {likely.backbone_id} would lead with {chance(likely.first)}"
    stays = chance(leader.first)
    return f"{begin} the present leader, {leader.backbone_id}, would still lead with a probability of {stays}{other}."
