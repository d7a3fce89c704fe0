"""Jobs small enough for a test: a real spec and real files, planned and prepared as the product does it."""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from backbones.registry import load_codec
from orchestrator.cell_job import CellJob
from orchestrator.data.parity import check_parity, compare_tokenizers, save_selection
from orchestrator.data.prepare import prepare
from orchestrator.planning.plan import load_comparison
from orchestrator.tracking.spool import Entry, read_spool

TEXT = "the ship sailed over a green sea and nobody knew where it would land before winter 你好 naïve 7 12 + = ?"
WORDS = TEXT.split()


def write_conversations(file: Path, count: int, seed: int, longest: int = 22) -> None:
    """Questions and answers of 1 to `longest` words."""
    draw = random.Random(seed)
    with open(file, "w", encoding="utf-8") as stream:
        for number in range(count):
            question = f"{number}: {' '.join(draw.choices(WORDS, k=draw.randint(1, 6)))}"
            answer = " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            stream.write(json.dumps({"messages": turns, "group": f"g{number % 4}"}) + "\n")


def make_job(
    folder: Path,
    backbone: str = "tiny-llama2",
    *,
    workers: int = 1,
    replicas: int = 1,
    extra_rows: Sequence[dict[str, Any]] = (),
    **recipe: Any,
) -> CellJob:
    """A job of 20 steps of 8 rows in fp32, with `recipe` on top; `extra_rows` stand last in the training data."""
    folder.mkdir(parents=True, exist_ok=True)
    write_conversations(folder / "train.jsonl", 150, seed=1)
    write_conversations(folder / "validation.jsonl", 13, seed=2)
    with open(folder / "train.jsonl", "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in extra_rows)
    settings = {
        "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl")},
        "sequence_length": 256,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "packing": True,
        "budget": {"kind": "steps", "amount": 20},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup": 0.1, "max_grad_norm": 0.5},
        "precision": "fp32",
        "activation_checkpointing": False,
        "evaluate": {"every": 1.0},
        "checkpoint": {"every": 1.0},
    }
    document = {
        "name": "small",
        "backbones": [backbone],
        "seeds": [3],
        "storage": str(folder / "storage"),
        "recipe": settings | recipe,
        "placement": {"workers": workers, "replicas": replicas},
    }
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump(document))
    plan = load_comparison(file)
    length = plan.job.recipe.sequence_length
    spec = plan.cells[0].backbone
    codec = load_codec(spec, max_length=length)
    prepared = prepare(backbone, codec, plan.train, plan.validation, folder / "prepared", spec.vision)
    parity = compare_tokenizers([prepared], length, plan.job.recipe.data.parity)
    check_parity(parity, str(file), length)
    save_selection(folder / "selection.npz", parity, backbone)
    return CellJob(
        cell=plan.cells[0],
        attempt=1,
        folder=plan.cell_folder(plan.cells[0]),
        prepared=prepared,
        selection_file=str(folder / "selection.npz"),
        flops_per_token=plan.forecasts[0].flops_per_token,
        deadline=time.time() + 3600,
    )


def entries(job: CellJob, kind: str) -> list[Entry]:
    """What the spool holds of one kind."""
    return [entry for entry in read_spool(job.spool_folder) if entry.kind == kind]


def curve(job: CellJob, metric: str = "loss") -> list[float]:
    """A metric of every step, in the order of the spool."""
    return [entry.fields[metric] for entry in entries(job, "step")]
