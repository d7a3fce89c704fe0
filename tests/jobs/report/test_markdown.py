"""The report for a pull request: what a person decides from, and no text of a user that becomes markup."""

from pathlib import Path

from report_documents import NAMES, comparison_document, failed, finetune_document
from typer.testing import CliRunner

from jobs.cli.app import app
from jobs.report.html import md, render_markdown
from orchestrator.results import write_json


def test_a_comparison_has_its_verdict_its_ranking_and_its_limits() -> None:
    document = comparison_document()
    text = render_markdown(document)
    assert md(document["verdict"]["sentence"]) in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(document["ranking"]) and len({row.count(" | ") for row in rows}) == 1
    for row, ranked in zip(rows[1:], document["ranking"], strict=True):
        assert md(ranked["backbone_id"]) in row and f"{ranked['score']:.4f}" in row
    assert "*Data*" in text and document["comparison"]["id"] in text


def test_runs_that_failed_are_named() -> None:
    document = comparison_document()
    document["cells"][0] = failed(document["cells"][0], "FAILED", "the node went away")
    assert f"1 of {len(document['cells'])} runs did not succeed: {document['cells'][0]['cell_id']} (FAILED)" in (
        render_markdown(document)
    )


def test_a_finetune_shows_before_and_after() -> None:
    assert "held-out bits per byte" in render_markdown(finetune_document())


def test_no_text_of_a_user_becomes_markup() -> None:
    document = comparison_document()
    document["verdict"]["notes"] = ["<img src=x>\n# head | *bold* [link](http://x) `code`"]
    text = render_markdown(document)
    assert "<img" not in text and "&lt;img src=x> \\# head \\| \\*bold\\* \\[link\\](http://x) \\`code\\`" in text


def test_the_command_prints_it_and_nothing_else(tmp_path: Path) -> None:
    document = comparison_document()
    folder = tmp_path / document["comparison"]["id"]
    folder.mkdir()
    write_json(folder / "report.json", document)
    found = CliRunner().invoke(app, ["report", folder.name, "--storage", str(tmp_path), "--markdown"])
    assert found.exit_code == 0 and found.stdout == render_markdown(document) + "\n"
    assert [path.name for path in folder.iterdir()] == ["report.json"]
    assert NAMES[0] in found.stdout
