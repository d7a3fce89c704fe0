"""Backbones that see learn on two ranks from rows with images, resume bit for bit, and are exported.

The answer of a row is the colour of its image, so that nothing but the pixels tells it.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gang import run_ranks
from PIL import Image
from small_jobs import curve, entries, make_job
from transformers import AutoModelForImageTextToText

from backbones.inputs import Example
from backbones.labelled import add_methods
from backbones.registry import build
from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob, ExportRequest
from orchestrator.data.prepare import load_tokenized
from orchestrator.errors import SpecError
from orchestrator.training.loss import token_nats
from orchestrator.training.measurement import find_measurement, load_item_scores

CPU = torch.device("cpu")
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (20, 40, 210)}
STEPS = 40


def write(file: Path, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    with open(file, "w", encoding="utf-8") as stream:
        for number in range(count):
            name = list(COLOURS)[number % 3]
            noise = draw.integers(-20, 20, (24, 40, 3))
            picture = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            path = f"{file.stem}-{number}.png"
            Image.fromarray(picture).save(file.parent / path)
            question = {"role": "user", "content": "What colour is it?", "images": [path]}
            row = {"messages": [question, {"role": "assistant", "content": name}]}
            stream.write(json.dumps(row) + "\n")


def seeing_job(folder: Path, backbone: str, **recipe: Any) -> CellJob:
    folder.mkdir(exist_ok=True)
    write(folder / "seen.jsonl", 48, seed=1)
    write(folder / "unseen.jsonl", 9, seed=2)
    data = {"train": str(folder / "seen.jsonl"), "validation": str(folder / "unseen.jsonl")}
    job = make_job(
        folder,
        backbone,
        workers=2,
        data=data,
        sequence_length=96,
        budget={"kind": "steps", "amount": STEPS},
        optimizer={"learning_rate": 2e-2},
        checkpoint={"every": 0.5, "keep": 2},
        **recipe,
    )
    return replace(job, export=ExportRequest(folder / "export", {"name": "colours"}))


def nats_alone(job: CellJob) -> list[float]:
    """Of each item's answer, by the exported folder in plain transformers, fed by the backbone's `collate`."""
    assert job.export is not None and job.prepared is not None
    backbone = build(job.cell.backbone, max_length=96, compute_dtype=torch.float32)
    backbone.llm = AutoModelForImageTextToText.from_pretrained(
        job.export.folder, dtype=torch.float32, attn_implementation=backbone.attention.kernel
    ).eval()
    add_methods(backbone.llm)
    data = load_tokenized(job.prepared.validation_file)
    nats = []
    for index in range(len(data)):
        ids, _, is_scored = data.example(index)
        inputs = backbone.collate([[Example(ids, is_scored, data.images(index))]])
        with torch.no_grad():
            nats.append(float(token_nats(backbone, inputs, CPU).sum()))
    return nats


@pytest.mark.parametrize(("backbone", "packing"), [("tiny-smolvlm", True), ("tiny-paligemma", False)])
def test_colours_are_learned_measured_exported_and_packed_ones_resumed(
    tmp_path: Path, backbone: str, packing: bool
) -> None:
    job = seeing_job(tmp_path / "job", backbone, packing=packing)
    run_ranks(2, run_cell, job, CPU)

    measurement = find_measurement(job.folder)
    assert measurement is not None
    metrics = measurement.metrics
    assert metrics["val_bits_per_byte"] < 0.2 < metrics["val_bits_per_byte_before"]  # a guess among three: 0.4
    assert load_item_scores(job.folder).nats.tolist() == pytest.approx(nats_alone(job), rel=1e-4, abs=1e-5)
    contract = json.loads((job.folder / "contract.json").read_text())
    assert contract["vision_layers"].startswith("3 ")

    if packing:
        assert_resumes(job, tmp_path / "again")


def assert_resumes(job: CellJob, folder: Path) -> None:
    again = replace(job, folder=folder, attempt=2, export=None)
    half, _ = sorted(job.checkpoint_root.iterdir())
    shutil.copytree(half, again.checkpoint_root / half.name)
    run_ranks(2, run_cell, again, CPU)
    assert [entry.fields["step"] for entry in entries(again, "phase") if entry.fields["phase"] == "resumed"] == [
        STEPS // 2
    ]
    assert curve(again) == curve(job)[STEPS // 2 :]
    assert load_item_scores(again.folder).nats.tolist() == load_item_scores(job.folder).nats.tolist()


def test_a_backbone_whose_rows_hold_one_example_is_refused_with_packing_on(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"but images and prompts that share a row of tiny-paligemma would"):
        seeing_job(tmp_path / "job", "tiny-paligemma", packing=True)
