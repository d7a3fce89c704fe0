"""Scores by the values of the data's columns, and the items that part backbones or are hard for all."""

from collections.abc import Mapping, Sequence

import numpy as np

from jobs.results.held_out.documents import HeldOutFacts, HeldOutItem, Slice, SliceValue
from jobs.results.held_out.items import Array, ScoredItems
from jobs.results.judging.metrics import HeldOutScore
from orchestrator.data.examples import Example
from orchestrator.training.measurement import ItemScores

GROUP = "group"  # the column that every item has
NO_VALUE = "(none)"
MOST_VALUES = 12  # of a column that slices
MOST_SLICES = 6
SHOWN_ITEMS = 5  # of each kind
SHOWN_TEXT = 400  # characters of an item


def held_out_facts(items: ScoredItems, score: HeldOutScore, ranked: Sequence[str]) -> HeldOutFacts:
    """`ranked`: the backbones that are ranked, best first. Raises DataChangedError and OSError."""
    leading = list(ranked[:2]) if len(ranked) > 1 else []
    weights = score.weights(items.bytes.astype(np.float64))
    none = np.zeros(len(items.places), np.int64)
    totals = {
        name: score.totals(ItemScores(items.places, nats, none, np.maximum(items.bytes, 1)))
        for name, nats in items.nats.items()
    }
    apart = totals[leading[1]] - totals[leading[0]] if leading else None
    labels = slicing_columns(items)
    order = [] if apart is None else np.argsort(-apart, kind="stable").tolist()
    better, worse = ([], []) if apart is None else _ends(order, apart)
    hard = np.argsort(-np.mean([items.bits_per_byte(name) for name in items.nats], axis=0), kind="stable")
    hardest = hard[:SHOWN_ITEMS].tolist()
    shown = sorted({*better, *worse, *hardest})
    taken = items.data.take([int(items.places[row]) for row in shown])
    texts = {row: shown_text(example) for row, example in zip(shown, taken.read(), strict=True)}
    groups, hashes = items.groups, items.hashes
    rows = {row: _item(items, row, labels, texts[row], groups[row], hashes[row]) for row in shown}
    return {
        "leading": leading,
        "difference": None if apart is None else float(apart.sum() / weights.sum()),
        "slices": [_slice(name, values, totals, weights, apart) for name, values in labels.items()],
        "apart": [] if apart is None else [[rows[row] for row in side] for side in (better, worse)],
        "hardest": [rows[row] for row in hardest],
        "note": None,
    }


def slicing_columns(items: ScoredItems) -> dict[str, list[str]]:
    """The columns with few values, and the source groups where they are few."""
    columns = {name: [NO_VALUE if value is None else value for value in one] for name, one in items.columns.items()}
    found = {**columns, GROUP: items.groups}
    few = {name: values for name, values in found.items() if 2 <= len(set(values)) <= MOST_VALUES}
    return dict(list(few.items())[:MOST_SLICES])


def shown_text(example: Example) -> str:
    """The beginning of what is scored: the answers, the text, or a robot's question and action."""
    answers = "\n".join(turn.content for turn in example.turns if turn.role == "assistant")
    text = answers or example.text
    if example.action:
        actions = "; ".join(", ".join(f"{number:.3g}" for number in action) for action in example.actions)
        text = f"{example.turns[0].content} {actions}"
    return text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT].rstrip() + " …"


def _ends(order: list[int], apart: Array) -> tuple[list[int], list[int]]:
    """The rows where the first is better by most, and those where the second is."""
    better = [row for row in order[:SHOWN_ITEMS] if apart[row] > 0]
    worse = [row for row in order[::-1][:SHOWN_ITEMS] if apart[row] < 0]
    return better, worse


def _slice(name: str, labels: Sequence[str], totals: Mapping[str, Array], weights: Array, apart: Array | None) -> Slice:
    column, values = np.array(labels, object), []
    for value in dict.fromkeys(labels):
        rows = column == value
        one: SliceValue = {
            "value": value,
            "items": int(rows.sum()),
            "share": float(weights[rows].sum() / weights.sum()),
            "scores": {backbone: float(one[rows].sum() / weights[rows].sum()) for backbone, one in totals.items()},
            "contribution": None if apart is None else float(apart[rows].sum() / weights.sum()),
        }
        values.append(one)
    values.sort(key=lambda one: -one["share"])
    driver = None if apart is None else max(values, key=lambda one: one["contribution"] or 0.0)["value"]
    return {"column": name, "values": values, "driver": driver}


def _item(
    items: ScoredItems, row: int, labels: Mapping[str, Sequence[str]], text: str, group: str, content_hash: str
) -> HeldOutItem:
    return {
        "item": int(items.places[row]),
        "hash": content_hash,
        "group": group,
        "columns": {name: values[row] for name, values in labels.items() if name != GROUP},
        "bytes": int(items.bytes[row]),
        "text": text,
        "bits_per_byte": {name: float(items.bits_per_byte(name)[row]) for name in items.nats},
    }
