"""A scheduled run against its own history: the band, what may be compared, what moved, and the report's section."""

import json
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_documents import comparison_document, finetune_document

from jobs.driver.kinds.reports import history_lines
from jobs.report.html import render_report
from jobs.results.history import LATEST, Measured, Record, compare_records, compare_with_history, prediction_band
from orchestrator.planning.plan import Plan, load_comparison

TORCH = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"}
BACKBONES = ["tiny-llama2", "tiny-mistral"]


def plan_of(folder: Path, occurrence: str | None, sequence_length: int = 64) -> Plan:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        turns = [{"role": "user", "content": split}, {"role": "assistant", "content": "a"}]
        (folder / f"{split}.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    recipe = {
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"}, "sequence_length": sequence_length,
        "global_batch_size": 8, "budget": {"kind": "steps", "amount": 5},
    }  # fmt: skip
    spec = {"name": "n", "backbones": BACKBONES, "seeds": 2, "storage": str(folder / "runs"), "recipe": recipe}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    return load_comparison(folder / "spec.yaml", occurrence)


def document_of(plan: Plan, packages: Mapping[str, str] = TORCH, **metrics: float) -> dict[str, Any]:
    """What `report.json` says of a plan whose cells all measured `metrics`."""
    measured = {"val_bits_per_byte": 0.9, "tokens_per_second_per_device": 5000.0, "peak_memory_gib": 60.0, **metrics}
    cells = [
        {"cell_id": cell.cell_id, "backbone_id": cell.backbone.backbone_id, "status": "SUCCEEDED", "metrics": measured}
        for cell in plan.cells
    ]
    return {"cells": cells, "environment": {"hardware": "1 x H100", "packages": dict(packages)}}


def night(day: int, schedule: str = "nightly") -> str:
    return f"{schedule}/2026-11-{day:02d}T02:00Z"


def run(folder: Path, occurrence: str, sequence_length: int = 64, **facts: Any) -> dict[str, Any]:
    """One firing, from its plan to its comparison with the earlier ones."""
    plan = plan_of(folder, occurrence, sequence_length)
    found = compare_with_history(plan, document_of(plan, **facts))
    assert found is not None
    return found


def row_of(found: Mapping[str, Any], quantity: str, backbone_id: str = "tiny-llama2") -> dict[str, Any]:
    [row] = [row for row in found["rows"] if (row["quantity"], row["backbone_id"]) == (quantity, backbone_id)]
    return dict(row)


# --- the band ---


def test_the_band_is_the_prediction_interval_of_one_more_value() -> None:
    low, high = prediction_band([10.0, 12.0, 14.0]) or (0.0, 0.0)
    half = 9.92484 * 2 * (4 / 3) ** 0.5  # t(0.995, 2) of the tables, s = 2, n = 3
    assert (low, high) == (pytest.approx(12 - half, abs=1e-4), pytest.approx(12 + half, abs=1e-4))


def test_fewer_than_three_values_make_no_band() -> None:
    assert prediction_band([1.0, 2.0]) is None


def test_values_that_repeat_exactly_have_a_band_of_a_thousandth() -> None:
    assert prediction_band([2.0, 2.0, 2.0]) == (pytest.approx(1.998), pytest.approx(2.002))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_one_in_a_hundred_values_leaves_the_band_by_chance(n: int) -> None:
    noise, tries = random.Random(n), 4000
    outside = 0
    for _ in range(tries):
        low, high = prediction_band([noise.gauss(5, 1) for _ in range(n)]) or (0.0, 0.0)
        outside += not low <= noise.gauss(5, 1) <= high
    assert 0.005 < outside / tries < 0.016


# --- from firing to firing ---


def test_a_job_that_no_schedule_fired_has_no_history(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, None)
    assert compare_with_history(plan, document_of(plan)) is None
    assert not (plan.storage / "schedules").exists()


def test_the_second_firing_shows_the_first(tmp_path: Path) -> None:
    first, second = run(tmp_path, night(1)), run(tmp_path, night(2), val_bits_per_byte=0.91)
    assert first["sentences"] == ["the first run of this schedule: there is nothing to compare it with yet"]
    assert second["earlier"] == ["2026-11-01T02:00Z"]
    row = row_of(second, "val_bits_per_byte")
    assert row["earlier"] == [{"tick": "2026-11-01T02:00Z", "value": 0.9}]
    assert (row["value"], row["band"], row["left"]) == (0.91, None, None)
    assert second["sentences"] == [
        "no band yet for 6 of 6 quantities: 1 earlier, 3 are needed",
        "no package version moved since 2026-11-01T02:00Z",
    ]


def test_mlflow_gets_every_firing_as_a_point_of_a_line(tmp_path: Path) -> None:
    run(tmp_path, night(1))
    second: Any = run(tmp_path, night(2), val_bits_per_byte=0.91)
    lines = history_lines(second)
    line = lines["history/val_bits_per_byte/tiny-llama2"]
    assert [(point.step, point.value) for point in line] == [(1, 0.9), (2, 0.91)] and len(lines) == 6
    assert line[1].time_ms - line[0].time_ms == 24 * 3600 * 1000


def test_what_leaves_the_band_is_said_with_its_direction(tmp_path: Path) -> None:
    for day, speed in enumerate((5000.0, 5010.0, 4990.0, 5005.0), 1):
        run(tmp_path, night(day), tokens_per_second_per_device=speed)
    found = run(tmp_path, night(5), tokens_per_second_per_device=4000.0, peak_memory_gib=50.0)
    speed, memory = row_of(found, "tokens_per_second_per_device"), row_of(found, "peak_memory_gib")
    assert (speed["left"], speed["worse"]) == ("below", True)
    assert (memory["left"], memory["worse"]) == ("below", False)
    assert row_of(found, "val_bits_per_byte")["left"] is None
    assert found["sentences"][0] == (
        "tiny-llama2: tokens/s per device is 4,000, below the band 4,945 to 5,057 of 4 earlier runs (worse)"
    )
    assert (
        "tiny-llama2: peak memory (GiB) is 50.0, below the band 59.9 to 60.1 of 4 earlier runs (better)"
        in (found["sentences"])
    )
    assert "2 of 6 quantities are inside their 99\N{NO-BREAK SPACE}% band of the earlier runs" in found["sentences"]


def test_versions_that_moved_since_the_last_run_are_named(tmp_path: Path) -> None:
    run(tmp_path, night(1), packages={"torch": "2.11.0"})
    run(tmp_path, night(2), packages={"torch": "2.12.0", "peft": "0.21"})
    found = run(tmp_path, night(3), packages={"torch": "2.13.0", "ray": "2.60.0"})
    assert found["moved"] == [
        {"name": "peft", "from": "0.21", "to": None},
        {"name": "ray", "from": None, "to": "2.60.0"},
        {"name": "torch", "from": "2.12.0", "to": "2.13.0"},
    ]
    assert (
        "since 2026-11-02T02:00Z moved: peft 0.21 to absent, ray absent to 2.60.0, torch 2.12.0 to 2.13.0"
        in (found["sentences"])
    )


def test_a_run_of_another_recipe_is_not_compared_and_the_report_says_so(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        run(tmp_path, night(day))
    found = run(tmp_path, night(4), sequence_length=32, val_bits_per_byte=2.0)
    assert row_of(found, "val_bits_per_byte")["earlier"] == []
    assert found["notes"][0].startswith("tiny-llama2: 3 of 3 earlier runs measured something else")


def test_a_mean_over_fewer_seeds_is_not_compared_with_one_over_all(tmp_path: Path) -> None:
    run(tmp_path, night(1))
    plan = plan_of(tmp_path, night(2))
    document = document_of(plan)
    document["cells"][0] |= {"status": "FAILED", "metrics": {}}
    found = compare_with_history(plan, document) or {}
    assert not row_of(found, "val_bits_per_byte", "tiny-llama2")["earlier"]
    assert row_of(found, "val_bits_per_byte", "tiny-mistral")["earlier"]


def test_speed_and_memory_are_compared_only_on_the_same_hardware() -> None:
    measured = Measured("same", {"val_bits_per_byte": 0.9, "peak_memory_gib": 60.0})
    old = Record(night(1), "8 x A100", TORCH, {"m": measured})
    new = replace(old, occurrence=night(2), hardware="8 x H100")
    found = compare_records(new, [old])
    assert row_of(found, "val_bits_per_byte", "m")["earlier"]
    assert not row_of(found, "peak_memory_gib", "m")["earlier"]
    assert found["notes"] == ["speed and memory are compared only with runs on 8 x H100, not with 8 x A100"]


def test_only_the_latest_ten_earlier_runs_count_and_never_a_later_one(tmp_path: Path) -> None:
    for day in (*range(1, 14), 20):
        run(tmp_path, night(day))
    run(tmp_path, "nightly/2026-11-13T02:00:30Z")  # a person's, half a minute after the clock's
    found = run(tmp_path, night(15))
    assert len(found["earlier"]) == LATEST
    assert found["earlier"][-2:] == ["2026-11-13T02:00Z", "2026-11-13T02:00:30Z"]
    assert found["earlier"][0] == "2026-11-05T02:00Z"


def test_the_same_firing_resumed_replaces_its_record_and_does_not_see_itself(tmp_path: Path) -> None:
    run(tmp_path, night(1), val_bits_per_byte=5.0)
    assert run(tmp_path, night(1))["earlier"] == []
    row = row_of(run(tmp_path, night(2)), "val_bits_per_byte")
    assert [one["value"] for one in row["earlier"]] == [0.9]


def test_an_attempt_that_measured_nothing_leaves_no_record(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, night(1))
    document = {"cells": [], "environment": {"hardware": "n/a", "packages": {}}}
    found = compare_with_history(plan, document) or {}
    assert found["rows"] == found["moved"] == []
    assert "nothing was measured, so nothing is compared" in found["sentences"]
    assert run(tmp_path, night(2))["earlier"] == []


def test_a_value_is_the_mean_over_the_seeds_and_memory_the_largest(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, night(1))
    document = document_of(plan)
    document["cells"][0]["metrics"] = {"val_bits_per_byte": 1.0, "peak_memory_gib": 50.0}  # the first seed
    found = compare_with_history(plan, document) or {}
    assert row_of(found, "val_bits_per_byte")["value"] == pytest.approx(0.95)
    assert row_of(found, "peak_memory_gib")["value"] == 60.0
    assert row_of(found, "tokens_per_second_per_device")["value"] == 5000.0


def test_schedules_do_not_see_each_other(tmp_path: Path) -> None:
    run(tmp_path, night(1, "hourly"))
    assert run(tmp_path, night(2))["earlier"] == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', "null", '{"backbones": {"a": 1}}'])
def test_a_damaged_record_is_left_out_and_named(tmp_path: Path, content: str) -> None:
    run(tmp_path, night(1))
    (tmp_path / "runs" / "schedules" / "nightly" / "2026-11-02T0200Z.json").write_text(content, encoding="utf-8")
    found = run(tmp_path, night(3))
    assert found["earlier"] == ["2026-11-01T02:00Z"]
    assert (
        found["sentences"][-1]
        == "2026-11-02T0200Z.json in the schedule's folder is damaged and was left out; delete it"
    )


# --- the report ---


def with_history(runs: int = 5) -> dict[str, Any]:
    """A comparison's document with the history of `runs` earlier firings; the first backbone became slow."""
    document, noise = comparison_document(), random.Random(7)
    names = list(dict.fromkeys(cell["backbone_id"] for cell in document["cells"]))

    def record(day: int, slow: float) -> Record:
        values = {
            name: {
                "val_bits_per_byte": 0.82 + 0.01 * index + noise.gauss(0, 0.001),
                "tokens_per_second_per_device": (5200 - 300 * index + noise.gauss(0, 20)) * (slow if index == 0 else 1),
                "peak_memory_gib": 61 + 3 * index + noise.random() / 10,
            }
            for index, name in enumerate(names)
        }
        backbones = {name: Measured("same", found) for name, found in values.items()}
        return Record(night(day), "8 x H100", TORCH | {"torch": f"2.{day}.0"}, backbones)

    earlier = [record(day, 1.0) for day in range(1, runs + 1)]
    return document | {"history": compare_records(record(runs + 1, 0.8), earlier)}


def section(html: str) -> str:
    return html.split('<h2 id="history">')[1].split("</section>")[0]


def test_the_report_shows_the_history_with_a_plot_per_quantity() -> None:
    document = with_history()
    html = render_report(document)
    assert 'href="#history"' in html
    body = section(html)
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())
    for sentence in document["history"]["sentences"]:
        assert sentence.replace("\N{NO-BREAK SPACE}", " ") in text.replace("\N{NO-BREAK SPACE}", " ")
    assert body.count("<svg viewBox") == body.count("<figure>") == 3
    assert "below: worse" in text and "torch 2.5.0 to 2.6.0" in text
    assert body.count('class="flag"') == sum(row["left"] is not None for row in document["history"]["rows"]) >= 1


@pytest.mark.parametrize("runs", [0, 1])
def test_a_young_history_is_shown_without_bands(runs: int) -> None:
    body = section(render_report(with_history(runs)))
    assert "too few earlier runs for a band" in body
    assert body.count("<figure>") == (3 if runs else 0)


@pytest.mark.parametrize("history", [{}, {"history": None}])
def test_a_report_of_a_job_without_a_schedule_shows_nothing(history: dict[str, Any]) -> None:
    for document in (comparison_document(), finetune_document()):
        assert 'id="history"' not in render_report(document | history)


def test_names_in_the_history_cannot_act_on_the_page() -> None:
    document = with_history()
    document["history"]["sentences"].append("<script>alert(1)</script>")
    assert "<script>" not in render_report(document)
