"""Predicted memory, against every allocation that torch makes during a real step; benchmarks/memory_plan.py has more.

The model is small and its batch large, so that activations, logits and whole units count as they do in large ones.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gang import run_ranks
from small_jobs import make_job

from backbones.registry import get_spec, register
from backbones.spec import Architecture
from benchmarks.memory_plan import peak_of_a_step
from orchestrator.cell_job import CellJob
from orchestrator.planning.memory import predict_memory

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


@pytest.mark.parametrize("ranks", CASES)
def test_the_predicted_peak_is_within_a_tenth_of_every_allocation_of_a_step(ranks: int, tmp_path: Path) -> None:
    jobs = [
        make_job(tmp_path / str(number), SPEC.backbone_id, workers=ranks, replicas=case.replicas, **case.recipe)
        for number, case in enumerate(CASES[ranks])
    ]
    measured = run_ranks(ranks, peaks, jobs)
    for number, (case, job) in enumerate(zip(CASES[ranks], jobs, strict=True)):
        cell = job.cell
        predicted = predict_memory(cell.backbone, cell.recipe, cell.placement, cell.micro_batch_size)
        fullest = max(of_a_rank[number] for of_a_rank in measured)
        assert predicted.total * 1024**3 == pytest.approx(fullest, rel=0.10), case
        assert predicted.moment == case.moment
