"""What rollouts came to: a document with every episode of every policy, and the figures that trackers are told."""

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from orchestrator.cell_job import RolloutRequest
from orchestrator.results import FORMAT, write_json
from orchestrator.rollouts.play import Episode

PREFIX = "rollout/"  # of what trackers and reports call a figure
TRAINED, RANDOM, BLIND = "trained", "random", "instruction_blind"  # policies
Z = 1.959964  # of a two-sided interval of 95 %


class EpisodeFacts(TypedDict):
    """One episode: which it was, and what became of it."""

    seed: int
    instruction: str
    success: bool
    total_reward: float
    length: int


class RolloutResults(TypedDict):
    """Episodes by policy, the same ones in the same order for all of them."""

    environment: str
    seed: int
    max_steps: NotRequired[int | None]  # of an episode; None: the environment's own limit
    episodes: dict[str, list[EpisodeFacts]]


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """The 95 % interval of a rate. Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953."""
    rate, scale = successes / episodes, 1 + Z**2 / episodes
    centre = (rate + Z**2 / (2 * episodes)) / scale
    half = Z / scale * sqrt(rate * (1 - rate) / episodes + Z**2 / (4 * episodes**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def collect(asked: RolloutRequest, played: Mapping[str, Sequence[Episode]]) -> RolloutResults:
    """From the episodes of each policy."""
    return {
        "environment": asked.environment,
        "seed": asked.seed,
        "max_steps": asked.max_steps,
        "episodes": {name: _facts(all_) for name, all_ in played.items()},
    }


def figures(results: RolloutResults) -> dict[str, float]:
    """Success with its interval, the mean return and length of the trained policy; the others' success."""
    episodes = results["episodes"]
    found = {f"{PREFIX}{name}_success": _mean(facts, "success") for name, facts in episodes.items() if name != TRAINED}
    trained = episodes[TRAINED]
    low, high = wilson(sum(one["success"] for one in trained), len(trained))
    return {
        f"{PREFIX}success": _mean(trained, "success"),
        f"{PREFIX}success_low": low,
        f"{PREFIX}success_high": high,
        f"{PREFIX}return": _mean(trained, "total_reward"),
        f"{PREFIX}length": _mean(trained, "length"),
        **found,
    }


def write_results(file: Path, results: RolloutResults, **facts: Any) -> None:
    """`facts` say who acted."""
    write_json(file, {"format": FORMAT, **facts, **results})


def _facts(episodes: Sequence[Episode]) -> list[EpisodeFacts]:
    return [
        {
            "seed": one.seed,
            "instruction": one.instruction,
            "success": one.success,
            "total_reward": one.total_reward,
            "length": one.length,
        }
        for one in episodes
    ]


def _mean(facts: Sequence[EpisodeFacts], name: str) -> float:
    values = [float(one[name]) for one in facts]  # type: ignore[literal-required]
    return sum(values) / len(values)
