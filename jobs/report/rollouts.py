"""Success in closed loop, as the page shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.formats import NOT_AVAILABLE, fixed, percent, significant
from jobs.results.documents import Film, RolledOut, RolloutFacts, Verdict, metric_of

MOST_FILMED = 6  # backbones whose films a page holds: each film has up to 90 kB


@dataclass(frozen=True)
class Score:
    """What the ranking's numbers are."""

    name: str
    of: str  # on what
    explained: str
    is_bits: bool


BITS = Score(
    "bits per byte",
    "on the held-out text after training",
    "Bits per byte is what the trained model needs to encode one byte of text it has never seen: lower is better. It "
    "is counted per byte, not per token, so models with different tokenizers can be compared.",
    is_bits=True,
)
FAILURES = Score(
    "share of failed episodes",
    "in rollouts of the trained model",
    "The ranking\u2019s number is the share of the episodes in which the trained model failed: lower is better. All "
    "backbones play the same episodes, so differences are paired by episode.",
    is_bits=False,
)


ITEM_BITS = Score(
    "bits per byte, mean of the items",
    "on the held-out text after training",
    "The ranking\u2019s number is the mean over held-out items of the bits that the trained model needs for a byte of "
    "each: lower is better. An item counts as much as any other, whatever its length.",
    is_bits=True,
)
SCORES = {"bits_per_byte": BITS, "item_bits_per_byte": ITEM_BITS, "rollout_success": FAILURES}


def score_of(verdict: Verdict | None) -> Score:
    """By the verdict's metric."""
    return SCORES[metric_of(verdict)]


HEADINGS = ("success", "random policy", "other instruction", "above both", "return", "steps")


def agreement_rows(facts: RolloutFacts | None) -> list[tuple[str, list[str]]]:
    """(backbone, rank, mean and deviation of seeds by the other measure), best first."""
    if facts is None or "agreement" not in facts:
        return []
    ranking = facts["agreement"]["ranking"]
    return [(row["backbone_id"], [str(row["rank"]), fixed(row["score"]), fixed(row["seed_std"])]) for row in ranking]


def rollout_rows(facts: RolloutFacts | None) -> list[tuple[str, list[str]]]:
    """(backbone, a text for each of the headings)."""
    if facts is None:
        return []
    return [(backbone_id, _texts(one)) for backbone_id, one in facts["backbones"].items()]


def _texts(one: RolledOut) -> list[str]:
    others = [one.get("random_interval", []), one.get("blind_interval", [])]
    return [
        _rate(one["success"], one["interval"]),
        _rate(one["random_success"], others[0]),
        _rate(one["blind_success"], others[1]),
        _is_above(one["interval"], [interval for interval in others if interval]),
        fixed(one["total_reward"]),
        significant(one["length"]),
    ]


def _is_above(interval: Sequence[float], others: Sequence[Sequence[float]]) -> str:
    """Whether it lies above all others; where episodes all ask for the same, that is the random policy's."""
    if not others:  # in reports of earlier versions
        return NOT_AVAILABLE
    return "yes" if interval[0] > max(high for _, high in others) else "no"


def _rate(rate: float | None, interval: Sequence[float]) -> str:
    if rate is None:
        return NOT_AVAILABLE
    return f"{percent(rate)} ({percent(interval[0])} to {percent(interval[1])})" if interval else percent(rate)


def films_of(facts: RolloutFacts | None, order: Sequence[str]) -> Mapping[str, list[Film]]:
    """The films of the first backbones of the ranking, or of the spec where there is none."""
    if facts is None:
        return {}
    backbones = facts["backbones"]
    named = [backbone_id for backbone_id in order if backbone_id in backbones] or [*backbones]
    return {backbone_id: backbones[backbone_id]["films"] for backbone_id in named[:MOST_FILMED]}
