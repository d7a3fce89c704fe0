"""Whether the scores of two comparisons can be held against each other, in a sentence. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from jobs.formats import fact, is_number, listed, some
from jobs.results.differences.changes import BackboneChange, Change, Changes, find_changes
from jobs.results.differences.sides import Side

SEEDS = 8  # in a sentence
LONGEST = 48  # letters of a value

# What makes a backbone another one, whatever the recipe does with it.
_IDENTITY = (
    *("weights_digest", "revision", "prompt_hash", "prompt_format", "prompt_variant", "tokenizer_rows", "parameters"),
)
_TIMES = {2.0: "twice", 0.5: "half"}


@dataclass(frozen=True)
class Facing:
    """One of the two, as people call it. `unread`: why the data of a spec is not known."""

    source: str
    title: str
    unread: str | None


@dataclass(frozen=True)
class Difference:
    """What changed from A to B, and whether their scores are comparable: what `backbone diff --json` prints."""

    comparable: Literal["yes", "no", "unknown"]
    sentence: str
    reasons: tuple[str, ...]  # why not, or why it is not known
    same: bool  # nothing differs
    a: Facing
    b: Facing
    changes: Changes


def find_difference(a: Side, b: Side) -> Difference:
    """What changed from A to B, and what that means."""
    changes = find_changes(a, b)
    against, open_questions = tuple(_against(a, b, changes)), tuple(_open_questions(a, b, changes))
    comparable: Literal["yes", "no", "unknown"] = "no" if against else "unknown" if open_questions else "yes"
    return Difference(
        comparable,
        _sentence(a, b, changes, against, open_questions),
        against or open_questions,
        changes.is_empty,
        Facing(a.source, a.title, a.unread),
        Facing(b.source, b.title, b.unread),
        changes,
    )


def _sentence(a: Side, b: Side, changes: Changes, against: tuple[str, ...], open_questions: tuple[str, ...]) -> str:
    if changes.is_empty:
        unread = [side.unread for side in (a, b) if side.unread]
        return f"Nothing differs in the specs; {unread[0]}." if unread else f"Nothing differs: {_same(a, b)}."
    ran = a.is_finished and b.is_finished
    if against:
        return f"The scores {'are not' if ran else 'would not be'} comparable: B has {some(against)}."
    are = "are" if ran else "would be"
    besides = "".join(f"; {part}" for part in _besides(a, b, changes))
    if open_questions:
        return f"Whether the scores {are} comparable is not known: {some(open_questions)}{besides}."
    return f"The scores {are} comparable: same data, same recipe and budget{besides}."


def _same(a: Side, b: Side) -> str:
    parts = ["spec", "data", "cells"]
    if a.environment and b.environment:
        parts += ["environment", "scores"]
    return f"same {listed(parts)}"


def _against(a: Side, b: Side, changes: Changes) -> Iterator[str]:
    """Why the scores are not comparable; each part goes on after "B has"."""
    yield from (data := [*_other_data(changes)])
    budget = [change for change in changes.spec if change.path.startswith("recipe.budget.")]
    if budget:
        yield _other_budget(budget)
    elif _is_timed(a) and (places := [one for one in changes.environment if one.path in ("hardware", "device")]):
        yield f"other hardware for a budget of time ({_arrow(places[0])})"
    recipe = [change for change in changes.spec if change.effect == "scores" and change not in budget]
    yield from (f"another {change.path} ({shown(change.a)} -> {shown(change.b)})" for change in recipe)
    yield from _other_backbones(changes.backbones, is_explained=bool(data or recipe or budget))


def _other_data(changes: Changes) -> Iterator[str]:
    found = {change.path: change for change in changes.data if change.effect == "scores"}
    named = {change.path: change for change in changes.spec}
    for split, words in (("validation", "held-out"), ("train", "training")):
        if f"{split}_hash" in found:
            key = f"recipe.data.{split}"
            place = _arrow(named[key], key) if key in named else f"the content of {key}"
            yield f"other {words} data ({place})"
    if "scored" in found and "validation_hash" not in found:
        yield f"other held-out items scored ({_counts(found['scored'])})"
    if "kept" in found and "train_hash" not in found:
        yield f"other training examples kept ({_counts(found['kept'])})"


def _other_budget(changes: list[Change]) -> str:
    amount = next((change for change in changes if change.path == "recipe.budget.amount"), None)
    if len(changes) > 1 or amount is None or not (is_number(amount.a) and is_number(amount.b)):
        return f"another budget ({', '.join(_arrow(change, change.path) for change in changes)})"
    ratio = amount.b / amount.a
    times = _TIMES.get(ratio) or (f"{ratio:.3g} times" if ratio > 1 or ratio < 0.1 else f"{ratio:.3g} of")
    return f"{times} the budget ({_arrow(amount, amount.path)})"


def _other_backbones(backbones: tuple[BackboneChange, ...], is_explained: bool) -> Iterator[str]:
    """Where the recipe differs, what it makes of every backbone differs too, and says nothing new."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for one in backbones:
        paths = [change.path for change in one.changes if change.effect == "scores"]
        own = dict.fromkeys(name for path in paths if (name := path.split(".")[0]) in _IDENTITY)
        if names := tuple(own if is_explained or own else paths):
            grouped.setdefault(names, []).append(one.backbone_id)
    yield from (f"another {some(names)} ({', '.join(paths)})" for paths, names in grouped.items())


def _open_questions(a: Side, b: Side, changes: Changes) -> Iterator[str]:
    """What nobody can say yet."""
    yield from dict.fromkeys(side.unread for side in (a, b) if side.unread)
    kept = all("kept" in side.data for side in (a, b))
    added = any(change.path == "backbones" for change in changes.spec)
    if added and not kept and a.spec.get("recipe.data.parity") == "intersection":
        yield "which examples are kept depends on the backbones (recipe.data.parity: intersection)"


def _besides(a: Side, b: Side, changes: Changes) -> Iterator[str]:
    """What differs although the scores are comparable."""
    added, removed = [], []
    for change in changes.spec:
        if change.path in ("backbones", "seeds"):
            added += _names(change.path, change.added)
            removed += _names(change.path, change.removed)
    if added:
        yield f"B adds {listed(added)}" + (f" and leaves out {listed(removed)}" if removed else "")
    elif removed:
        yield f"B leaves out {listed(removed)}"
    moved = [change for change in (*changes.environment, *changes.spec) if change.effect == "rounding"]
    if moved:
        yield f"other last digits may come from {some([_arrow(one, _tail(one.path)) for one in moved])}"
    others = [change.path for change in changes.spec if change.effect in ("none", "unknown")]
    others = [path for path in others if path not in ("backbones", "seeds")]
    if others and not (added or removed or moved):
        yield f"they differ in {some(others)}"
    elif a.cells and b.cells and not (changes.cells.shared or added or removed or moved):
        yield "but no cell has the same id: another version of this product, or another firing of a schedule, made them"


def _names(path: str, items: tuple[JsonValue, ...]) -> list[str]:
    if not items:
        return []
    if path == "backbones":
        return [some(items)]
    return [f"seed{'s' if len(items) > 1 else ''} {some(items, SEEDS)}"]


def _is_timed(side: Side) -> bool:
    return side.spec.get("recipe.budget.kind") == "gpu_hours"


def _tail(path: str) -> str:
    return path.removeprefix("packages.")


def _arrow(change: Change, name: str = "") -> str:
    return f"{name} {shown(change.a)} -> {shown(change.b)}".strip()


def _counts(change: Change) -> str:
    return f"{fact(change.a)} -> {fact(change.b)}"


def shown(value: JsonValue) -> str:
    """A value in a sentence: 1e6, and a long one cut."""
    if isinstance(value, float):
        return re.sub(r"e([-+])0*", lambda found: "e-" if found[1] == "-" else "e", f"{value:.6g}")
    text = fact(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
