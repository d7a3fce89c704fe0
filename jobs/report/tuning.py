"""How learning rates were found, as a page shows it: a table of the trials, and what they gave for what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from jobs.report.excerpt import CURVED_BACKBONES
from jobs.report.palette import Look
from jobs.report.plots import Curve, Plot, rate_plot, spend_plot
from jobs.results.documents import TunedBackbone, TuningFacts
from jobs.results.tuning import where_from


@dataclass(frozen=True)
class RateCell:
    """What a backbone's trials at one learning rate came to: the score of the last rung that it reached."""

    score: float | None
    rung: int | None  # None: no trial
    status: str  # of a trial without a score
    is_best: bool


def tuning_view(facts: TuningFacts | None, looked: Mapping[str, Look]) -> dict[str, object] | None:
    """The variables of the section; None where nothing was tuned."""
    if facts is None:
        return None
    known = {name: one for name, one in facts["backbones"].items() if name in looked}
    drawn = [name for name, one in known.items() if any(t["score"] is not None for t in one["trials"])]
    drawn = drawn[:CURVED_BACKBONES]
    return {
        "rates": facts["rates"],
        "rungs": facts["rungs"],
        "budget_kind": facts["budget_kind"],
        "spend": facts["spend"],
        "examples": facts["examples"],
        "learnable_bytes": facts["learnable_bytes"],
        "where": where_from(facts),
        "rows": [(name, one, [_rate_cell(one, rate) for rate in facts["rates"]]) for name, one in known.items()],
        "drawn": drawn,
        "plots": _plots(facts, drawn, looked) if drawn else [],
    }


def _rate_cell(one: TunedBackbone, rate: float) -> RateCell:
    trials = [trial for trial in one["trials"] if trial["learning_rate"] == rate]
    if not trials:
        return RateCell(None, None, "", is_best=False)
    last = trials[-1]
    return RateCell(last["score"], last["rung"], last["status"], is_best=rate == one["best"])


def _plots(facts: TuningFacts, drawn: Sequence[str], looked: Mapping[str, Look]) -> list[Plot]:
    by_rate, by_spend = [], []
    spent = list(accumulate(rung["trials"] * rung["amount"] for rung in facts["rungs"]))
    whole = spent[-1] / facts["spend"]
    for name in drawn:
        trials = [(t["rung"], t["learning_rate"], t["score"]) for t in facts["backbones"][name]["trials"]]
        best = []
        for rung, spend in enumerate(spent, start=1):
            scores = [(rate, score) for at, rate, score in trials if at == rung and score is not None]
            if scores:
                by_rate.append(Curve(name, [rate for rate, _ in scores], [score for _, score in scores]))
                best.append((spend / whole, min(score for _, score in scores)))
        by_spend.append(Curve(name, [at for at, _ in best], [score for _, score in best]))
    return [rate_plot(by_rate, looked), spend_plot(by_spend, looked)]
