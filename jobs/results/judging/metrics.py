"""What a verdict judges: per item, what a backbone came to and how much the item counts.

A metric is the sum of the items' totals over the sum of their weights. Weights are of the item, the same for every
backbone, so that differences are paired. Lower is better for every metric that there is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from jobs.results.documents import Verdict
from jobs.results.judging.choice_noise import Choice
from jobs.results.judging.paired_tests import CellScores
from jobs.results.judging.verdict import judge
from jobs.results.rollouts import load_rollouts
from orchestrator.planning.plan import Plan
from orchestrator.results import CellResult
from orchestrator.rollouts.results import TRAINED
from orchestrator.spec_files.spec import VerdictRule
from orchestrator.training.measurement import ItemScores, load_item_scores

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Items:
    """What some cells came to on the same items: `totals` by cell, (items,) each, weights (items,), source groups."""

    totals: dict[str, Array]
    weights: Array
    groups: Sequence[str]


@dataclass(frozen=True)
class Metric:
    """`unit` as sentences say it; `load` reads what finished cells stored of themselves.

    `tracked_as`: the mean of a backbone in the MLflow run of a comparison. `is_of_trials`: whether trials are scored in
    that unit.
    """

    unit: str
    tracked_as: str
    load: Callable[[Plan, Sequence[CellResult]], Items]
    is_of_trials: bool = True


@dataclass(frozen=True)
class HeldOutScore:
    """What held-out items come to, and how much they count: (items,) of their scores, and of their bytes."""

    totals: Callable[[ItemScores], Array]
    weights: Callable[[Array], Array]


def _held_out(score: HeldOutScore, plan: Plan, cells: Sequence[CellResult]) -> Items:
    """The held-out items that all of the cells were scored on."""
    scores = {cell.cell_id: load_item_scores(Path(cell.folder)) for cell in cells}
    common = common_items(list(scores.values()))
    items = plan.validation.items
    assert items is not None, "held-out data is planned with its items"
    return Items(
        {cell_id: score.totals(at_items(one, common)) for cell_id, one in scores.items()},
        score.weights(items.learnable_bytes[common].astype(np.float64)),
        items.groups_of(common),
    )


def common_items(scores: Sequence[ItemScores]) -> Array:
    """The items that are in all of the scores, rising."""
    if not scores:
        return np.array([], np.int64)
    common = scores[0].items
    for other in scores[1:]:
        common = np.intersect1d(common, other.items)
    return common


def at_items(scores: ItemScores, items: Array) -> ItemScores:
    """The scores of some of their items."""
    places = np.searchsorted(scores.items, items)
    return ItemScores(items, scores.nats[places], scores.tokens[places], scores.bytes[places])


def _bits(scores: ItemScores) -> Array:
    return np.asarray(scores.nats / log(2))


def _item_bits(scores: ItemScores) -> Array:
    return np.asarray(_bits(scores) / scores.bytes)


def _episodes(_: Plan, cells: Sequence[CellResult]) -> Items:
    """The episodes of rollouts, each of them a group: 1 where it failed."""
    played = {cell.cell_id: load_rollouts(Path(cell.folder))["episodes"][TRAINED] for cell in cells}
    seeds = [str(one["seed"]) for one in next(iter(played.values()), [])]
    failed = {cell_id: np.array([not one["success"] for one in all_], float) for cell_id, all_ in played.items()}
    return Items(failed, np.ones(len(seeds)), seeds)


BITS_PER_BYTE = HeldOutScore(_bits, lambda sizes: sizes)
# Every item counts alike, however long it is: what a short answer costs is not drowned by a long one.
ITEM_BITS_PER_BYTE = HeldOutScore(_item_bits, np.ones_like)

# The names are those of `verdict.metric`.
METRICS = {
    "bits_per_byte": Metric("bits per byte", "val_bits_per_byte", partial(_held_out, BITS_PER_BYTE)),
    "item_bits_per_byte": Metric(
        "bits per byte in the mean of the items", "val_item_bits_per_byte", partial(_held_out, ITEM_BITS_PER_BYTE)
    ),
    "rollout_success": Metric("of the episodes failed", "rollout_failure_rate", _episodes, is_of_trials=False),
}


def judge_by(
    name: str,
    plan: Plan,
    rule: VerdictRule,
    finished: Sequence[CellResult],
    alpha: float,
    choice: Choice | None,
    unit: str | None = None,
) -> Verdict:
    """The verdict over finished cells by a metric, which need not be the rule's; `unit` as this plan's data has it."""
    metric = METRICS[name]
    items = metric.load(plan, finished)
    return judge(
        [CellScores(result.backbone_id, result.seed, items.totals[result.cell_id]) for result in finished],
        items.weights,
        items.groups,
        alpha=alpha,
        margin=rule.margin,
        unit=unit or metric.unit,
        choice=choice and replace(choice, is_of_metric=metric.is_of_trials),
    )


def held_out_score(metric: str) -> HeldOutScore:
    """What held-out items are shown in; of a metric that judges something else, in bits per byte."""
    return ITEM_BITS_PER_BYTE if metric == "item_bits_per_byte" else BITS_PER_BYTE
