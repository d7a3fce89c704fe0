"""`backbone decide`: which cells run next, what a plan holds, and what a stored look is."""

from pathlib import Path
from typing import Any

import pytest
from scored_cells import grouped_job, trained

from jobs.driver.kinds.decision import load_decision
from jobs.driver.rounds import Rounds
from jobs.results.finished import judge_cells
from jobs.results.judging.looks import looks_ahead
from orchestrator.errors import SpecError
from orchestrator.planning.plan import Cell, Plan, ids_without_occurrence, load_comparison, narrow
from orchestrator.results import CellResult, CellStatus
from orchestrator.spec_files.spec import Comparison, Decision


def planned(folder: Path, max_seeds: int | None = None, **changes: Any) -> Plan:
    backbones = {"backbones": ["tiny-llama2", "tiny-mistral", "tiny-qwen"], "seeds": 2}
    return load_decision(grouped_job(folder, **(backbones | changes)).spec, max_seeds)


def seeds_of(cells: list[Cell]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for cell in cells:
        found.setdefault(cell.backbone.backbone_id, []).append(cell.seed)
    return found


def test_a_decision_plans_every_seed_and_begins_with_those_of_the_spec(tmp_path: Path) -> None:
    plan = planned(tmp_path, max_seeds=4)
    assert isinstance(plan.job, Decision) and plan.job.seed_list == (0, 1, 2, 3)
    first = Rounds(plan, {}).advance()
    assert seeds_of(first) == {name: [0, 1] for name in ("tiny-llama2", "tiny-mistral", "tiny-qwen")}


def test_its_cells_are_those_that_a_comparison_trains(tmp_path: Path) -> None:
    job = grouped_job(tmp_path, backbones=["tiny-llama2", "tiny-mistral"], seeds=[5, 0])
    compared, decided = load_comparison(job.spec), load_decision(job.spec, 3)
    assert decided.job.seed_list == (5, 0, 1)
    assert {cell.cell_id for cell in compared.cells} < {cell.cell_id for cell in decided.cells}


def test_fewer_declared_seeds_than_given_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="at most 2 seeds are declared, but the first look takes 3"):
        planned(tmp_path, max_seeds=2, seeds=3)


def test_a_clear_loser_gets_no_further_seed_and_the_others_do(tmp_path: Path) -> None:
    plan = planned(tmp_path, max_seeds=4)
    rounds = Rounds(plan, {})
    means = {"tiny-llama2": 2.0, "tiny-mistral": 2.001, "tiny-qwen": 4.0}
    rounds.take(trained(plan, rounds.advance(), means))
    further = rounds.advance()
    assert seeds_of(further) == {"tiny-llama2": [2], "tiny-mistral": [2]}
    assert isinstance(plan.job, Decision)
    rounds.take(trained(plan, further, means))
    verdict = judge_cells(plan, plan.job.verdict, rounds.ordered)
    assert any("No further seeds" in note and "tiny-qwen (after 2)" in note for note in verdict["notes"])


def test_a_decided_comparison_needs_no_further_cells(tmp_path: Path) -> None:
    plan = planned(tmp_path, max_seeds=4)
    rounds = Rounds(plan, {})
    rounds.take(trained(plan, rounds.advance(), {"tiny-llama2": 1.0, "tiny-mistral": 2.0, "tiny-qwen": 4.0}))
    assert rounds.advance() == []


def test_the_last_declared_seed_ends_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, max_seeds=3)
    rounds, means = Rounds(plan, {}), {"tiny-llama2": 2.0, "tiny-mistral": 2.001, "tiny-qwen": 2.002}
    rounds.take(trained(plan, rounds.advance(), means))
    rounds.take(trained(plan, rounds.advance(), means))
    assert rounds.advance() == []


def test_a_failed_cell_ends_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, max_seeds=3)
    rounds = Rounds(plan, {})
    results = trained(plan, rounds.advance(), {"tiny-llama2": 2.0, "tiny-mistral": 2.001, "tiny-qwen": 2.002})
    rounds.take([*results[:-1], CellResult(**{**vars(results[-1]), "status": CellStatus.FAILED})])
    assert rounds.advance() == []


def test_more_seeds_of_the_same_comparison_are_the_next_look_and_the_same_ones_are_not(tmp_path: Path) -> None:
    means = {"tiny-llama2": 2.0, "tiny-mistral": 2.001}

    def judge(seeds: int, name: str = "e2e") -> dict[str, Any]:
        job = grouped_job(tmp_path, backbones=list(means), seeds=seeds, name=name)
        plan = load_comparison(job.spec)
        assert isinstance(plan.job, Comparison)
        return dict(judge_cells(plan, plan.job.verdict, trained(plan, list(plan.cells), means)))

    assert [judge(2)["look"]["number"], judge(3)["look"]["number"], judge(2)["look"]["number"]] == [1, 2, 1]
    renamed = judge(4, name="another")
    assert renamed["look"]["number"] == 3 and renamed["look"]["earlier_seeds"] == [2, 3]
    assert renamed["alpha"] == pytest.approx(0.05 * 0.8 * 0.2**2)
    assert renamed["notes"][0].startswith("Look 3, a verdict over these runs, after looks at 2 and 3 seeds")
    assert renamed["sentence"].endswith("Untuned: each at one learning rate, 0.003.")


def test_another_metric_of_the_same_cells_is_another_look(tmp_path: Path) -> None:
    means = {"tiny-llama2": 2.0, "tiny-mistral": 2.001}
    found = []
    for metric in ("bits_per_byte", "item_bits_per_byte"):
        plan = load_comparison(grouped_job(tmp_path, backbones=list(means), seeds=2, verdict={"metric": metric}).spec)
        assert isinstance(plan.job, Comparison)
        found.append(judge_cells(plan, plan.job.verdict, trained(plan, list(plan.cells), means)))
    assert [(one["metric"], one["look"]["number"]) for one in found] == [
        ("bits_per_byte", 1),
        ("item_bits_per_byte", 2),
    ]
    assert "bits per byte in the mean of the items" in found[1]["sentence"] or found[1]["outcome"] == "undecided"


def test_a_comparison_that_grows_or_shrinks_goes_on_with_its_looks(tmp_path: Path) -> None:
    means = {"tiny-llama2": 2.0, "tiny-mistral": 2.1, "tiny-qwen": 2.2}

    def judge(*names: str, seeds: int = 2, **changes: Any) -> dict[str, Any]:
        plan = load_comparison(grouped_job(tmp_path, backbones=[*names], seeds=seeds, **changes).spec)
        assert isinstance(plan.job, Comparison)
        return dict(judge_cells(plan, plan.job.verdict, trained(plan, list(plan.cells), means)))

    first, grown = judge("tiny-llama2", "tiny-mistral"), judge("tiny-mistral", "tiny-qwen", "tiny-llama2")
    assert first["look"]["earlier_backbones"] == {}
    assert (grown["look"]["number"], grown["alpha"]) == (2, pytest.approx(0.05 * 0.8 * 0.2))
    assert grown["look"]["earlier_backbones"] == {"1": ["tiny-llama2", "tiny-mistral"]}
    assert grown["notes"][0].startswith(
        "Look 2, a verdict over these runs, after looks at 2 seeds: tested at alpha 0.008 (by hand:"
    )
    assert "Look 1 was at tiny-llama2 and tiny-mistral." in grown["notes"]
    assert judge("tiny-llama2", "tiny-mistral")["look"] == first["look"]
    assert judge("tiny-mistral", "tiny-qwen", "tiny-llama2", seeds=3)["look"]["number"] == 3
    assert judge("tiny-qwen", "tiny-llama2")["look"]["number"] == 3, "after the two at all three"
    with_another_recipe = {"recipe__optimizer": {"learning_rate": 1e-3}}
    assert judge("tiny-llama2", "tiny-mistral", **with_another_recipe)["look"]["number"] == 1


def test_one_common_candidate_makes_no_common_question(tmp_path: Path) -> None:
    means = {"tiny-llama2": 2.0, "tiny-mistral": 2.1, "tiny-qwen": 2.2}
    for rival in ("tiny-mistral", "tiny-qwen"):
        plan = load_comparison(grouped_job(tmp_path, backbones=["tiny-llama2", rival], seeds=2).spec)
        assert isinstance(plan.job, Comparison)
        verdict = judge_cells(plan, plan.job.verdict, trained(plan, list(plan.cells), means))
        assert verdict["look"]["number"] == 1


def test_a_scheduled_decision_that_stops_early_finds_its_cells_in_earlier_firings(tmp_path: Path) -> None:
    """Its report holds fewer cells than its plan."""
    job = grouped_job(tmp_path, backbones=["tiny-llama2", "tiny-mistral"], seeds=2)
    plan, by_hand = load_decision(job.spec, 4, "nightly/2026-11-22T02:00Z"), load_decision(job.spec, 4)
    ran = narrow(plan, {cell.cell_id for cell in plan.cells if cell.seed < 2})
    names = ids_without_occurrence(ran)
    assert {names[cell.cell_id] for cell in ran.cells} == {c.cell_id for c in by_hand.cells if c.seed < 2}


def test_the_levels_that_are_shown_before_are_those_that_are_tested_also_after_a_look(tmp_path: Path) -> None:
    plan = planned(tmp_path, max_seeds=4, backbones=["tiny-llama2", "tiny-mistral"])
    assert isinstance(plan.job, Decision)
    rule, means = plan.job.verdict, {"tiny-llama2": 2.0, "tiny-mistral": 2.0001}
    fresh = dict(looks_ahead(plan, rule, [2, 3, 4]))

    def tested(seeds: int) -> float:
        cells = [cell for cell in plan.cells if cell.seed < seeds]
        return judge_cells(plan, rule, trained(plan, cells, means))["alpha"]

    assert tested(2) == fresh[2]
    assert dict(looks_ahead(plan, rule, [2, 3, 4])) == fresh  # the same cells are the same look
    assert [tested(3), tested(4)] == [fresh[3], fresh[4]]

    grown = planned(tmp_path, max_seeds=5, backbones=["tiny-llama2", "tiny-mistral"])
    assert isinstance(grown.job, Decision)
    later = dict(looks_ahead(grown, grown.job.verdict, [5]))
    assert later[5] == judge_cells(grown, grown.job.verdict, trained(grown, list(grown.cells), means))["alpha"]
