"""Which trials come next, which learning rate a backbone gets, and what is said of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scored_cells import grouped_job, trained

from jobs.driver.conclusion import _exit_code
from jobs.driver.kinds.decision import load_decision
from jobs.driver.kinds.self_comparison import labelled, load_self_comparison
from jobs.driver.rounds import Rounds
from jobs.report.html import render_report
from jobs.results.finished import build_document, judge_cells
from jobs.results.tuning import doubts_of, is_excused, judged_plan, tuning_facts
from orchestrator.planning.plan import Cell, Plan, load_comparison
from orchestrator.results import CellResult, CellStatus, Measurement
from orchestrator.spec_files.spec import Comparison

LLAMA, MISTRAL, QWEN = "tiny-llama2", "tiny-mistral", "tiny-qwen"
RATES = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
BEST = {LLAMA: 2e-3, MISTRAL: 8e-3, QWEN: 1.6e-2}
STEPS = 40.0
Score = Callable[[Cell], float]


def planned(folder: Path, **changes: Any) -> Plan:
    job = grouped_job(folder, **({"backbones": [*BEST], "seeds": 2, "tuning": {"learning_rate": RATES}} | changes))
    return load_comparison(job.spec)


def far_from_best(cell: Cell) -> float:
    best = BEST[cell.backbone.backbone_id]
    return 3 + abs(RATES.index(cell.learning_rate) - RATES.index(best)) - 0.1 * (cell.rung or 0)


def tried(
    plan: Plan, cells: Sequence[Cell], score: Score = far_from_best, diverged: Sequence[str] = ()
) -> list[CellResult]:
    """What trials came to; nothing is trained."""
    results = []
    for cell in cells:
        assert cell.is_trial
        metrics = {"val_bits_per_byte": score(cell), "steps": STEPS}
        measurement = Measurement(metrics, [], {}, {}, "items.parquet")
        result = CellResult(cell.cell_id, cell.backbone.backbone_id, cell.seed, CellStatus.SUCCEEDED, attempts=1)
        result = replace(result, measurement=measurement)
        if cell.cell_id in diverged:
            result = replace(result, status=CellStatus.DIVERGED, measurement=None, failure="the loss was NaN")
        results.append(replace(result, folder=str(plan.cell_folder(cell))))
    return results


def run_trials(plan: Plan, rounds: Rounds, **how: Any) -> list[list[Cell]]:
    """The rungs until something is judged; the last list is what comes then."""
    rungs = []
    while (cells := rounds.advance()) and cells[0].is_trial:
        rungs.append(cells)
        rounds.take(tried(plan, cells, **how))
    return [*rungs, cells]


def rates_of(cells: Sequence[Cell], backbone_id: str) -> set[float]:
    return {cell.learning_rate for cell in cells if cell.backbone.backbone_id == backbone_id}


def test_the_better_half_goes_on_and_each_backbone_gets_its_own_best(tmp_path: Path) -> None:
    plan = planned(tmp_path, tuning={"learning_rate": RATES, "rungs": 3})
    first, second, third, judged = run_trials(plan, Rounds(plan, {}))
    assert [len(rates_of(rung, name)) for name in BEST for rung in (first, second, third)] == 3 * [5, 3, 2]
    assert rates_of(second, LLAMA) == {1e-3, 2e-3, 4e-3} and rates_of(third, MISTRAL) == {4e-3, 8e-3}
    assert {(cell.backbone.backbone_id, cell.seed, cell.learning_rate) for cell in judged} == {
        (name, seed, rate) for name, rate in BEST.items() for seed in (0, 1)
    }


def test_the_last_rung_says_which_is_best(tmp_path: Path) -> None:
    plan = planned(tmp_path)

    def turned(cell: Cell) -> float:
        return far_from_best(cell) * (1 if cell.rung == 0 else -1)

    *_, judged = run_trials(plan, Rounds(plan, {}), score=turned)
    assert rates_of(judged, LLAMA) == {1e-3} or rates_of(judged, LLAMA) == {4e-3}


def test_equal_scores_give_the_smaller_rate(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    *_, judged = run_trials(plan, Rounds(plan, {}), score=lambda cell: 3.0)
    assert all(rates_of(judged, name) == {1e-3} for name in BEST)


def test_a_rate_at_which_a_backbone_diverges_is_an_answer(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    largest = [cell.cell_id for cell in plan.cells if cell.rung == 0 and cell.learning_rate == 1.6e-2]
    rounds = Rounds(plan, {})
    *_, judged = run_trials(plan, rounds, diverged=largest)
    assert rates_of(judged, QWEN) == {8e-3}
    failed = [result for result in rounds.ordered if result.status is CellStatus.DIVERGED]
    assert len(failed) == 3 and all(is_excused(plan, rounds.ordered, result) for result in failed)
    assert _exit_code([one for one in rounds.ordered if not is_excused(plan, rounds.ordered, one)], None) == 0


def test_a_backbone_whose_trials_all_diverge_is_not_trained_and_the_launch_fails(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    all_of_one = [cell.cell_id for cell in plan.cells if cell.is_trial and cell.backbone.backbone_id == LLAMA]
    rounds = Rounds(plan, {})
    *_, judged = run_trials(plan, rounds, diverged=all_of_one)
    assert {cell.backbone.backbone_id for cell in judged} == {MISTRAL, QWEN}
    assert not any(is_excused(plan, rounds.ordered, one) for one in rounds.ordered)


def test_nothing_is_trained_at_a_rate_while_a_trial_was_cut_off(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    rounds = Rounds(plan, {})
    results = tried(plan, rounds.advance())
    rounds.take([replace(results[0], status=CellStatus.CANCELLED, measurement=None), *results[1:]])
    assert rounds.advance() == []


def test_the_verdict_is_over_the_chosen_cells_and_says_how_they_were_chosen(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    rounds = Rounds(plan, {})
    *_, judged = run_trials(plan, rounds)
    rounds.take(trained(plan, judged, {LLAMA: 2.0, MISTRAL: 2.5, QWEN: 3.0}))
    assert rounds.advance() == []
    assert isinstance(plan.job, Comparison)
    verdict = judge_cells(plan, plan.job.verdict, rounds.ordered)
    assert verdict["sentence"].startswith("tiny-llama2 wins")
    assert verdict["sentence"].endswith(
        "Tuned: each at the best of 5 learning rates: tiny-llama2 0.002, tiny-mistral 0.008, tiny-qwen 0.016."
    )
    notes = " ".join(verdict["notes"])
    assert "The best learning rate of tiny-qwen, 0.016, is the largest that was tried: add 0.032" in notes
    assert "smallest" not in notes


def test_trials_of_a_few_steps_are_doubted_and_no_further_rate_is_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "STEPS", 3.0)
    plan = planned(tmp_path)
    rounds = Rounds(plan, {})
    *_, judged = run_trials(plan, rounds)
    facts = tuning_facts(plan, rounds.ordered)
    assert facts is not None and all(one["edge"] is None for one in facts["backbones"].values())
    (doubt,) = doubts_of(facts)
    assert "as few as 3 optimizer steps" in doubt and "raise tuning.budget_fraction" in doubt
    assert doubt in rounds.reason(judged)


def test_an_untuned_verdict_says_so(tmp_path: Path) -> None:
    plan = load_comparison(grouped_job(tmp_path, backbones=[LLAMA, MISTRAL], seeds=2).spec)
    results = trained(plan, plan.cells, {LLAMA: 2.0, MISTRAL: 2.5})
    assert isinstance(plan.job, Comparison)
    assert "Untuned: each at one learning rate" in judge_cells(plan, plan.job.verdict, results)["sentence"]


def test_the_facts_of_all_trials_are_kept_and_shown(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    rounds = Rounds(plan, {})
    *_, judged = run_trials(plan, rounds)
    facts = tuning_facts(plan, rounds.ordered)
    assert facts is not None
    assert facts["spend"] == pytest.approx(5 * 0.1 + 3 * 0.2)
    assert {name: one["best"] for name, one in facts["backbones"].items()} == BEST
    assert {name: one["edge"] for name, one in facts["backbones"].items()} == {LLAMA: None, MISTRAL: None, QWEN: 0.032}
    rounds.take(trained(plan, judged, {LLAMA: 2.0, MISTRAL: 2.5, QWEN: 3.0}))
    document = build_document(plan, rounds.ordered, {}, "backbone compare", None)
    assert {cell["cell_id"] for cell in document["cells"]} == {cell.cell_id for cell in judged}
    page = render_report(document)
    assert "at the edge: add 0.032" in page and "Score against learning rate" in page


def test_a_decision_tunes_first_and_then_adds_seeds(tmp_path: Path) -> None:
    job = grouped_job(tmp_path, backbones=[LLAMA, MISTRAL], seeds=2, tuning={"learning_rate": RATES})
    plan = load_decision(job.spec, 4)
    rounds = Rounds(plan, {})
    *_, judged = run_trials(plan, rounds)
    assert {(cell.seed, cell.learning_rate) for cell in judged} == {(0, 2e-3), (1, 2e-3), (0, 8e-3), (1, 8e-3)}
    assert rounds.reason(judged).startswith("Best learning rates: tiny-llama2 0.002, tiny-mistral 0.008. Next: seed 0")
    rounds.take(trained(plan, judged, {LLAMA: 2.0, MISTRAL: 2.001}))
    further = rounds.advance()
    assert {(cell.seed, cell.learning_rate) for cell in further} == {(2, 2e-3), (2, 8e-3)}


def test_a_backbone_against_itself_is_tuned_once_for_both_labels(tmp_path: Path) -> None:
    job = grouped_job(tmp_path, backbones=[LLAMA, MISTRAL], seeds=2, tuning={"learning_rate": RATES})
    plan = load_self_comparison(job.spec, LLAMA)
    rounds = Rounds(plan, {})
    *_, judged = run_trials(plan, rounds)
    rounds.take(trained(plan, judged, {LLAMA: 2.0}))
    results = labelled(plan, rounds.ordered)
    assert {result.backbone_id for result in results} == {LLAMA, f"{LLAMA} A", f"{LLAMA} B"}
    assert isinstance(plan.job, Comparison)
    verdict = judge_cells(plan, plan.job.verdict, results)
    assert {row["backbone_id"] for row in verdict["ranking"]} == {f"{LLAMA} A", f"{LLAMA} B"}


def test_a_plan_that_is_not_tuned_is_judged_whole(tmp_path: Path) -> None:
    plan = load_comparison(grouped_job(tmp_path, backbones=[LLAMA, MISTRAL]).spec)
    assert judged_plan(plan, []) is plan and tuning_facts(plan, []) is None
