"""Predicted memory, against every allocation that torch makes during a real step; benchmarks/memory_plan.py has more.

The model is small and its batch large, so that activations, logits and whole units count as they do in large ones.
"""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gang import run_ranks
from small_jobs import WORDS, make_job

from backbones.registry import get_spec, register
from backbones.spec import Architecture
from benchmarks.memory_plan import peak_of_a_step
from orchestrator.cell_job import CellJob
from orchestrator.planning.sizes.memory import predict_memory

SIZES = Architecture(128, 352, 4, 4, 2, 32, 1088, tied_embeddings=True)
SPEC = replace(get_spec("tiny-llama2"), backbone_id="memory-probe", architecture=SIZES, parameters=877_696)


@dataclass(frozen=True)
class Case:
    """One way to train, and the moment of its peak."""

    moment: str
    recipe: dict[str, Any]
    replicas: int = 1


CASES = {
    1: (
        Case("last layer", {"activation_checkpointing": True, "precision": "bf16", "global_batch_size": 2}),
        Case("loss", {"precision": "bf16", "global_batch_size": 4}),
        Case("loss", {"adaptation": {"kind": "lora"}, "global_batch_size": 2}),
    ),
    2: (
        Case("loss", {"precision": "bf16", "global_batch_size": 4}),
        Case("loss", {"adaptation": {"kind": "last_layer"}, "global_batch_size": 8}, replicas=2),
    ),
}


def peaks(jobs: list[CellJob]) -> list[int]:
    return [peak_of_a_step(job, torch.device("cpu")) for job in jobs]


@pytest.fixture(scope="module", autouse=True)
def probe() -> None:
    register(SPEC)


def text_data(folder: Path) -> dict[str, str]:
    """Text of which every token is labelled, as the plan has to expect."""
    draw = random.Random(0)
    for split in ("train", "validation"):
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(5, 40))) for _ in range(150)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")} | {"format": "text"}


@pytest.mark.parametrize("ranks", CASES)
def test_the_predicted_peak_is_within_a_tenth_of_every_allocation_of_a_step(ranks: int, tmp_path: Path) -> None:
    data = text_data(tmp_path)
    jobs = [
        make_job(tmp_path / str(n), SPEC.backbone_id, workers=ranks, replicas=case.replicas, data=data, **case.recipe)
        for n, case in enumerate(CASES[ranks])
    ]
    measured = run_ranks(ranks, peaks, jobs)
    for number, (case, job) in enumerate(zip(CASES[ranks], jobs, strict=True)):
        cell = job.cell
        predicted = predict_memory(cell.backbone, cell.recipe, cell.placement, cell.micro_batch_size)
        fullest = max(of_a_rank[number] for of_a_rank in measured)
        assert predicted.total * 1024**3 == pytest.approx(fullest, rel=0.10), case
        assert predicted.moment == case.moment
