"""What changed between two comparisons: every fact that is not the same, and every score beside the other. Pure.

`Difference` is what `backbone diff --json` prints. A fact that only one of the two knows is no difference: a plan has
no scores, and a report of an earlier version less of everything.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from pydantic import JsonValue

from jobs.formats import listed
from jobs.results.differences.sides import BITS_PER_BYTE, SETS, Scores, Side
from jobs.results.documents import Facts

# What a difference does to scores. scores: other work, or another ruler. rounding: the same work with other last
# digits. unknown: it depends on data that could not be read.
Effect = Literal["scores", "rounding", "none", "unknown"]

_NO_EFFECT = (
    *("name", "kind", "first", "storage", "tracking", "policy", "verdict", "price", "export"),
    *("backbones", "seeds"),
    *("recipe.evaluate", "recipe.checkpoint"),
)
_ROUNDING = (
    *("placement", "recipe.attention", "recipe.compile", "recipe.activation_checkpointing", "recipe.micro_batch_size"),
)
_DECIDING_DATA = ("train_hash", "validation_hash", "kept", "scored")
_CONTRACT_WITHOUT_EFFECT = (
    *("prompt_example", "weights_read", "identity", "data", "fsdp_units", "decoder_layer", "licence", "hf_hub_path"),
    *("declared_parameters", "context_length", "attention.reason", "attention.requested"),
)
_CONTRACT_ROUNDING = (
    *("attention", "workers", "replicas", "micro_batch_size", "accumulation_steps", "activation_checkpointing"),
    "compile",
)


@dataclass(frozen=True)
class Change:
    """A fact that differs. Of a list whose order says nothing: what B has and A lacks, and the other way round."""

    path: str
    a: JsonValue
    b: JsonValue
    effect: Effect
    added: tuple[JsonValue, ...] = ()
    removed: tuple[JsonValue, ...] = ()


@dataclass(frozen=True)
class BackboneChange:
    """What differs of a backbone that both have."""

    backbone_id: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class ChangedStatus:
    """A cell of both that did not end alike."""

    cell_id: str
    a: str
    b: str


@dataclass(frozen=True)
class Cells:
    """Which cells both have, by id: those measured the same thing. Only one has the others."""

    shared: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    ended_otherwise: tuple[ChangedStatus, ...]


@dataclass(frozen=True)
class SeedScores:
    """One seed of a backbone in both; `difference` is B minus A."""

    seed: int
    a: float | None
    b: float | None
    difference: float | None


@dataclass(frozen=True)
class BackboneScores:
    """Means over the seeds that each has; `difference` is B minus A, and `same_seeds` that of the seeds of both."""

    backbone_id: str
    a: float | None
    b: float | None
    difference: float | None
    same_seeds: float | None
    seeds: tuple[SeedScores, ...]


@dataclass(frozen=True)
class Judged:
    """The verdict of one of the two."""

    outcome: str
    winner: str | None
    sentence: str
    look: int | None


@dataclass(frozen=True)
class Verdicts:
    """Both verdicts; None where nothing was judged. `agree`: whether they name the same winner, or none."""

    a: Judged | None
    b: Judged | None
    agree: bool | None
    sentence: str


@dataclass(frozen=True)
class Changes:
    """All that differs but for what it means."""

    spec: tuple[Change, ...]
    data: tuple[Change, ...]
    backbones: tuple[BackboneChange, ...]
    environment: tuple[Change, ...]
    cells: Cells
    metric: str  # of `scores`
    scores: tuple[BackboneScores, ...]
    verdicts: Verdicts | None

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        moved = any(seed.a != seed.b for scores in self.scores for seed in scores.seeds)
        judged = self.verdicts is not None and self.verdicts.a != self.verdicts.b
        cells = self.cells.only_a or self.cells.only_b or self.cells.ended_otherwise
        return not (self.spec or self.data or self.backbones or self.environment or cells or moved or judged)


def find_changes(a: Side, b: Side) -> Changes:
    """All that differs between two comparisons, finetunes, plans or specs."""
    data_is_known = bool(a.data and b.data)
    is_judged_alike = a.metric == b.metric
    return Changes(
        spec=tuple(_spec(a.spec, b.spec, data_is_known)),
        data=tuple(_known(a.data, b.data, lambda name: "scores" if name in _DECIDING_DATA else "none")),
        backbones=tuple(_backbones(a, b)),
        environment=tuple(_known(a.environment, b.environment, lambda _: "rounding")),
        cells=_cells(a, b),
        metric=a.metric if is_judged_alike else BITS_PER_BYTE,
        scores=tuple(_scores(_comparable(a, is_judged_alike), _comparable(b, is_judged_alike))),
        verdicts=_verdicts(a, b),
    )


def _spec(a: Facts, b: Facts, data_is_known: bool) -> Iterator[Change]:
    """A key that one of them lacks is not set there."""
    for path in dict.fromkeys((*a, *b)):
        before, after = a.get(path), b.get(path)
        if before == after:
            continue
        effect = _effect_of_key(path, data_is_known)
        if path in SETS and isinstance(before, list) and isinstance(after, list):
            added = tuple(item for item in after if item not in before)
            removed = tuple(item for item in before if item not in after)
            yield Change(path, before, after, effect, added, removed)
        else:
            yield Change(path, before, after, effect)


def _effect_of_key(path: str, data_is_known: bool) -> Effect:
    if _is_within(path, ("recipe.data",)):  # its content counts, not its name
        return "none" if data_is_known else "unknown"
    if _is_within(path, _NO_EFFECT):
        return "none"
    return "rounding" if _is_within(path, _ROUNDING) else "scores"


def _effect_of_fact(name: str) -> Effect:
    """Of what was found of a backbone. Where each candidate keeps its own examples, how many it kept counts."""
    if name == "data.kept":
        return "scores"
    if _is_within(name, _CONTRACT_WITHOUT_EFFECT):
        return "none"
    return "rounding" if _is_within(name, _CONTRACT_ROUNDING) else "scores"


def _is_within(path: str, keys: tuple[str, ...]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def _known(a: Facts, b: Facts, effect: Callable[[str], Effect]) -> Iterator[Change]:
    """The facts that both know and that differ."""
    for name in a:
        if name in b and a[name] != b[name]:
            yield Change(name, a[name], b[name], effect(name))


def _backbones(a: Side, b: Side) -> Iterator[BackboneChange]:
    for backbone_id, facts in a.backbones.items():
        if changes := tuple(_known(facts, b.backbones.get(backbone_id, {}), _effect_of_fact)):
            yield BackboneChange(backbone_id, changes)


def _cells(a: Side, b: Side) -> Cells:
    if a.unread or b.unread:  # a spec that could not be planned has no cells that are known
        return Cells((), (), (), ())
    shared = tuple(cell_id for cell_id in a.cells if cell_id in b.cells)
    ended = [(cell_id, a.cells[cell_id].status, b.cells[cell_id].status) for cell_id in shared]
    return Cells(
        shared,
        only_a=tuple(cell_id for cell_id in a.cells if cell_id not in b.cells),
        only_b=tuple(cell_id for cell_id in b.cells if cell_id not in a.cells),
        ended_otherwise=tuple(ChangedStatus(cell_id, x, y) for cell_id, x, y in ended if x and y and x != y),
    )


def _comparable(side: Side, is_judged_alike: bool) -> Scores:
    """Of the verdict where both judge one metric; a backbone that it did not rank has those of its runs."""
    if not is_judged_alike:
        return side.runs
    return {**side.runs, **side.judged} if side.metric == BITS_PER_BYTE else side.judged


def _scores(a: Scores, b: Scores) -> Iterator[BackboneScores]:
    """In the order of A, then what only B has."""
    for backbone_id in dict.fromkeys((*a, *b)):
        ours, theirs = a.get(backbone_id, {}), b.get(backbone_id, {})
        seeds = tuple(_seed(seed, ours.get(seed), theirs.get(seed)) for seed in sorted({*ours, *theirs}))
        before, after = _mean(ours), _mean(theirs)
        paired = [seed.difference for seed in seeds if seed.difference is not None]
        yield BackboneScores(
            backbone_id,
            before,
            after,
            None if before is None or after is None else after - before,
            fmean(paired) if paired else None,
            seeds,
        )


def _seed(seed: int, a: float | None, b: float | None) -> SeedScores:
    return SeedScores(seed, a, b, None if a is None or b is None else b - a)


def _mean(scores: Mapping[int, float]) -> float | None:
    return fmean(scores.values()) if scores else None


def _verdicts(a: Side, b: Side) -> Verdicts | None:
    if a.verdict is None and b.verdict is None:
        return None
    ours, theirs = _judged(a), _judged(b)
    if ours is None or theirs is None:
        return Verdicts(ours, theirs, None, f"Only {'B' if ours is None else 'A'} was judged.")
    return Verdicts(ours, theirs, ours.winner == theirs.winner, _sentence_of_winners(ours.winner, theirs.winner))


def _judged(side: Side) -> Judged | None:
    verdict = side.verdict
    if verdict is None:
        return None
    look = verdict.get("look")
    return Judged(verdict["outcome"], verdict["winner"], verdict["sentence"], None if look is None else look["number"])


def _sentence_of_winners(a: str | None, b: str | None) -> str:
    if a == b:
        return "Neither names a winner." if a is None else f"Both name {a} the winner."
    named = [f"{side} names {'no winner' if winner is None else winner}" for side, winner in (("A", a), ("B", b))]
    return f"They name different winners: {listed(named)}." if a and b else f"{listed(named)}."
