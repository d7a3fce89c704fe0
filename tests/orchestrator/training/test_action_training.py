"""A backbone learns actions on two ranks, is measured in their terms, and is exported with their statistics."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gang import run_ranks
from small_jobs import entries, make_job
from transformers import AutoModelForCausalLM

from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob, ExportRequest
from orchestrator.data.prepare import load_tokenized
from orchestrator.training.export import ACTION_STATISTICS
from orchestrator.training.measurement import find_measurement, load_item_scores

CPU = torch.device("cpu")
TASKS = {"lift": [0.9, -0.5, 0.1], "push": [-0.9, 0.5, 0.1], "turn": [0.0, 1.0, 0.1], "drop": [0.5, -1.0, 0.1]}
BITS, ACCURACY, DISTANCE = "val_bits_per_action_dimension", "val_action_accuracy", "val_action_l1"


def write(file: Path, count: int, seed: int) -> np.ndarray:
    """Each task has one action, but for what no bin can tell apart; the last dimension never changes."""
    draw, actions = np.random.default_rng(seed), []
    with open(file, "w", encoding="utf-8") as stream:
        for number in range(count):
            task = list(TASKS)[number % len(TASKS)]
            actions.append([*(np.array(TASKS[task][:2]) + draw.uniform(0, 1e-4, 2)).tolist(), 0.1])
            row = {"episode": number // 4, "instruction": f"{task} the block", "action": actions[-1]}
            stream.write(json.dumps(row) + "\n")
    return np.array(actions)


def robot_job(folder: Path, chunk: int, **recipe: Any) -> CellJob:
    folder.mkdir(exist_ok=True)
    write(folder / "robot.jsonl", 64, seed=1)
    write(folder / "held_out.jsonl", 14, seed=2)
    data: dict[str, Any] = {"train": str(folder / "robot.jsonl"), "validation": str(folder / "held_out.jsonl")}
    data |= {"format": "actions"} | ({"actions": {"chunk": chunk}} if chunk > 1 else {})
    job = make_job(folder, "tiny-qwen", workers=2, sequence_length=64, data=data, **recipe)
    return replace(job, export=ExportRequest(folder / "export", {"name": "robot"}))


def metrics_of(job: CellJob) -> dict[str, Any]:
    measurement = find_measurement(job.folder)
    assert measurement is not None
    return measurement.metrics


def facts_of(job: CellJob) -> dict[str, Any]:
    measurement = find_measurement(job.folder)
    assert measurement is not None
    return measurement.data


def measured_alone(job: CellJob) -> list[dict[str, float]]:
    """The same measures from the exported model in plain transformers, item by item: of all, then by steps ahead."""
    assert job.prepared is not None
    assert job.prepared.actions is not None
    assert job.export is not None
    end = job.prepared.actions.end
    folder = job.export.folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    data = load_tokenized(job.prepared.validation_file)
    found: dict[int, list[tuple[float, float, float]]] = {}
    for index in range(len(data)):
        ids, _, is_scored = data.example(index)
        with torch.no_grad():
            logits = model(torch.tensor([ids.tolist()])).logits[0].double().numpy()
        for number, place in enumerate(np.flatnonzero(is_scored)):
            over_bins = logits[place - 1, end - 256 : end]
            largest = over_bins.max()
            nats = math.log(np.exp(over_bins - largest).sum()) + largest - logits[place - 1, ids[place]]
            chosen = int(logits[place - 1].argmax())
            bins = [min(max(end - one - 1, 0), 254) for one in (chosen, int(ids[place]))]
            measures = (nats / math.log(2), float(chosen == ids[place]), abs(centres[bins[0]] - centres[bins[1]]))
            found.setdefault(number // 3, []).append(measures)
    every = [one for some in found.values() for one in some]
    means = [np.mean(some, axis=0).tolist() for some in (every, *found.values())]
    return [dict(zip((BITS, ACCURACY, DISTANCE), mean, strict=True)) for mean in means]


@pytest.mark.parametrize("chunk", [1, 2])
def test_actions_are_learned_measured_and_exported(tmp_path: Path, chunk: int) -> None:
    job = robot_job(tmp_path / "job", chunk, budget={"kind": "steps", "amount": 30}, optimizer={"learning_rate": 6e-3})
    run_ranks(2, run_cell, job, CPU)
    metrics, facts = metrics_of(job), facts_of(job)
    expected, *ahead = measured_alone(job)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len(ahead) == chunk
    for place, one in enumerate(facts.get("actions_ahead", [])):
        assert one == pytest.approx(ahead[place], rel=1e-4, abs=1e-6)
    assert len(facts.get("actions_ahead", [{}])) == chunk
    assert metrics[ACCURACY] > 0.8
    assert metrics[DISTANCE] < 0.3  # of a guess: about 0.7
    # Those of the whole vocabulary, over the same positions: never fewer than over the bins alone.
    assert metrics[BITS] <= metrics["val_bits_per_byte"] < metrics["val_bits_per_byte_before"]
    lengths = [min(chunk, left) for episode in (4, 4, 4, 2) for left in range(episode, 0, -1)]
    assert load_item_scores(job.folder).bytes.tolist() == [3 * length for length in lengths]
    assert entries(job, "step")[0].fields["bytes_seen"] % 3 == 0

    actions = write(tmp_path / "again.jsonl", 64, seed=1)
    stored = json.loads((tmp_path / "job" / "export" / ACTION_STATISTICS).read_text())["robot"]
    np.testing.assert_array_equal(stored["action"]["q01"], np.quantile(actions, 0.01, axis=0))
    np.testing.assert_array_equal(stored["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    assert (stored["num_transitions"], stored["num_trajectories"]) == (64, 16)
    assert stored.get("action_chunk", 1) == chunk


def test_an_export_of_text_has_no_statistics_of_an_earlier_one(tmp_path: Path) -> None:
    job = make_job(tmp_path, "tiny-qwen", budget={"kind": "steps", "amount": 1})
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / ACTION_STATISTICS).write_text("{}")
    run_ranks(1, run_cell, replace(job, export=ExportRequest(tmp_path / "export", {"name": "text"})), CPU)
    assert (tmp_path / "export" / "config.json").is_file()
    assert not (tmp_path / "export" / ACTION_STATISTICS).exists()
    assert metrics_of(job).keys().isdisjoint({BITS, ACCURACY, DISTANCE})
