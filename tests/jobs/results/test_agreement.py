"""Two verdicts over the same runs, by success and by bits of actions, and whether they say the same."""

from pathlib import Path

import numpy as np
import pytest
from scored_cells import grouped_job, trained

from jobs.results.agreement import find_agreement
from jobs.results.finished import judge_cells
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import load_comparison
from orchestrator.results import CellResult
from orchestrator.rollouts.results import TRAINED, write_results
from orchestrator.spec_files.spec import Comparison, VerdictRule

FIRST, SECOND = "tiny-llama2", "tiny-qwen"


def leave_episodes(cell: CellResult, failures: float) -> None:
    draw = np.random.default_rng([cell.seed, *cell.backbone_id.encode()])
    episodes = [
        {"seed": n, "instruction": "go", "success": bool(drawn >= failures), "total_reward": 0.0, "length": 3}
        for n, drawn in enumerate(draw.random(60))
    ]
    file = CellFolder(Path(cell.folder)).rollouts
    write_results(file, {"environment": "e", "seed": 0, "episodes": {TRAINED: episodes}})  # type: ignore[typeddict-item]


@pytest.mark.parametrize("metric", ["rollout_success", "bits_per_byte"])
@pytest.mark.parametrize(
    ("bits", "failures", "said"),
    [
        ((2.0, 3.0), (0.1, 0.8), f"They agree: {{}} and {{}} both name {FIRST} the winner."),
        ((3.0, 2.0), (0.1, 0.8), "They disagree: {} names"),
        ((2.0, 2.0), (0.0, 0.0), "They do not contradict each other: neither {} nor {} names a winner"),
    ],
)
def test_what_both_verdicts_say_of_the_same_runs_is_said_in_a_sentence(
    metric: str, bits: tuple[float, float], failures: tuple[float, float], said: str, tmp_path: Path
) -> None:
    plan = load_comparison(grouped_job(tmp_path, backbones=[FIRST, SECOND], seeds=3).spec)
    assert isinstance(plan.job, Comparison)
    results = trained(plan, plan.cells, dict(zip((FIRST, SECOND), bits, strict=True)))
    for cell in results:
        leave_episodes(cell, failures[cell.backbone_id == SECOND])
    rule = VerdictRule.model_validate({"metric": metric, "margin": 0.1})
    verdict = judge_cells(plan, rule, results)
    found = find_agreement(plan, rule, verdict, results)
    assert found is not None
    names = ["success", "bits per action dimension"]
    ordered = names if metric == "rollout_success" else names[::-1]
    assert found["agree"].startswith(said.format(*ordered))
    assert found["metric"] == ({"rollout_success", "bits_per_byte"} - {metric}).pop()
    assert found["alpha"] == verdict["alpha"] == pytest.approx(0.04)  # of a first look by hand
    if bits[0] != bits[1]:
        winner = (bits if metric == "rollout_success" else failures)[0] < 2.5
        assert found["winner"] == (FIRST if winner else SECOND)
    if found["metric"] == "bits_per_byte":
        assert "bits per action dimension" in found["sentence"] or found["outcome"] != "winner"


def test_one_measure_that_tells_no_winner_is_said_beside_the_one_that_does(tmp_path: Path) -> None:
    plan = load_comparison(grouped_job(tmp_path, backbones=[FIRST, SECOND], seeds=3).spec)
    results = trained(plan, plan.cells, {FIRST: 2.0, SECOND: 3.0})
    for cell in results:
        leave_episodes(cell, 0.4)
    rule = VerdictRule.model_validate({"metric": "rollout_success", "margin": 0.1})
    verdict = judge_cells(plan, rule, results)
    found = find_agreement(plan, rule, verdict, results)
    assert found is not None and verdict["winner"] is None
    assert found["agree"].startswith(
        f"They agree in part: bits per action dimension names {FIRST} the winner, which is"
    )
    alone = [cell for cell in results if cell.seed == 0]  # no verdict of one seed, so nothing to agree with
    without = judge_cells(plan, rule, alone)
    assert find_agreement(plan, rule, without, alone) is None
    assert without["metric"] == "rollout_success"  # of the ranking that stands without a verdict
    assert all("val_bits_per_byte" not in row for row in without["ranking"])


def test_a_further_look_costs_both_measures_alike(tmp_path: Path) -> None:
    rule = VerdictRule.model_validate({"metric": "rollout_success", "margin": 0.1})
    levels = []
    for seeds in (2, 3):
        plan = load_comparison(grouped_job(tmp_path, backbones=[FIRST, SECOND], seeds=seeds).spec)
        results = trained(plan, plan.cells, {FIRST: 2.0, SECOND: 3.0})
        for cell in results:
            leave_episodes(cell, 0.4)
        verdict = judge_cells(plan, rule, results)
        found = find_agreement(plan, rule, verdict, results)
        assert found is not None and found["alpha"] == verdict["alpha"]
        levels.append(found["alpha"])
    assert levels == pytest.approx([0.04, 0.008])
