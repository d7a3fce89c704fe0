"""What a plan would take: by what its storage measured before, and not known where nothing like it ran."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_spec import write_small_spec

from jobs.cli.plan_tables import plan_document, print_plan
from jobs.results.costs.forecast import MOST_BYTES, predict
from orchestrator.planning.plan import Cell, Plan, load_comparison
from orchestrator.results import CellResult, CellStatus, save_cell_result

SPEED = {"tokens_per_second_per_device": 100.0, "bytes_per_second_per_device": 400.0, "step_time_s": 2.0}


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    monkeypatch.setenv("BACKBONE_STORAGE", str(tmp_path / "runs"))

    def make(budget: dict[str, Any] | None = None, **changes: Any) -> Plan:
        path = write_small_spec(tmp_path, **changes)
        if budget is not None:
            text = path.read_text("utf-8").replace("amount: 5", f"amount: {budget['amount']}")
            path.write_text(text.replace("kind: steps", f"kind: {budget['kind']}"), encoding="utf-8")
        return load_comparison(path)

    return make


def report_of(plan: Plan, backbones: tuple[str, ...] = ("tiny-llama2",), **changes: Any) -> dict[str, Any]:
    """As a finished job of the same spec left it: each run took ten seconds besides its steps."""
    cells = [
        {
            "backbone_id": name,
            "status": "SUCCEEDED",
            "attempts": 1,
            "metrics": {**SPEED, "train_time_s": 30.0},
            "spent": {"seconds": 40.0, "device_hours": 1.0, "cost": None},
        }
        for name in backbones
    ]
    comparison = {"id": "earlier-0123456789", "spec": plan.job.model_dump(mode="json")}
    return {"format": 1, "comparison": comparison, "environment": {"hardware": "2 x CPU"}, "cells": cells, **changes}


def store(plan: Plan, document: Any, name: str = "earlier-0123456789/report.json") -> None:
    file = plan.storage / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        ({"kind": "steps", "amount": 50}, 50 * 2.0 + 10),
        ({"kind": "bytes", "amount": 8000}, 8000 / (400 * 2) + 10),
        ({"kind": "tokens", "amount": 8000}, 8000 / (100 * 2) + 10),
        ({"kind": "gpu_hours", "amount": 0.5}, 0.5 * 3600 / 2 + 10),
    ],
)
def test_a_budget_is_turned_into_time_by_the_measured_speed(
    budget: dict[str, Any], seconds: float, planned: Callable[..., Plan]
) -> None:
    placement = {"workers": 2, "cpus_per_worker": 3}
    plan = planned(budget, placement=placement, price={"per_core_hour": 0.5})
    store(plan, report_of(plan, ("tiny-llama2", "tiny-qwen")))
    found = predict(plan)
    assert found.known == len(plan.cells) == 4
    assert [cell.seconds for cell in found.cells] == [pytest.approx(seconds)] * 4
    assert found.device_hours == pytest.approx(4 * seconds * 6 / 3600)
    assert found.cost == pytest.approx(found.device_hours * 0.5)


def test_a_budget_of_flops_is_divided_by_the_flops_of_a_token(planned: Callable[..., Plan]) -> None:
    plan = planned({"kind": "flops", "amount": 1e12})
    store(plan, report_of(plan))
    first = predict(plan).cells[0]
    assert first.seconds == pytest.approx(1e12 / (100 * plan.forecasts[0].flops_per_token) + 10)


def test_what_nobody_measured_is_not_known(planned: Callable[..., Plan]) -> None:
    plan = planned()
    assert predict(plan).known == 0
    store(plan, report_of(plan))
    found = predict(plan)
    assert (found.known, found.unknown) == (2, ("tiny-qwen",))
    assert [cell.seconds is None for cell in found.cells] == [False, True, False, True]


def test_a_budget_of_time_says_itself_how_long_it_takes(planned: Callable[..., Plan]) -> None:
    found = predict(planned({"kind": "gpu_hours", "amount": 2}))
    assert (found.known, found.device_hours, found.speeds) == (4, pytest.approx(8.0), {})


@pytest.mark.parametrize(
    "edit",
    [
        lambda spec: spec["recipe"].update(sequence_length=128),
        lambda spec: spec["recipe"].update(precision="fp32"),
        lambda spec: spec["recipe"].update(compile="layers"),
        lambda spec: spec["placement"].update(workers=2),
    ],
)
def test_other_work_and_other_workers_say_nothing(
    edit: Callable[[dict[str, Any]], None], planned: Callable[..., Plan]
) -> None:
    plan = planned()
    document = report_of(plan)
    edit(document["comparison"]["spec"])
    store(plan, document)
    assert predict(plan).known == 0


def test_another_budget_data_or_price_is_the_same_speed(planned: Callable[..., Plan]) -> None:
    plan = planned()
    document = report_of(plan)
    document["comparison"]["spec"]["recipe"] |= {"budget": {"kind": "bytes", "amount": 1e9}, "evaluate": {"every": 0.5}}
    store(plan, document)
    assert predict(plan).known == 2


def test_a_benchmark_counts_too_and_knows_nothing_besides_steps(planned: Callable[..., Plan]) -> None:
    plan = planned()
    cells = [{"backbone_id": "tiny-qwen", "status": "SUCCEEDED", "attempts": 1, "figures": {}}]
    benchmark = report_of(plan, cells=cells, metrics={"tiny-qwen": SPEED})
    store(plan, benchmark, "earlier-benchmark-0123456789/benchmark.json")
    assert [cell.seconds for cell in predict(plan).cells] == [None, 10.0, None, 10.0]


@pytest.mark.parametrize("damaged", ["{", "[]", '{"format": 9}', '{"comparison": {}}', '{"comparison": {"spec": 3}}'])
def test_a_damaged_document_of_somebody_else_is_no_obstacle(damaged: str, planned: Callable[..., Plan]) -> None:
    plan = planned()
    store(plan, damaged, "other-0123456789/report.json")
    store(plan, report_of(plan))
    assert predict(plan).known == 2


def test_the_newest_measurement_counts_and_a_document_too_large_to_read_at_once_is_passed_over(
    planned: Callable[..., Plan],
) -> None:
    plan = planned()
    for age, seconds in ((2, 40.0), (1, 70.0), (3, 90.0)):
        document = report_of(plan, ("tiny-llama2", "tiny-qwen"))
        for cell in document["cells"]:
            cell["spent"]["seconds"] = seconds
        name = f"earlier-{age}/report.json"
        store(plan, document, name)
        os.utime(plan.storage / name, (1e9 - age, 1e9 - age))
    large = plan.storage / "earlier-0" / "report.json"
    large.parent.mkdir()
    large.touch()
    os.truncate(large, MOST_BYTES + 1)
    assert [cell.seconds for cell in predict(plan).cells] == [5 * 2.0 + 40.0] * 4


def test_a_run_without_a_measured_rate_says_nothing(planned: Callable[..., Plan]) -> None:
    plan = planned()
    document = report_of(plan)
    document["cells"][0]["metrics"]["tokens_per_second_per_device"] = None
    store(plan, document)
    assert predict(plan).known == 0


def test_the_plan_shows_time_and_money_or_that_they_are_not_known(
    planned: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(price={"per_core_hour": 3.6})
    print_plan(plan)
    assert "cost       not known: nothing like it was measured in this storage" in capsys.readouterr().out
    store(plan, report_of(plan))
    print_plan(plan)
    shown = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert re.search(r"tiny-llama2-s0-\S+ .* 20\.0 s +0\.0200 USD\n", shown)
    assert re.search(r"tiny-qwen-s0-\S+ .* n/a +n/a\n", shown)
    assert (
        "about 0.0111 CPU core hours, 0.0400 USD for 2 of 4 cells; by the speed measured in earlier-0123456789 on "
        "2 x CPU; not measured yet: tiny-qwen" in shown
    )
    document = plan_document(plan)
    assert document["predicted"]["measured_in"] == {"tiny-llama2": "earlier-0123456789"}
    assert [cell["predicted_seconds"] for cell in document["cells"]] == [20.0, None, 20.0, None]


def test_a_price_of_other_devices_is_named(planned: Callable[..., Plan], capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(price={"per_gpu_hour": 2.5})
    store(plan, report_of(plan))
    print_plan(plan)
    assert "the price of these workers is not known: set price.per_core_hour" in capsys.readouterr().out


def test_workers_start_once_and_not_for_every_cell(planned: Callable[..., Plan]) -> None:
    plan = planned()
    document = report_of(plan, ("tiny-llama2", "tiny-qwen"))
    document["cells"][0]["spent"] |= {"seconds": 130.0, "starting_s": 90.0}  # it was the first
    store(plan, document)
    found = predict(plan)
    assert [cell.seconds for cell in found.cells] == [5 * 2.0 + 10] * 4
    cores = plan.job.placement.most * plan.job.placement.cpus_per_worker
    assert found.device_hours == pytest.approx((4 * 20 + 90) * cores / 3600)


def test_what_is_finished_costs_nothing_and_is_shown(
    planned: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned()
    store(plan, report_of(plan, ("tiny-llama2", "tiny-qwen")))
    finish(plan, plan.cells[:3])
    document = plan_document(plan)
    assert [cell["finished"] for cell in document["cells"]] == [True, True, True, False]
    assert [cell["predicted_seconds"] for cell in document["cells"]] == [None, None, None, 20.0]
    print_plan(plan)
    shown = capsys.readouterr().out
    assert "finished   3 of 4 cells are in the storage already; 1 would run" in shown
    assert "cost       about 0.00556 CPU core hours; by the speed" in shown.replace("\N{NO-BREAK SPACE}", " ")
    finish(plan, plan.cells[3:])
    print_plan(plan)
    assert "cost       nothing: every cell is finished" in capsys.readouterr().out


def finish(plan: Plan, cells: Sequence[Cell]) -> None:
    for cell in cells:
        folder = plan.cell_folder(cell)
        folder.mkdir(parents=True)
        result = CellResult(cell.cell_id, cell.backbone.backbone_id, cell.seed, CellStatus.SUCCEEDED, attempts=1)
        save_cell_result(folder, result)


def test_what_nobody_is_likely_to_want_is_said_and_not_refused(
    planned: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned({"kind": "bytes", "amount": 10**9})
    examples, size = len(plan.train), plan.train.learnable_bytes
    assert plan_document(plan)["warnings"][1:] == [
        f"recipe.budget passes about {1e9 / size:,.0f} times over the training data: the model will know it by heart; "
        f"20 times are recipe.budget.amount {20 * size:.3g}"
    ]
    job = plan.job.model_copy(update={"recipe": plan.job.recipe.model_copy(update={"global_batch_size": examples + 1})})
    print_plan(replace(plan, job=job))
    assert f"there are {examples:,} training examples: every step sees some of them more" in capsys.readouterr().out
    enough = planned({"kind": "bytes", "amount": 20 * size})
    recipe = enough.job.recipe.model_copy(update={"global_batch_size": examples})
    assert plan_document(replace(enough, job=enough.job.model_copy(update={"recipe": recipe})))["warnings"] == []
