"""A ladder of budgets: its cells are those of single comparisons, and its report shows score against budget."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from product import Job
from scored_cells import grouped_job, trained

from jobs.cli.plan_tables import plan_document
from jobs.cli.schemas import document_schema, spec_schema
from jobs.driver.kinds.benchmark import load_benchmark
from jobs.driver.kinds.decision import load_decision
from jobs.driver.kinds.ladder import LadderKind
from jobs.driver.kinds.self_comparison import load_self_comparison
from jobs.driver.rounds import Rounds
from jobs.results.documents import load_report
from orchestrator.errors import SpecError
from orchestrator.planning.plan import Plan, by_budget, load_comparison, load_finetune
from orchestrator.results import CellResult

LADDER = [16_000, 2_000, 4_000, 8_000]
FIRST, SECOND = "tiny-llama2", "tiny-mistral"


def ladder_job(folder: Path, budget: Any = None, **changes: Any) -> Job:
    budget = {"kind": "bytes", "ladder": LADDER} if budget is None else budget
    return grouped_job(folder, backbones=[FIRST, SECOND], seeds=2, recipe__budget=budget, **changes)


def results_of(plan: Plan, score: Callable[[str, float], float]) -> list[CellResult]:
    return [
        result
        for one in by_budget(plan)
        for result in trained(
            one, one.cells, {name: score(name, one.job.recipe.budget.amount) for name in (FIRST, SECOND)}, noise=1e-3
        )
    ]


def test_its_cells_are_those_of_comparisons_at_each_budget_the_smallest_first(tmp_path: Path) -> None:
    plan = load_comparison(ladder_job(tmp_path).spec)
    assert plan.kind == "ladder" and plan.job.recipe.budget.amount == 16_000
    alone = [load_comparison(ladder_job(tmp_path, {"kind": "bytes", "amount": a}).spec) for a in sorted(LADDER)]
    assert [cell.cell_id for cell in plan.cells] == [cell.cell_id for one in alone for cell in one.cells]
    assert [one.job_id for one in by_budget(plan)] == [one.job_id for one in alone]
    assert by_budget(alone[0]) == [alone[0]]
    assert Rounds(plan, {}).advance() == list(plan.cells)
    assert len(plan_document(plan)["cells"]) == 16


def test_scores_are_drawn_against_budgets_and_the_law_that_made_them_is_found_again(tmp_path: Path) -> None:
    plan = load_comparison(ladder_job(tmp_path).spec)

    def law(name: str, amount: float) -> float:
        floor, power = {FIRST: (1.5, 0.5), SECOND: (1.0, 0.25)}[name]
        return floor + (amount / 2_000) ** -power

    document = LadderKind().conclude(plan, results_of(plan, law), "backbone compare").document
    facts = document["ladder"]
    assert [one["amount"] for one in facts["budgets"]] == sorted(LADDER)
    for one, plain in zip(facts["budgets"], by_budget(plan), strict=True):
        report = load_report(plain.files.report)
        assert (
            report["comparison"]["id"] == one["id"] == plain.job_id and report["verdict"]["sentence"] == one["sentence"]
        )
        assert (one["cells"], one["finished"]) == (4, 4)
    for name, points in facts["predicted"].items():
        assert [point["amount"] for point in points] == [32_000, 80_000, 160_000]
        for point in points:
            low, high = point["interval"]
            assert low <= law(name, point["amount"]) + 2e-3 and law(name, point["amount"]) - 2e-3 <= high
    assert facts["level"] == 0.95 and facts["sentence"].startswith("At 160000 bytes")
    Draft202012Validator(document_schema("report")).validate(json.loads(plan.files.report.read_text()))
    page = plan.files.report_page.read_text(encoding="utf-8")
    assert "Score against budget" in page and "predicted at 160" in page and by_budget(plan)[0].job_id in page
    assert plan.files.items.exists()


def test_too_few_budgets_are_drawn_and_not_predicted(tmp_path: Path) -> None:
    plan = load_comparison(ladder_job(tmp_path, {"kind": "steps", "ladder": [2, 4]}).spec)
    facts = (
        LadderKind().conclude(plan, results_of(plan, lambda name, amount: 2 + 1 / amount), "compare").document["ladder"]
    )
    assert facts["predicted"] == {} and facts["level"] is None and set(facts["reasons"]) == {FIRST, SECOND}
    assert "cannot be predicted" in facts["sentence"]
    nothing = LadderKind().conclude(plan, [], "compare").document
    assert nothing["ladder"]["sentence"] == "No run finished, so nothing can be predicted."


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        ({"ladder": [4000]}, "it must be a list of at least 2"),
        ({"ladder": [4000, 4000]}, "4000"),
        ({"ladder": [1000, -5]}, "above 0"),
        ({"ladder": [1000, "many"]}, "a number"),
        ({"ladder": [1000, 2000], "amount": 1000}, "there is an amount beside it; leave out either of them"),
        ({"kind": "steps", "ladder": [1.5, 3]}, "steps are counted whole"),
        ({"kind": "steps"}, "'recipe.budget.amount' is missing"),
    ],
)
def test_what_is_no_ladder_is_refused_with_the_remedy(tmp_path: Path, budget: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        load_comparison(ladder_job(tmp_path, budget).spec)


def test_a_ladder_is_of_comparisons_at_one_learning_rate_and_one_of_its_budgets_is_enough_elsewhere(
    tmp_path: Path,
) -> None:
    job = ladder_job(tmp_path)
    with pytest.raises(SpecError, match="seeds are added at one; write its amount alone"):
        load_decision(job.spec)
    for plan in (load_benchmark(job.spec, 1, 3), load_self_comparison(job.spec)):
        assert len(plan.cells) == {"benchmark": 2, "self-comparison": 4}[plan.kind]
    assert {cell.recipe.budget.amount for cell in load_self_comparison(job.spec).cells} == {16_000}
    tuned = ladder_job(tmp_path, tuning={"learning_rate": [1e-3, 2e-3]})
    with pytest.raises(SpecError, match=r"'recipe\.budget\.ladder' and 'tuning' do not go together"):
        load_comparison(tuned.spec)


def test_the_published_schema_takes_either_an_amount_or_a_ladder() -> None:
    budget = spec_schema("comparison")["$defs"]["Budget"]
    takes = Draft202012Validator(budget).is_valid
    assert takes({"amount": 5}) and takes({"ladder": [1, 2]}) and not takes({"kind": "steps"})


def test_a_finetune_has_one_budget(tmp_path: Path) -> None:
    spec = ladder_job(tmp_path).spec
    text = spec.read_text("utf-8").replace("seeds: 2\n", "")
    lines = [line for line in text.splitlines() if not line.startswith(("backbones", "- tiny", "verdict"))]
    spec.write_text("\n".join([*lines, f"backbone: {FIRST}"]), encoding="utf-8")
    with pytest.raises(SpecError, match=r"'recipe\.budget\.ladder' is of comparisons"):
        load_finetune(spec)
