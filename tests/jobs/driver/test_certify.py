"""`backbone certify` as a user runs it, on real Ray Train workers: the table, the files, the exit code, MLflow."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from product import clean_environment, wait_for
from report_documents import NAMES, comparison_document
from safetensors.torch import load_file, save_file

from backbones.registry import build, get_spec
from jobs.driver.certification import make_placement, make_recipe, plan_certification
from jobs.queue.gangs import Node
from jobs.queue.model import Settings
from jobs.queue.queue import Queue
from jobs.queue.store import Store
from jobs.report.certificate import render_certificate
from jobs.report.html import render_report
from orchestrator.errors import InputError
from orchestrator.tracking.spool import read_from

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


def break_model(folder: Path) -> None:
    """A model folder that lacks a weight."""
    backbone = build("tiny-llama2", seed=5)
    backbone.llm.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


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
def test_proofs_begin_anew_without_a_worker_and_end_on_a_signal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.cli", "certify", "tiny-qwen"]
    certify = subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    folder = tmp_path / "runs" / "certificates"

    def proofs(attempt: int) -> int:
        (spool,) = folder.glob(".tiny-qwen-*/spool")
        entries = [entry for entry, _ in read_from(spool, 0)]
        return sum(entry.attempt == attempt and "proof" in entry.fields for entry in entries)

    try:
        wait_for(lambda: list(folder.glob(".tiny-qwen-*/spool")), "a spool", alive=certify)
        wait_for(lambda: proofs(1), "a proof", alive=certify)
        (worker,) = folder.glob(".tiny-qwen-*/workers/rank-1.json")
        os.kill(json.loads(worker.read_text())["pid"], signal.SIGKILL)
        wait_for(lambda: proofs(2), "a proof of the second attempt", alive=certify)
        certify.send_signal(signal.SIGINT)
        said, _ = certify.communicate(timeout=60)
    finally:
        certify.kill()
    assert "beginning anew: WorkerDiedError on rank 1" in said
    assert "stopping after this proof" in said
    assert "the proofs were not finished: stopped between two proofs" in said
    assert certify.returncode == 128 + signal.SIGINT
    assert list(folder.glob(".tiny-qwen-*")) == [], "what is left is certificates"
    assert list(folder.glob("*.json")) == []


@pytest.mark.e2e
def test_certify_exits_1_and_names_the_proof_that_failed(tmp_path: Path, run_backbone: Any) -> None:
    break_model(tmp_path / "model")
    done = run_backbone(tmp_path, "certify", "hf:./model")
    assert done.returncode == 1
    assert "error: hf:./model is not certified: the proof 'weights' failed. Expected: no missing" in done.stdout
    assert "model.layers.1.mlp.up_proj.weight" in done.stdout
    (run,) = runs(tmp_path)
    assert (run.info.status, run.data.tags["proof.weights"]) == ("FAILED", "FAILED")


def test_the_report_shows_each_certificate_and_says_who_has_none() -> None:
    document = comparison_document()
    assert "Certificates" not in render_report(document), "a report of an earlier version says nothing"
    document["certificates"] = {NAMES[0]: certificate_document(), NAMES[1]: None, NAMES[2]: certificate_document()}
    document["certificates"][NAMES[2]]["proofs"][5] |= {"status": "FAILED"}
    page = render_report(document)
    assert "8 of 8 proofs passed" in page
    assert "parity failed" in page
    assert f"<strong>Not certified:</strong> {NAMES[1]}. Nothing was proved of this backbone before training" in page


def write_comparison(folder: Path, *backbones: str) -> None:
    for split in ("train", "validation"):
        rows = [{"prompt": f"{split} {n}", "completion": f"the answer to {split} {n}"} for n in range(12)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "format": "prompt_completion"}
    recipe = {"data": data, "sequence_length": 64, "global_batch_size": 4, "budget": {"kind": "steps", "amount": 2}}
    spec = {"name": "pair", "backbones": list(backbones), "seeds": [0, 1], "recipe": recipe}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))


@pytest.mark.e2e
def test_a_comparison_trains_only_what_is_certified_and_proves_it_once(tmp_path: Path, run_backbone: Any) -> None:
    break_model(tmp_path / "model")
    write_comparison(tmp_path, "tiny-qwen", "hf:./model")
    done = run_backbone(tmp_path, "compare", "spec.yaml")
    assert done.returncode == 1, done.stdout
    (facts,) = (tmp_path / "runs").glob("pair-*/report.json")
    report = json.loads(facts.read_text())
    states = {(cell["backbone_id"], cell["seed"]): (cell["status"], cell["attempts"]) for cell in report["cells"]}
    assert [states["tiny-qwen", seed] for seed in (0, 1)] == [("SUCCEEDED", 1)] * 2
    assert [states["hf:./model", seed] for seed in (0, 1)] == [("UNCERTIFIED", 1)] * 2
    failures = [cell["failure"] for cell in report["cells"] if cell["status"] == "UNCERTIFIED"]
    assert all("the proof 'weights' failed" in failure for failure in failures)
    spools = [path.read_text() for path in (tmp_path / "runs" / "cells").glob("*/spool/steps.jsonl")]
    made = [spool.count('"phase": "certifying", "proof"') for spool in spools]
    assert sorted(made) == [0, 0, len(PROOFS), len(PROOFS)], "once for each backbone, whatever became of it"
    assert "8 of 8 proofs passed" in facts.with_suffix(".html").read_text()


@pytest.mark.e2e
def test_a_comparison_without_certificates_says_so(tmp_path: Path, run_backbone: Any) -> None:
    write_comparison(tmp_path, "tiny-qwen")
    done = run_backbone(tmp_path, "compare", "spec.yaml", "--no-certificate")
    assert done.returncode == 0, done.stdout
    (page,) = (tmp_path / "runs").glob("pair-*/report.html")
    assert "<strong>Not certified:</strong> tiny-qwen." in page.read_text()
    assert not (tmp_path / "runs" / "certificates").exists()


def test_proofs_of_different_backbones_hold_leases_side_by_side(tmp_path: Path) -> None:
    queue = Queue(Store("sqlite://"), Settings())
    queue.see_nodes([Node("node", 0, 4)], [Node("node", 0, 4)])
    placement, recipe = make_placement(2, gpu=False), make_recipe("auto", "full")
    for backbone_id in ("tiny-llama2", "tiny-mistral"):
        plan = plan_certification(get_spec(backbone_id), recipe, placement, tmp_path)
        queue.attach(plan.job_request(), f"driver-{backbone_id}")
    queue.decide()
    assert len(queue.leases()) == 2
