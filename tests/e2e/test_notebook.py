"""The notebook of the documentation, run from its first cell to its last in a kernel of its own."""

from pathlib import Path

import pytest
from product import ROOT

pytestmark = pytest.mark.e2e
NOTEBOOK = ROOT / "docs" / "tutorials" / "compare-in-a-notebook.ipynb"
LIMIT_S = 300


def test_the_notebook_goes_from_jsonl_to_data_frames_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra dev brings it")
    nbclient = pytest.importorskip("nbclient", reason="the extra dev brings it")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "BACKBONE_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(NOTEBOOK, as_version=4)

    nbclient.NotebookClient(book, timeout=LIMIT_S, resources={"metadata": {"path": str(tmp_path)}}).execute()

    shown = [
        next((output["data"] for output in cell["outputs"] if "data" in output), {})
        for cell in book["cells"]
        if cell["cell_type"] == "code"
    ]
    assert all(not cell.get("outputs") for cell in nbformat.read(NOTEBOOK, as_version=4)["cells"]), "strip its outputs"
    assert "<table" in shown[1]["text/html"]  # the plan
    assert "tiny-" in shown[3]["text/plain"]  # the verdict's sentence
    assert shown[4]["text/plain"].count("SUCCEEDED") == 4
    assert "<iframe" in shown[-1]["text/html"]
    assert "held-out" in shown[-1]["text/html"]
    assert list(tmp_path.glob("runs/notebook-*/report.html"))
