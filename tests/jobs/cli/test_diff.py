"""`backbone diff`: what it reads, what it prints, and how it ends."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from report_documents import comparison_document
from typer.testing import CliRunner

from jobs.api import JobResult, load_report
from jobs.cli.app import app
from orchestrator.errors import OrchestratorError

STORED = Path(__file__).parents[1] / "results" / "stored"
DEMO = Path(__file__).parents[3] / "jobs" / "specs" / "demo.yaml"


def diff(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["diff", *map(str, words)])


def stored_job(storage: Path, name: str, **changes: Any) -> Path:
    folder = storage / name
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(comparison_document(**changes)), encoding="utf-8")
    return folder


def test_nothing_differs_and_something_does(tmp_path: Path) -> None:
    other = stored_job(tmp_path, "other-0123456789", seeds=4)
    one = stored_job(tmp_path, "one-0123456789")
    same = diff(one, one / "report.json")
    assert same.exit_code == 0, same.output
    assert same.output.startswith("Nothing differs: ")
    found = diff(one, other)
    assert found.exit_code == 1, found.output
    assert "The scores are comparable: same data, same recipe and budget" in found.output
    assert "9 in both, 0 only in A, 3 only in B" in found.output
    assert "Both name llama2-7b-pure the winner." in found.output


@pytest.mark.parametrize("name", ["folder", "id", "report.json", "report.html", "renamed.json"])
def test_a_report_is_found_however_it_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stored_job(tmp_path, "one-0123456789")
    (folder / "report.html").touch()
    shutil.copy(folder / "report.json", tmp_path / "renamed.json")
    monkeypatch.setenv("BACKBONE_STORAGE", str(tmp_path))
    given = {"folder": folder, "id": folder.name, "renamed.json": tmp_path / name}.get(name, folder / name)
    assert diff(given, folder).exit_code == 0


def test_json_is_the_published_document(tmp_path: Path) -> None:
    one, other = stored_job(tmp_path, "one-0"), stored_job(tmp_path, "other-0", seeds=2)
    found = diff(one, other, "--json")
    document = json.loads(found.output)
    assert found.exit_code == 1
    assert (document["same"], document["comparable"]) == (False, "yes")
    assert len(document["changes"]["cells"]["only_a"]) == 3


def test_two_specs_are_compared_before_anything_runs(tmp_path: Path) -> None:
    longer = tmp_path / "longer.yaml"
    longer.write_text(DEMO.read_text("utf-8").replace("amount: 2e5", "amount: 4e5"), encoding="utf-8")
    assert diff(DEMO, DEMO).exit_code == 0
    found = diff(DEMO, longer)
    assert found.exit_code == 1
    assert "would not be comparable: B has twice the budget (recipe.budget.amount 200000 -> 400000)" in found.output


def test_a_spec_stands_beside_a_report() -> None:
    found = diff(DEMO, STORED / "report.json")
    assert found.exit_code == 1, found.output
    assert "Only B was judged." in found.output


def test_a_spec_whose_data_is_elsewhere_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    far, farther = tmp_path / "far.yaml", tmp_path / "farther.yaml"
    text = DEMO.read_text("utf-8").replace('train: "builtin:stdlib"', "train: not-here.jsonl")
    far.write_text(text, encoding="utf-8")
    farther.write_text(text.replace("seeds: 2", "seeds: 3"), encoding="utf-8")
    found = diff(far, farther)
    assert found.exit_code == 1
    assert f"is not known: {far} could not be planned here" in found.output
    assert "not-here.jsonl" in found.output and "B adds seed 2" in found.output


def test_what_differs_of_a_backbone_and_how_a_cell_ended_are_shown(tmp_path: Path) -> None:
    one, other = stored_job(tmp_path, "one-0"), stored_job(tmp_path, "other-0")
    document = comparison_document()
    document["cells"][0]["status"] = "DIVERGED"
    for cell in document["cells"]:
        cell["contract"]["attention"]["kernel"] = "eager"
    (other / "report.json").write_text(json.dumps(document), encoding="utf-8")
    shown = diff(one, other).output
    assert re.search(r"llama2-7b-pure +attention.kernel +\S+ +eager +other last digits\n", shown), shown
    assert f"  {document['cells'][0]['cell_id']}: SUCCEEDED in A, DIVERGED in B\n" in shown


def test_markup_in_a_report_is_text(tmp_path: Path) -> None:
    one, other = stored_job(tmp_path, "one-0", names=["[/red]", "b"]), stored_job(tmp_path, "other-0", names=["[/red]"])
    assert "[/red]" in diff(one, other).output


@pytest.mark.parametrize(
    ("make", "want"),
    [
        (lambda folder: None, "no such folder or file; give the folder <name>-<hash> that a job wrote"),
        (lambda folder: folder.mkdir(), "holds neither report.json nor benchmark.json"),
        (lambda folder: folder.with_suffix(".json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: folder.with_suffix(".json").write_text("[]"), "holds no report; give a comparison"),
        (
            lambda folder: shutil.copy(STORED / "benchmark.json", folder.with_suffix(".json")),
            "is a benchmark, which has no scores to compare",
        ),
        (
            lambda folder: shutil.copytree(STORED, folder, ignore=shutil.ignore_patterns("report.json")),
            "is a benchmark, which has no scores to compare",
        ),
        (
            lambda folder: folder.with_suffix(".json").write_text('{"comparison": {}, "format": 1}'),
            "is damaged: comparison.name: Field required",
        ),
        (lambda folder: folder.with_suffix(".json").write_text('{"comparison": {}, "format": 9}'), "has format 9"),
        (lambda folder: folder.with_suffix(".yaml").write_text("name: a\nseed: 3\n"), "'recipe' is missing; add it"),
        (lambda folder: folder.with_suffix(".yaml").write_text("a: [\n"), "not valid YAML"),
    ],
)
def test_what_cannot_be_read_is_named_and_ends_with_2(make: Any, want: str, tmp_path: Path) -> None:
    place = tmp_path / "thing"
    make(place)
    (given,) = [*tmp_path.glob("thing*")] or [place]
    found = diff(STORED / "report.json", given)
    assert isinstance(found.exception, OrchestratorError)
    assert found.exception.exit_code == 2
    assert want in str(found.exception) and str(given) in str(found.exception)


def test_a_real_process_ends_with_2_and_one_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.cli", "diff", str(STORED / "report.json"), "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere: no such folder or file; give the folder <name>-<hash> that a job wrote\n"


def test_it_is_there_for_python_too(tmp_path: Path) -> None:
    one, other = load_report(stored_job(tmp_path, "one-0")), load_report(stored_job(tmp_path, "other-0", seeds=2))
    assert isinstance(one, JobResult) and isinstance(other, JobResult)
    assert one.diff(one).same
    assert one.diff(other).changes.cells.only_a
