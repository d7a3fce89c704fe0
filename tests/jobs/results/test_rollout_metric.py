"""Success in rollouts as what a verdict judges: episodes are its items, paired over backbones."""

from pathlib import Path

import numpy as np

from jobs.results.documents import Verdict
from jobs.results.judging.metrics import METRICS
from jobs.results.judging.paired_tests import CellScores
from jobs.results.judging.verdict import judge
from orchestrator.layout import CellFolder
from orchestrator.results import CellResult, CellStatus
from orchestrator.rollouts.results import TRAINED, write_results


def played(folder: Path, backbone_id: str, seed: int, failures: float) -> CellResult:
    draw = np.random.default_rng([seed, len(backbone_id)])
    episodes = [
        {"seed": 100 + n, "instruction": "go", "success": bool(failed >= failures), "total_reward": 0.0, "length": 3}
        for n, failed in enumerate(draw.random(60))
    ]
    cell = folder / f"{backbone_id}-{seed}"
    write_results(CellFolder(cell).rollouts, {"environment": "e", "seed": 0, "episodes": {TRAINED: episodes}})
    return CellResult(f"{backbone_id}-{seed}", backbone_id, seed, CellStatus.SUCCEEDED, folder=str(cell))


def verdict_of(cells: list[CellResult]) -> Verdict:
    metric = METRICS["rollout_success"]
    items = metric.load(None, cells)  # type: ignore[arg-type]  # a plan has nothing to say about episodes
    scores = [CellScores(cell.backbone_id, cell.seed, items.totals[cell.cell_id]) for cell in cells]
    return judge(scores, items.weights, items.groups, alpha=0.05, margin=0.05, unit=metric.unit)


def test_who_fails_less_wins_by_the_share_of_failed_episodes(tmp_path: Path) -> None:
    rates = {"good": 0.1, "worse": 0.7}
    cells = [played(tmp_path, name, seed, rate) for name, rate in rates.items() for seed in range(3)]
    verdict = verdict_of(cells)
    assert (verdict["outcome"], verdict["winner"]) == ("winner", "good")
    assert "of the episodes failed" in verdict["sentence"]
    assert [row["backbone_id"] for row in verdict["ranking"]] == ["good", "worse"]
    assert 0 < verdict["ranking"][0]["score"] < 0.3
    assert verdict["noise"]["groups"] == 60


def test_backbones_that_never_fail_tie_at_zero(tmp_path: Path) -> None:
    verdict = verdict_of([played(tmp_path, name, seed, 0.0) for name in ("a", "b") for seed in range(2)])
    assert verdict["outcome"] == "tie"
    assert verdict["pairs"][0]["relative"] == 0.0
