"""What cells took: every attempt counts, a price changes no id, and nothing is priced that has no price."""

import json
from pathlib import Path
from typing import Any

import pytest
from report_documents import NAMES, cell_document, comparison_document, failed
from small_spec import write_small_spec

from jobs.driver.attempts import History
from jobs.formats import money
from jobs.results.costs.spent import AttemptTime, Rate, attempt_times, find_rate, spans, spent, total
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import load_comparison
from orchestrator.spec_files.spec import Comparison, Placement
from orchestrator.tracking.spool import Entry, EntryKind, note_phase

GPUS, CORES = Placement(workers=4, gpus_per_worker=1), Placement(workers=2, cpus_per_worker=3)


def phase(attempt: int, time_s: float, **fields: Any) -> Entry:
    return Entry(EntryKind.PHASE, round(time_s * 1000), attempt, {"phase": "training", **fields})


def test_every_attempt_takes_from_its_first_line_to_its_end() -> None:
    entries = [
        phase(1, 100, phase="starting", workers=4),
        phase(1, 160),
        phase(2, 500, phase="starting", workers=2),  # elastic: the cluster had shrunk
        phase(2, 530),
    ]
    assert spans(entries, [190_000, 540_000]) == [AttemptTime(90, 4), AttemptTime(40, 2)]


def test_an_attempt_that_nobody_saw_end_takes_until_its_last_line() -> None:
    entries = [phase(1, 100, workers=1), phase(1, 160), phase(2, 500), phase(2, 530), phase(3, 600)]
    assert spans(entries, [None, 540_000]) == [AttemptTime(60, 1), AttemptTime(40, None), AttemptTime(0, None)]
    assert spans(entries, []) == [AttemptTime(60, 1), AttemptTime(30, None), AttemptTime(0, None)]


def test_a_clock_that_runs_behind_makes_no_time_negative() -> None:
    assert spans([phase(1, 100), phase(1, 99)], [98_000]) == [AttemptTime(0, None)]


def test_hours_are_of_gpus_else_of_cores_and_of_the_workers_that_each_attempt_had() -> None:
    attempts = [AttemptTime(1800, 4), AttemptTime(900, 2), AttemptTime(900, None)]
    on_gpus, on_cores = spent(attempts, GPUS, Rate(2.0, "USD")), spent(attempts, CORES, None)
    assert on_gpus == {"seconds": 3600, "device_hours": 2 + 0.5 + 1, "cost": 7.0, "starting_s": 0.0}
    assert on_cores == {"seconds": 3600, "device_hours": 6 + 1.5 + 1.5, "cost": None, "starting_s": 0.0}


def test_what_an_attempt_waits_for_its_workers_and_proofs_is_told_from_the_rest() -> None:
    entries = [
        phase(1, 100, phase="starting", workers=4),
        phase(1, 130, phase="certifying"),
        phase(1, 160, phase="loading"),
    ]
    attempts = spans([*entries, phase(1, 170)], [190_000])
    assert attempts == [AttemptTime(90, 4, 60)]
    assert spent([*attempts, AttemptTime(5, 4, 1)], GPUS, None)["starting_s"] == 61


def test_the_history_of_a_cell_keeps_when_its_attempts_ended_over_all_launches(tmp_path: Path) -> None:
    spool = CellFolder(tmp_path).spool
    first = History(tmp_path)
    note_phase(spool, first.begin(), "starting", workers=2)
    died = History(tmp_path)  # the launch died: nobody saw the first attempt end
    note_phase(spool, died.begin(), "starting", workers=2)
    died.end("a worker was lost")
    stored = json.loads(CellFolder(tmp_path).attempts.read_text("utf-8"))
    assert stored["ended_ms"][0] is None and stored["ended_ms"][1] > 1e12
    assert [attempt.workers for attempt in attempt_times(tmp_path)] == [2, 2]


def test_a_cell_that_never_began_took_nothing(tmp_path: Path) -> None:
    assert attempt_times(tmp_path / "nowhere") == []
    assert spent([], GPUS, Rate(2.0, "USD")) == {
        "seconds": 0.0,
        "device_hours": 0.0,
        "cost": 0.0,
        "starting_s": 0.0,
    }


def test_cells_of_an_earlier_version_are_counted_by_their_spool(tmp_path: Path) -> None:
    note_phase(CellFolder(tmp_path).spool, 1, "starting")
    CellFolder(tmp_path).attempts.write_text('{"count": 1, "reasons": ["it finished"]}', encoding="utf-8")
    assert attempt_times(tmp_path) == [AttemptTime(0.0, None)]


def test_a_backbone_takes_what_all_its_cells_take_and_a_run_what_the_finished_ones_do() -> None:
    cells = [cell_document(0, NAMES[0], seed) for seed in range(3)]
    for cell, hours in zip(cells, (1.0, 3.0, 8.0), strict=True):
        cell["spent"] = {"seconds": 3600.0, "device_hours": hours, "cost": None}
    cells[2] = failed(cells[2], "DIVERGED", "loss is NaN")
    costs = total(cells, "GPU", Rate(2.5, "EUR"))  # type: ignore[arg-type]
    (own,) = costs["backbones"]
    assert (own["device_hours"], own["device_hours_per_run"]) == (12.0, 2.0)
    assert (own["cost"], own["cost_per_run"], costs["cost"]) == (30.0, 5.0, 30.0)
    assert (costs["currency"], costs["price_per_hour"]) == ("EUR", 2.5)


def test_totals_of_a_comparison_are_sums_of_its_backbones_and_cells() -> None:
    document = comparison_document()
    costs = document["costs"]
    assert costs["device_hours"] == pytest.approx(sum(cell["spent"]["device_hours"] for cell in document["cells"]))
    assert costs["device_hours"] == pytest.approx(sum(row["device_hours"] for row in costs["backbones"]))


@pytest.mark.parametrize(
    ("price", "placement", "rate"),
    [
        ({"per_gpu_hour": 2.5}, {"gpus_per_worker": 1}, Rate(2.5, "USD")),
        ({"per_core_hour": 0.05, "currency": "EUR"}, {}, Rate(0.05, "EUR")),
        ({"per_gpu_hour": 2.5}, {}, None),
        ({"per_core_hour": 0.05}, {"gpus_per_worker": 1}, None),
        (None, {}, None),
    ],
)
def test_a_price_is_of_what_the_workers_hold(
    price: dict[str, Any] | None, placement: dict[str, Any], rate: Rate | None, tmp_path: Path
) -> None:
    keys = {"placement": placement} if price is None else {"placement": placement, "price": price}
    job = load_comparison(write_small_spec(tmp_path, **keys)).job
    assert isinstance(job, Comparison)
    assert find_rate(job) == rate


def test_a_price_is_part_of_no_id_and_of_no_dump_that_has_none(tmp_path: Path) -> None:
    plain = load_comparison(write_small_spec(tmp_path / "plain"))
    priced = load_comparison(write_small_spec(tmp_path / "priced", price={"per_core_hour": 0.05}))
    assert plain.job_id == priced.job_id
    assert [cell.cell_id for cell in plain.cells] == [cell.cell_id for cell in priced.cells]
    assert "price" not in plain.job.model_dump(mode="json")
    assert priced.job.model_dump(mode="json")["price"]["currency"] == "USD"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (money(1234.5, "USD"), "1,234.50 USD"),
        (money(0.001234, "EUR"), "0.00123 EUR"),
        (money(0, "EUR"), "0 EUR"),
        (money(None, "EUR"), "n/a"),
        (money(3, None), "3.00"),
    ],
)
def test_money_is_written_for_people(written: str, expected: str) -> None:
    assert written.replace("\N{NO-BREAK SPACE}", " ") == expected
