"""The documents of finished jobs: what earlier versions wrote is read as it stands, and their schemas are published.

Both files in `stored/` were written by version 0.1.0: `report.json` for the demo, trimmed to three cells and short
curves, and `benchmark.json` for two tiny backbones.
"""

import json
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from report_documents import comparison_document, finetune_document
from typer.testing import CliRunner

from jobs.cli.app import app
from jobs.cli.schemas import DOCUMENTS, document_schema
from jobs.report.benchmark import render_benchmark
from jobs.report.html import render_report
from jobs.results.benchmark_documents import load_benchmark_report
from jobs.results.documents import find_verdict, load_report
from orchestrator.errors import FormatError, InputError
from orchestrator.layout import CellFolder, JobFolder
from orchestrator.results import CellResult, CellStatus, Measurement, find_cell_result, save_cell_result, write_json
from orchestrator.training.measurement import find_measurement, write_measurement

STORED = Path(__file__).parent / "stored" / "report.json"
STORED_BENCHMARK = Path(__file__).parent / "stored" / "benchmark.json"
MEASURED = Measurement({"steps": 3.0}, [], {"workers": 1}, {"device": "CPU"}, "items.parquet")


def test_a_report_of_an_earlier_format_is_read_key_for_key_but_for_the_name_of_scores(tmp_path: Path) -> None:
    expected = json.loads(STORED.read_text("utf-8")) | {"format": 2}
    for row in expected["ranking"]:
        row["score"] = row["val_bits_per_byte"]
    report = load_report(STORED)
    assert report == expected
    write_json(tmp_path / "report.json", report)
    assert load_report(tmp_path / "report.json") == report
    verdict = find_verdict(report)
    assert verdict is not None and verdict["winner"] == "tiny-qwen"
    assert "tiny-qwen wins" in render_report(report)


@pytest.mark.parametrize("document", [comparison_document(), finetune_document()], ids=["comparison", "finetune"])
def test_every_kind_of_report_keeps_its_keys_and_values(document: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", document)
    assert load_report(tmp_path / "report.json") == document
    Draft202012Validator(document_schema("report")).validate(document)


def test_the_stored_report_follows_the_published_schema_once_it_is_read() -> None:
    Draft202012Validator(document_schema("report")).validate(load_report(STORED))


def test_a_benchmark_of_an_earlier_version_is_read_key_for_key_and_follows_the_schema(tmp_path: Path) -> None:
    benchmark = load_benchmark_report(STORED_BENCHMARK)
    write_json(tmp_path / "benchmark.json", benchmark)
    assert (tmp_path / "benchmark.json").read_text("utf-8") == STORED_BENCHMARK.read_text("utf-8")
    Draft202012Validator(document_schema("benchmark")).validate(benchmark)
    assert benchmark["verdict"]["sentence"] in unescape(render_benchmark(benchmark))


def test_a_benchmark_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    write_json(path, json.loads(STORED_BENCHMARK.read_text("utf-8")) | {"format": 2})
    with pytest.raises(FormatError, match="has format 2"):
        load_benchmark_report(path)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_published_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(document_schema(name))


def test_a_report_of_a_later_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, json.loads(STORED.read_text(encoding="utf-8")) | {"format": 7})
    before = path.read_bytes()
    with pytest.raises(FormatError, match="has format 7, and this version reads format 2") as refused:
        load_report(path)
    assert str(path) in str(refused.value) and "Upgrade" in str(refused.value) and refused.value.exit_code == 2
    assert path.read_bytes() == before


def test_a_damaged_report_is_refused_and_named(tmp_path: Path) -> None:
    report = json.loads(STORED.read_text(encoding="utf-8"))
    del report["cells"][1]["status"]
    write_json(tmp_path / "report.json", report)
    with pytest.raises(InputError, match=r"report.json is damaged: cells\.1\.status"):
        load_report(tmp_path / "report.json")


def test_a_cell_of_a_later_format_is_refused_and_not_taken_for_unfinished(tmp_path: Path) -> None:
    result = CellResult("a-s0-1", "a", 0, CellStatus.SUCCEEDED, measurement=MEASURED)
    save_cell_result(tmp_path, result)
    write_measurement(tmp_path, MEASURED)
    assert find_cell_result(tmp_path) == result and find_measurement(tmp_path) == MEASURED
    for path, find in (
        (CellFolder(tmp_path).result, find_cell_result),
        (CellFolder(tmp_path).measurement, find_measurement),
    ):
        stored = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, stored | {"format": 1})
        assert find(tmp_path) in (result, MEASURED)
        write_json(path, stored | {"format": 2})
        with pytest.raises(FormatError, match="has format 2"):
            find(tmp_path)


def test_a_job_without_a_report_or_with_open_runs_says_what_goes_on_with_it(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "pair-0123456789")
    folder.path.mkdir()
    folder.spec.write_text("name: pair")
    command = ["report", "pair", "--storage", str(tmp_path)]
    begun = CliRunner().invoke(app, command)
    assert isinstance(begun.exception, InputError) and "run the command that started it again" in str(begun.exception)
    document = comparison_document()
    document["cells"][0] |= {"status": "CANCELLED", "metrics": {}}
    write_json(folder.report, document)
    shown = CliRunner().invoke(app, command)
    assert "1 of 9 runs are not finished; to go on: " + document["comparison"]["command"] in shown.output, shown.output
