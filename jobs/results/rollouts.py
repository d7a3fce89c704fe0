"""What the rollouts of a job's cells came to, for its report: success of each backbone, two films of its first run."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from math import fsum
from pathlib import Path
from typing import cast

from jobs.results.documents import Film, RolledOut, RolloutFacts
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Plan
from orchestrator.results import CellResult, CellStatus, read_json
from orchestrator.rollouts.results import BLIND, PREFIX, RANDOM, TRAINED, EpisodeFacts, RolloutResults, wilson
from orchestrator.tracking.spool import EntryKind, read_spool


def load_rollouts(folder: Path) -> RolloutResults:
    """What a cell's episodes came to."""
    return cast(RolloutResults, read_json(CellFolder(folder).rollouts))


def rollout_facts(plan: Plan, results: Sequence[CellResult]) -> RolloutFacts | None:
    """None where nobody asked for rollouts, or none is finished."""
    asked = plan.job.recipe.evaluate.rollouts
    if asked is None:
        return None
    finished: dict[str, list[Path]] = {}
    for result in results:
        if result.status is CellStatus.SUCCEEDED and CellFolder(Path(result.folder)).rollouts.exists():
            finished.setdefault(result.backbone_id, []).append(Path(result.folder))
    if not finished:
        return None
    return {
        "environment": asked.environment,
        "episodes": asked.episodes,
        "max_steps": asked.max_steps,
        "chunk": plan.job.recipe.data.chunk,
        "execute": asked.execute or plan.job.recipe.data.chunk,
        "backbones": {backbone_id: _rolled_out(folders) for backbone_id, folders in finished.items()},
    }


def success_curve(result: CellResult) -> list[tuple[float, float]]:
    """(share of the budget, success) of a finished cell, in order; of the episodes that were asked for last."""
    if result.measurement is None or (digest := result.measurement.data.get("rollouts")) is None:
        return []
    entries = read_spool(CellFolder(Path(result.folder)).spool)
    points = [entry.fields for entry in entries if entry.kind is EntryKind.ROLLOUTS]
    curve = sorted((point["progress"], point["success"]) for point in points if point["digest"] == digest)
    measured = result.measurement.metrics.get(f"{PREFIX}success")  # another attempt's than the last point's may be
    return curve if measured is None else [*curve[:-1], (1.0, measured)]


def _rolled_out(folders: Sequence[Path]) -> RolledOut:
    runs = [load_rollouts(folder)["episodes"] for folder in folders]

    def mean(policy: str, name: str) -> float | None:
        values = [float(one[name]) for run in runs for one in run.get(policy, [])]  # type: ignore[literal-required]
        return fsum(values) / len(values) if values else None

    def interval(policy: str, of: Sequence[Mapping[str, list[EpisodeFacts]]]) -> list[float]:
        successes = [one["success"] for run in of for one in run.get(policy, [])]
        return list(wilson(sum(successes), len(successes))) if successes else []

    return {
        "success": mean(TRAINED, "success"),
        "interval": interval(TRAINED, runs),
        "random_success": mean(RANDOM, "success"),
        "random_interval": interval(RANDOM, runs[:1]),  # it plays alike in every run
        "blind_success": mean(BLIND, "success"),
        "blind_interval": interval(BLIND, runs),
        "total_reward": mean(TRAINED, "total_reward"),
        "length": mean(TRAINED, "length"),
        "films": _films(folders[0], runs[0][TRAINED]),
    }


def _films(folder: Path, episodes: Sequence[EpisodeFacts]) -> list[Film]:
    """As `roll_out` made them: of the first episode that succeeded, and of the first that did not."""
    films: list[Film] = []
    for success, file in zip((True, False), CellFolder(folder).films, strict=True):
        if file.exists():
            episode = next(one for one in episodes if one["success"] is success)
            data = b64encode(file.read_bytes()).decode()
            films.append(
                {
                    "success": success,
                    "instruction": episode["instruction"],
                    "length": episode["length"],
                    "data": f"data:image/webp;base64,{data}",
                }
            )
    return films
