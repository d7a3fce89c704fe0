"""`backbone compare --a-a`: one backbone under two labels, and the noise floor."""

from pathlib import Path

import pytest
from scored_cells import grouped_job, trained

from jobs.driver.kinds.self_comparison import labelled, load_self_comparison
from jobs.results.finished import judge_cells
from orchestrator.errors import SpecError
from orchestrator.planning.plan import Plan
from orchestrator.spec_files.spec import SelfComparison


def planned(folder: Path, backbone: str | None = None) -> Plan:
    return load_self_comparison(grouped_job(folder, backbones=["tiny-qwen", "tiny-mistral"], seeds=3).spec, backbone)


def test_one_backbone_runs_twice_the_seeds(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [cell.backbone.backbone_id for cell in plan.cells] == ["tiny-qwen"] * 6
    assert [cell.seed for cell in plan.cells] == [0, 1, 2, 3, 4, 5]
    assert {cell.backbone.backbone_id for cell in planned(tmp_path, "tiny-mistral").cells} == {"tiny-mistral"}


def test_a_backbone_that_the_spec_lacks_is_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="tiny-llama2 is not one of them; choose tiny-qwen, tiny-mistral"):
        planned(tmp_path, "tiny-llama2")


def test_the_noise_floor_is_the_smallest_difference_that_would_win(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    results = labelled(plan, trained(plan, list(plan.cells), {"tiny-qwen": 2.0}))
    assert isinstance(plan.job, SelfComparison)
    verdict = judge_cells(plan, plan.job.verdict, results)
    floor, pair = verdict["noise_floor"], verdict["pairs"][0]
    assert {pair["a"], pair["b"]} == {"tiny-qwen A", "tiny-qwen B"}
    assert floor["difference"] == pytest.approx((pair["interval"][1] - pair["interval"][0]) / 2)
    assert (floor["false_winner"] is None) == (pair["difference"] < floor["difference"])
    assert verdict["sentence"].startswith(
        "A/A: no winner was named. Noise floor: with 3 seeds each, a difference below"
    )
