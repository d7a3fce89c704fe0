"""Learning rates are tuned at equal spend, through a kill, and a further rate trains only what is new."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from product import Job, Launch, sqlite_uri, tracked_runs, wait_for

from orchestrator.training.measurement import load_item_scores

pytestmark = pytest.mark.e2e

LLAMA, QWEN = "tiny-llama2", "tiny-qwen"
SMALL: dict[str, Any] = {
    "backbones": [LLAMA, QWEN],
    "seeds": 2,
    "recipe__data__parity": "intersection",
    "recipe__budget": {"kind": "steps", "amount": 8},
    "recipe__evaluate": {"every": 0.5},
    "recipe__checkpoint": {"every": 0.5},
    "placement__workers": 1,
}


def tuned(new_job: Callable[..., Job], rates: list[float]) -> Job:
    """Three quarters of a run for trials of the last rung; rows of both splits come from eight sources."""
    job = new_job(**SMALL, tuning={"learning_rate": rates, "budget_fraction": 0.75})
    for split in ("train", "validation"):
        file = job.folder / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row | {"group": f"g{n % 16}"}) + "\n" for n, row in enumerate(rows)))
    return job


def report_of(launch: Launch) -> dict[str, Any]:
    assert launch.wait() == 0, launch.output
    (line,) = [line for line in launch.output.splitlines() if line.startswith("report: ")]
    document: dict[str, Any] = json.loads(Path(line.removeprefix("report: ")).with_suffix(".json").read_text())
    return document


def finished(job: Job) -> dict[str, int]:
    """By cell that has a result, when it was written."""
    files = [one.path / "result.json" for one in job.cells()]
    return {file.parent.name: file.stat().st_mtime_ns for file in files if file.exists()}


def test_every_backbone_gets_its_own_learning_rate_at_equal_spend(new_job: Callable[..., Job]) -> None:
    job = tuned(new_job, [1e-5, 1e-3, 1e-2])
    launch = job.start("compare", "--no-certificate")
    wait_for(lambda: len(finished(job)) >= 2 or None, "two trials", alive=launch.process)
    os.killpg(launch.process.pid, signal.SIGKILL)
    launch.wait()
    before = finished(job)
    assert before and all("-trial-lr" in name for name in before)

    report = report_of(job.start("compare", "--no-certificate"))
    tuning = report["tuning"]
    after = finished(job)
    assert {name: after[name] for name in before} == before, "what was finished is not run again"
    assert [rung["amount"] for rung in tuning["rungs"]] == [3, 6] and tuning["spend"] == pytest.approx(21 / 8)
    for name in (LLAMA, QWEN):
        one = tuning["backbones"][name]
        assert [trial["rung"] for trial in one["trials"]] == [1, 1, 1, 2, 2]
        scores = {trial["learning_rate"]: trial["score"] for trial in one["trials"] if trial["rung"] == 2}
        assert set(scores) == {1e-3, 1e-2} and one["best"] == min(scores, key=lambda rate: scores[rate])
        steps = [_metrics(trial)["steps"] for trial in one["trials"]]
        assert steps == [3, 3, 3, 6, 6]
    assert "Tuned: each at the best of 3 learning rates" in report["verdict"]["sentence"]
    assert all("choice_se" in pair for pair in report["verdict"]["pairs"])

    # What trials learn from, what they are scored on, and what is judged are three sets of rows.
    learned, scored = _selection(job, "trial-selection-0.npz")
    kept, judged_items = _selection(job, "selection-0.npz")
    assert set(learned) | set(scored) == set(kept) and not set(learned) & set(scored)
    groups = [json.loads(line)["group"] for line in (job.folder / "train.jsonl").read_text().splitlines()]
    assert not {groups[n] for n in learned} & {groups[n] for n in scored}
    assert tuning["examples"] == len(scored) and len(judged_items) == 24
    trial_folders = [Path(trial["folder"]) for one in tuning["backbones"].values() for trial in one["trials"]]
    assert {len(load_item_scores(folder).items) for folder in trial_folders} == {len(scored)}
    assert not any((folder / "checkpoints").exists() for folder in trial_folders)

    own = report["comparison"]["id"]
    runs = [one for one in tracked_runs(sqlite_uri(job)) if one.data.tags["comparison_id"] == own]
    roles = [one.data.tags["role"] for one in runs]
    assert (roles.count("trial"), roles.count("cell"), roles.count("comparison")) == (10, 4, 1)
    rates = {one.data.tags["cell_id"]: one.data.params["recipe.optimizer.learning_rate"] for one in runs}
    for cell in report["cells"]:
        assert float(rates[cell["cell_id"]]) == tuning["backbones"][cell["backbone_id"]]["best"]
    assert all(one.info.status == "FINISHED" for one in runs)
    page = (job.storage / own / "report.html").read_text()
    assert "Score against learning rate" in page and "Best score against spend" in page

    # A further rate: its trials are new, and whatever they change; nothing that ran is run again.
    before = finished(job)
    wider = report_of(tuned(new_job, [1e-5, 1e-3, 1e-2, 1e-1]).start("compare", "--no-certificate"))
    after = finished(job)
    assert {name: after[name] for name in before} == before
    new = set(after) - set(before)
    assert {name for name in new if "-trial-" in name} == {name for name in new if "-trial-lr0.1-" in name}
    changed = {
        name
        for name in (LLAMA, QWEN)
        if wider["tuning"]["backbones"][name]["best"] != tuning["backbones"][name]["best"]
    }
    assert {name.rpartition("-s")[0] for name in new if "-trial-" not in name} == changed
    assert wider["verdict"]["look"]["number"] == (2 if changed else 1)


def _metrics(trial: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((Path(trial["folder"]) / "measurement.json").read_text())
    return document["metrics"]  # type: ignore[no-any-return]


def _selection(job: Job, name: str) -> tuple[list[int], list[int]]:
    (file,) = job.storage.glob(f"e2e-*/data/{name}")
    with np.load(file) as arrays:
        return arrays["kept"].tolist(), arrays["scored"].tolist()
