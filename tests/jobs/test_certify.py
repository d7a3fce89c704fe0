"""`backbone certify` as a user runs it, on real Ray Train workers: the table, the files, the exit code, MLflow."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from backbones.registry import build
from jobs.certify import make_recipe
from jobs.report.certificate import render_certificate
from orchestrator.errors import InputError

PROOFS = ["special tokens", "prompt", "architecture", "weights", "rows", "parity", "packing", "overfit"]


def certificate_document(**changes: Any) -> dict[str, Any]:
    proof = {"status": "PASSED", "expected": "equal", "found": "equal", "remedy": "Look again.", "time_s": 0.2}
    return {
        "backbone_id": "some-backbone",
        "keys": {"torch": "2.13.0", "attention": "sdpa"},
        "proofs": [{"name": name, **proof} for name in PROOFS],
        "model": "the whole model",
        "workers": 2,
        "device": "CPU",
        "created": "2026-01-01T00:00:00+00:00",
        "launch": "one",
        **changes,
    }


def test_the_page_says_whether_the_backbone_is_certified_and_names_the_proof_that_failed() -> None:
    document = certificate_document()
    assert "Certified: all 8 proofs passed." in render_certificate(document)
    document["proofs"][3] |= {"status": "FAILED", "found": "missing <norm>"}
    page = render_certificate(document)
    assert "Not certified: the proof “weights” failed." in page
    assert "missing &lt;norm&gt;" in page
    assert "Look again." in page


@pytest.mark.parametrize(("attention", "adaptation"), [("fast", "full"), ("auto", "everything")])
def test_an_option_that_does_not_exist_is_refused_before_anything_starts(attention: str, adaptation: str) -> None:
    with pytest.raises(InputError, match=r"--(attention is 'fast'|adaptation is 'everything')"):
        make_recipe(attention, adaptation)


def runs(folder: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("backbones")
    return list(client.search_runs([experiment.experiment_id]))


@pytest.mark.e2e
def test_certify_shows_keeps_and_tracks_the_proofs_and_makes_them_once(tmp_path: Path, run_backbone: Any) -> None:
    done = run_backbone(tmp_path, "certify", "tiny-qwen")
    assert done.returncode == 0, done.stdout
    rows = [line for line in done.stdout.splitlines() if " passed " in line]
    assert [row[2:].split("  ")[0] for row in rows] == PROOFS
    (file,) = (tmp_path / "runs" / "certificates").glob("tiny-qwen-*.json")
    certificate = json.loads(file.read_text())
    assert [proof["status"] for proof in certificate["proofs"]] == ["PASSED"] * len(PROOFS)
    assert certificate["workers"] == 2
    page = file.with_suffix(".html")
    assert f"certificate: {page}" in done.stdout
    assert "Certified: all 8 proofs passed." in page.read_text()
    again = run_backbone(tmp_path, "certify", "tiny-qwen")
    assert again.returncode == 0, again.stdout
    assert f"nothing changed since it was certified, {certificate['created']}" in again.stdout
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["role"], run.data.tags["certified"]) == ("certificate", "true")
    assert run.data.params == certificate["keys"]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {path.name for path in artifacts.iterdir()} == {file.name, page.name}


@pytest.mark.e2e
def test_certify_exits_1_and_names_the_proof_that_failed(tmp_path: Path, run_backbone: Any) -> None:
    backbone = build("tiny-llama2", seed=5)
    backbone.llm.save_pretrained(tmp_path / "model")
    backbone.tokenizer.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    done = run_backbone(tmp_path, "certify", "hf:./model")
    assert done.returncode == 1
    assert "error: hf:./model is not certified: the proof 'weights' failed. Expected: no missing" in done.stdout
    assert "model.layers.1.mlp.up_proj.weight" in done.stdout
    (run,) = runs(tmp_path)
    assert (run.info.status, run.data.tags["proof.weights"]) == ("FAILED", "FAILED")
