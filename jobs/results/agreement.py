"""Whether success in closed loop and bits of held-out actions order the backbones alike, by a verdict on each."""

from collections.abc import Sequence

from jobs.results.documents import Agreement, Verdict
from jobs.results.judging.choice_noise import Choice
from jobs.results.judging.metrics import METRICS, judge_by
from orchestrator.planning.plan import Plan
from orchestrator.results import CellResult
from orchestrator.spec_files.spec import VerdictRule

SUCCESS, BITS = "rollout_success", "bits_per_byte"
UNITS = {SUCCESS: METRICS[SUCCESS].unit, BITS: "bits per action dimension"}  # each dimension counts as a byte
NAMES = {SUCCESS: "success", BITS: UNITS[BITS]}


def find_agreement(
    plan: Plan, rule: VerdictRule, verdict: Verdict, finished: Sequence[CellResult], choice: Choice | None = None
) -> Agreement | None:
    """Judges the same finished cells by the other of the two measures; None where there was no verdict by the first.

    The second verdict is at the alpha of the first one's look: whoever looks again looks at both.
    `choice`: how learning rates were found, where they were tuned.
    """
    if verdict["outcome"] == "no verdict":
        return None
    metric = BITS if rule.metric == SUCCESS else SUCCESS
    other = judge_by(metric, plan, rule, finished, verdict["alpha"], choice, UNITS[metric])
    return {
        "metric": metric,
        "unit": UNITS[metric],
        "alpha": other["alpha"],
        "outcome": other["outcome"],
        "winner": other["winner"],
        "sentence": other["sentence"],
        "ranking": other["ranking"],
        "agree": _sentence(verdict, other, rule.metric, metric),
    }


def _sentence(first: Verdict, second: Verdict, metric: str, other: str) -> str:
    """`first` is by `metric`, and has its ranking."""
    names = NAMES.get(metric, NAMES[BITS]), NAMES[other]
    winners = first["winner"], second["winner"]
    if all(winners):
        if winners[0] == winners[1]:
            return f"They agree: {names[0]} and {names[1]} both name {winners[0]} the winner."
        return f"They disagree: {names[0]} names {winners[0]} the winner, {names[1]} {winners[1]}."
    orders = [[row["backbone_id"] for row in verdict["ranking"]] for verdict in (first, second)]
    order = "the same order of means" if orders[0] == orders[1] else "another order of means"
    if not any(winners):
        return f"They do not contradict each other: neither {names[0]} nor {names[1]} names a winner; {order}."
    place = 0 if winners[0] else 1
    best = "is also the best" if orders[1 - place][0] == winners[place] else "is not the best"
    return (
        f"They agree in part: {names[place]} names {winners[place]} the winner, which {best} by the mean of "
        f"{names[1 - place]}, where no winner is told apart; {order}."
    )
