"""The looks at a comparison: which one a verdict is, and what it may cost of alpha.

A comparison is the same whatever its seeds are, and stays so when it gets or loses candidates, as long as two remain:
their difference was looked at. A look is a verdict over cells, or by a metric, that was not judged before. Each job
keeps its looks in its own folder (`looks.json`), so the history of a comparison is what the folders of one storage hold
of it. A verdict over the same cells by the same metric is the same look, and costs nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import TypeAdapter

from jobs.formats import listed
from jobs.results.documents import Look, LookRecord, LooksDocument, load_document
from jobs.results.judging.spending import BY_HAND, nominal_levels, spent_by_looks
from orchestrator.identity import content_hash
from orchestrator.layout import Storage
from orchestrator.planning.plan import Plan, comparison_identity, subjects
from orchestrator.results import write_json
from orchestrator.spec_files.spec import VerdictRule

LOOKS = TypeAdapter(LooksDocument)


@dataclass(frozen=True)
class Judged:
    """What is judged now: the seeds that each backbone finished, by which metric, and how many seeds were declared."""

    cells: str  # hash of the finished cells and the metric
    seeds: Mapping[str, int]  # backbone -> how many
    max_seeds: int | None
    alpha: float

    @property
    def share(self) -> float | None:
        """Of the declared seeds."""
        return None if self.max_seeds is None else max(self.seeds.values()) / self.max_seeds

    @property
    def can_claim(self) -> bool:
        """Whether there can be a verdict; what cannot claim anything costs nothing."""
        return len(self.seeds) > 1 and min(self.seeds.values()) > 1


def what_is_judged(cells: Mapping[str, Sequence[str]], metric: str, max_seeds: int | None, alpha: float) -> Judged:
    """`cells`: the ids of the finished cells of each backbone."""
    everything = sorted(cell for of_backbone in cells.values() for cell in of_backbone)
    seeds = {backbone_id: len(of_backbone) for backbone_id, of_backbone in cells.items()}
    return Judged(content_hash([everything, metric]), seeds, max_seeds, alpha)


def find_look(judged: Judged, earlier: Sequence[LookRecord]) -> Look:
    """Which look this is after the `earlier` ones, oldest first, and the alpha that its tests may use."""
    for record in earlier:
        if record["cells"] == judged.cells:
            before = earlier[: record["number"] - 1]
            scale = judged.alpha / record["total_alpha"]  # the spec's alpha may be another by now
            return _look(judged, before, scale * record["alpha"], scale * record["spent"], record["declared"])
    segment = _declared_before(judged, earlier)
    past = [record["share"] or 0.0 for record in segment]
    if judged.max_seeds is not None:
        share = judged.share or 0.0
        if share <= 1 and (not past or past[-1] < share):
            left = _left(judged, earlier[: len(earlier) - len(segment)])
            spent = _spent(left, [*past, share]) - (_spent(left, past) if past else 0.0)
            return _look(judged, earlier, nominal_levels(left, [*past, share])[-1], spent, judged.max_seeds)
    by_hand = BY_HAND * _left(judged, earlier)
    return _look(judged, earlier, by_hand, by_hand, None)


def _left(judged: Judged, earlier: Sequence[LookRecord]) -> float:
    """Of alpha after these looks; a rest too small for any interval is none."""
    left = judged.alpha - sum(record["spent"] for record in earlier)
    return left if left > 1e-6 * judged.alpha else 0.0


def _spent(left: float, shares: Sequence[float]) -> float:
    """By declared looks at these shares. The last one takes the rest."""
    return left if shares[-1] >= 1 else spent_by_looks(left, shares)


def _declared_before(judged: Judged, earlier: Sequence[LookRecord]) -> Sequence[LookRecord]:
    """The last looks that were made under the same declaration, at the same backbones: their scores go together."""
    start = len(earlier)
    while start and judged.max_seeds is not None and _goes_on(judged, earlier[start - 1]):
        start -= 1
    return earlier[start:]


def _goes_on(judged: Judged, record: LookRecord) -> bool:
    return record["declared"] == judged.max_seeds and record["seeds"].keys() == judged.seeds.keys()


def _look(judged: Judged, earlier: Sequence[LookRecord], alpha: float, spent: float, declared: int | None) -> Look:
    return {
        "number": len(earlier) + 1,
        "alpha": alpha,
        "spent": spent,
        "total_alpha": judged.alpha,
        "declared": declared,
        "earlier_winners": {str(one["number"]): one["winner"] for one in earlier if one["winner"] is not None},
        "earlier_seeds": [max(record["seeds"].values()) for record in earlier],
        "earlier_backbones": {
            str(one["number"]): [*one["seeds"]] for one in earlier if one["seeds"].keys() != judged.seeds.keys()
        },
    }


def new_record(judged: Judged, look: Look, outcome: str, winner: str | None) -> LookRecord:
    """What is kept of a look."""
    return {
        "number": look["number"],
        "cells": judged.cells,
        "seeds": dict(judged.seeds),
        "declared": look["declared"],
        "share": None if look["declared"] is None else judged.share,
        "alpha": look["alpha"],
        "spent": look["spent"],
        "total_alpha": look["total_alpha"],
        "outcome": outcome,
        "winner": winner,
        "judged": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def looks_ahead(plan: Plan, rule: VerdictRule, seeds: Sequence[int]) -> Iterator[tuple[int, float]]:
    """The level of each look at so many seeds of all backbones, after those that there were, if none decides."""
    earlier = load_looks(plan)
    order = list(dict.fromkeys(cell.seed for cell in plan.cells if not cell.is_trial))
    for number in seeds:
        first = {*order[:number]}
        cells: dict[str, list[str]] = {spec.backbone_id: [] for spec in plan.backbones}
        for cell in plan.cells:
            if not cell.is_trial and cell.seed in first:
                cells[cell.backbone.backbone_id].append(cell.cell_id)
        judged = what_is_judged(cells, rule.metric, rule.max_seeds, rule.alpha)
        judged = replace(judged, seeds=dict.fromkeys(cells, number))  # however many rates each cell stands for
        look = find_look(judged, earlier)
        yield number, look["alpha"]
        if look["number"] > len(earlier):
            earlier = [*earlier, new_record(judged, look, "undecided", None)]


def sentences_of(look: Look) -> list[str]:
    """What a reader has to know of it."""
    number, alpha, total = look["number"], look["alpha"], look["total_alpha"]
    earlier = f", after looks at {listed(look['earlier_seeds'])} seeds" if look["earlier_seeds"] else ""
    if look["declared"] is None:
        rule = (
            f"by hand: no number of seeds was declared before; {1 - BY_HAND:.0%} of what was left of {total:g} is kept "
            "for seeds that are added later"
        )
    else:
        rule = f"one of those up to the {look['declared']} seeds that were declared, which share {total:g}"
    found = [f"Look {number}, a verdict over these runs{earlier}: tested at alpha {alpha:.2g} ({rule})."]
    among = look.get("earlier_backbones", {})
    found += [f"Look {one} was at {listed(names)}." for one, names in among.items()]
    found += [f"Look {one} named {name} the winner." for one, name in look["earlier_winners"].items()]
    return found


def load_looks(plan: Plan) -> list[LookRecord]:
    """The looks at this comparison in every job's folder of the storage, oldest first, numbered anew.

    Those at other candidates count too where two of them or more are the same: their difference was looked at.
    """
    identity, own = comparison_identity(plan), {*subjects(plan)}
    found: dict[str, LookRecord] = {}
    for file in Storage(plan.storage).looks():
        document = load_document(file, LOOKS)
        if document["comparison"] == identity or len(own.intersection(document.get("subjects", ()))) > 1:
            for record in document["looks"]:
                known = found.setdefault(record["cells"], record)
                if record["judged"] < known["judged"]:
                    found[record["cells"]] = record
    ordered = sorted(found.values(), key=lambda record: record["judged"])
    return [{**record, "number": number} for number, record in enumerate(ordered, 1)]


def keep_look(plan: Plan, record: LookRecord) -> None:
    """Adds a look to the job's own folder, where it is not there yet."""
    file = plan.files.looks
    kept = load_document(file, LOOKS)["looks"] if file.exists() else []
    if all(one["cells"] != record["cells"] for one in kept):
        known = {"format": 1, "comparison": comparison_identity(plan), "subjects": subjects(plan)}
        write_json(file, {**known, "looks": [*kept, record]})
