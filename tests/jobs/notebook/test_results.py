"""What a notebook gets of a finished job, from documents as the report's tests and earlier versions wrote them."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_documents import comparison_document, finetune_document

from jobs.api import BenchmarkResult, JobResult, load_report
from orchestrator.errors import InputError
from orchestrator.layout import JobFolder, Storage
from orchestrator.training.measurement import ItemScores, save_item_scores

STORED = Path(__file__).parents[1] / "results" / "stored"


def stored_job(storage: Path, document: dict) -> JobResult:
    folder = storage / "which-backbone-0123456789"
    folder.mkdir(parents=True, exist_ok=True)
    JobFolder(folder).report.write_text(json.dumps(document), encoding="utf-8")
    result = load_report(folder)
    assert isinstance(result, JobResult)
    return result


def store_scores(storage: Path, document: dict, items: int = 5) -> None:
    """In the storage that the folder lies in, and not where the document says: as in a storage that was copied."""
    for number, cell in enumerate(document["cells"]):
        folder = Storage(storage).cell(cell["cell_id"])
        folder.path.mkdir(parents=True)
        counts = np.arange(1, items + 1)
        scores = ItemScores(items=counts, nats=counts * (number + 1.0), tokens=counts, bytes=10 * counts)
        if number % 2:
            save_item_scores(folder.path, scores)
        else:  # as an earlier version did
            np.savez(folder.earlier_items, **vars(scores))


def test_a_report_is_loaded_by_folder_by_file_and_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = comparison_document()
    result = stored_job(tmp_path, document)
    monkeypatch.setenv("BACKBONE_STORAGE", str(tmp_path))

    for name in (result.folder, JobFolder(result.folder).report, str(result.folder), result.folder.name):
        assert load_report(name).document == document
    assert result.verdict == document["verdict"]
    assert result.winner == document["verdict"]["winner"]
    assert document["verdict"]["sentence"] in repr(result)


def test_cells_curves_and_pairs_are_frames_with_a_row_for_each(tmp_path: Path) -> None:
    document = comparison_document()
    result = stored_job(tmp_path, document)

    cells = result.cells.set_index("cell_id")
    for cell in document["cells"]:
        row = cells.loc[cell["cell_id"]]
        assert (row["backbone_id"], row["seed"], row["status"]) == (cell["backbone_id"], cell["seed"], cell["status"])
        assert row["val_bits_per_byte"] == cell["metrics"]["val_bits_per_byte"]

    curves = result.curves
    first = document["cells"][0]
    mine = curves[curves["cell_id"] == first["cell_id"]]
    scored = mine.dropna(subset="val_bits_per_byte")
    assert list(scored["step"]) == [point["step"] for point in first["evaluations"]]
    assert list(scored["val_bits_per_byte"]) == [point["val_bits_per_byte"] for point in first["evaluations"]]
    assert mine.dropna(subset="train_loss")[["step", "train_loss"]].values.tolist() == first["loss_curve"]
    assert mine["step"].is_monotonic_increasing

    pairs = document["verdict"]["pairs"]
    assert result.pairs[["low", "high"]].values.tolist() == [pair["interval"] for pair in pairs]
    assert list(result.pairs["p_value_holm"]) == [pair["p_value_holm"] for pair in pairs]
    assert list(result.ranking["backbone_id"]) == [row["backbone_id"] for row in document["ranking"]]


def test_items_are_found_in_a_storage_that_was_moved(tmp_path: Path) -> None:
    document = comparison_document()
    result = stored_job(tmp_path, document)
    store_scores(tmp_path, document)

    items = result.items
    assert len(items) == 5 * len(document["cells"])
    last = items[items["cell_id"] == document["cells"][-1]["cell_id"]]
    assert list(last["item"]) == [1, 2, 3, 4, 5]
    corpus = last["nats"].sum() / np.log(2) / last["bytes"].sum()
    assert np.average(last["bits_per_byte"], weights=last["bytes"]) == pytest.approx(corpus)


def test_scores_that_are_not_there_are_an_error_that_names_both_places(tmp_path: Path) -> None:
    result = stored_job(tmp_path, comparison_document())
    with pytest.raises(InputError, match=r"neither in .* nor in .*cells.*copy its cells/"):
        _ = result.items


def test_a_finetune_has_no_verdict_and_empty_pairs(tmp_path: Path) -> None:
    result = stored_job(tmp_path, finetune_document())
    assert result.verdict is None
    assert result.winner is None
    assert list(result.pairs.columns)[:2] == ["a", "b"]
    assert result.pairs.empty
    assert result.ranking.empty
    assert len(result.cells) == 1


def test_documents_of_earlier_versions_are_loaded(tmp_path: Path) -> None:
    for name in ("report", "benchmark"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(STORED / f"{name}.json", folder)
    report, benchmark = load_report(tmp_path / "report"), load_report(tmp_path / "benchmark")
    assert isinstance(report, JobResult)
    assert isinstance(benchmark, BenchmarkResult)
    assert len(report.cells) == len(report.document["cells"])
    assert set(benchmark.cells["backbone_id"]) == {cell["backbone_id"] for cell in benchmark.document["cells"]}
    assert benchmark.sentence in repr(benchmark)
    assert "<iframe" in benchmark._repr_html_()


def test_the_page_in_a_notebook_is_a_document_of_its_own_that_runs_nothing(tmp_path: Path) -> None:
    document = comparison_document(['"><script>alert(1)</script>', "tiny-b"])
    shown = stored_job(tmp_path, document)._repr_html_()

    (tag,) = re.findall(r"<[^>]*>", shown.removesuffix("</iframe>"))  # one tag: nothing of the page is outside of it
    assert 'sandbox=""' in tag
    page = html.unescape(re.search(r'srcdoc="([^"]*)"', tag)[1])
    assert page.startswith("<!doctype html>")
    assert document["verdict"]["sentence"].split("</script>")[1] in html.unescape(page)
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)


@pytest.mark.parametrize(
    ("name", "remedy"), [("nowhere", "give the folder <name>-<hash>"), ("empty", "call what started the job again")]
)
def test_what_is_no_report_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=remedy):
        load_report(name)
