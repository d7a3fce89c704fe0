"""The product's own cells in this process, without Ray: planned, tokenized and run as its workers run them.

The model is a folder of random weights with the tokenizer of a tiny backbone, the data are documents of about so many
tokens, half of each learned: nothing is downloaded.
"""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedConfig

from backbones.registry import get_spec, load_codec
from benchmarks.reference_loop import Work
from jobs.driver.kinds.benchmark import load_benchmark
from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob
from orchestrator.data.parity import compare_tokenizers, save_selection
from orchestrator.data.prepare import prepare
from orchestrator.layout import CellFolder, Storage
from orchestrator.planning.plan import Plan
from orchestrator.tracking.spool import Entry, EntryKind, read_spool
from orchestrator.training.measurement import find_measurement
from orchestrator.training.model.compilation import keep_compiled_code

TEXT = "the ship sailed over a green sea and nobody knew where it would land before winter came again"
WORDS = TEXT.split()
TOKENIZER = "tiny-qwen"
DOCUMENTS = 4000


def make_model_folder(config: PreTrainedConfig, folder: Path, device: torch.device) -> Path:
    """A Hugging Face folder: random bf16 weights of that config beside the tokenizer of a tiny backbone."""
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    tokenizer = get_spec(TOKENIZER).folder
    assert tokenizer is not None
    for file in tokenizer.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    return folder


def write_documents(file: Path, tokens: int, count: int, seed: int) -> Path:
    """Conversations of `tokens` tokens on average, from half of that to half as much again."""
    codec = load_codec(get_spec(TOKENIZER), max_length=10**6)
    tokens_a_word = len(codec.tokenizer(" ".join(WORDS * 50))["input_ids"]) / (50 * len(WORDS))
    draw = random.Random(seed)
    with open(file, "w", encoding="utf-8") as stream:
        for _ in range(count):
            words = max(round(draw.uniform(0.5, 1.5) * tokens / tokens_a_word / 2), 1)
            texts = [" ".join(draw.choices(WORDS, k=words)) for _ in range(2)]
            turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
            stream.write(json.dumps({"messages": turns}) + "\n")
    return file


def plan_cell(
    model: Path, scratch: Path, work: Work, accelerator: str | None, steps: int, warm_up: int, **recipe: Any
) -> Plan:
    """A benchmark of one cell; `recipe` holds what differs from the default one."""
    chosen = [one["kind"] if isinstance(one, dict) else str(one) for one in recipe.values()]
    name = f"{work.width}-{'-'.join(chosen) or 'default'}"
    needed = 4 * work.tokens * (steps + warm_up + 2) // work.document
    for split, count in (("train", min(needed, DOCUMENTS)), ("validation", 16)):
        file = scratch / f"{split}-{work.document}.jsonl"
        if not file.exists():
            write_documents(file, work.document, count, seed=len(split))
    data = {split: str(scratch / f"{split}-{work.document}.jsonl") for split in ("train", "validation")}
    sizes = {"sequence_length": work.width, "global_batch_size": work.rows}
    recipe = {"data": data, **sizes, **recipe}
    return plan_on(name, f"hf:{model}", scratch, accelerator, steps, warm_up, **recipe)


def plan_on(
    name: str, backbone: str, scratch: Path, accelerator: str | None, steps: int, warm_up: int, **recipe: Any
) -> Plan:
    """A benchmark of one cell of a backbone by this recipe."""
    spec = {
        "name": f"gpu-check-{name}",
        "backbones": [backbone],
        "seeds": 1,
        "storage": str(scratch / "storage"),
        "recipe": {"budget": {"kind": "steps", "amount": steps + warm_up}, **recipe},
        "placement": {"workers": 1, **({"gpus_per_worker": 1, "accelerator": accelerator} if accelerator else {})},
    }
    file = scratch / f"{name}.yaml"
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return load_benchmark(file, warm_up, steps)


def run_planned(plan: Plan, device: torch.device) -> dict[str, Any]:
    """Runs the plan's cell and says what it measured: steps, memory, checkpoints, and when its first step was done."""
    cell, length = plan.cells[0], plan.job.recipe.sequence_length
    prepared = prepare(
        cell.backbone.backbone_id,
        load_codec(cell.backbone, max_length=length),
        plan.train,
        plan.validation,
        Storage(plan.storage).prepared,
        cell.backbone.vision,
    )
    plan.folder.mkdir(parents=True, exist_ok=True)
    selection = plan.folder / "selection.npz"
    save_selection(selection, compare_tokenizers([prepared], length, "intersection"), cell.backbone.backbone_id)
    job = CellJob(
        cell=cell,
        attempt=1,
        folder=plan.cell_folder(cell),
        prepared=prepared,
        selection_file=str(selection),
        flops_per_token=plan.forecasts[0].flops_per_token,
        deadline=time.time() + 3600,
    )
    keep_compiled_code(CellFolder(job.folder).storage.compiled)
    began = time.time()
    run_cell(job, device)
    wall_s = time.time() - began
    measurement = find_measurement(job.folder)
    assert measurement is not None
    shutil.rmtree(job.checkpoint_root, ignore_errors=True)
    return {
        **_facts_of(list(read_spool(job.spool_folder)), began, plan),
        "wall_s": wall_s,
        "micro_batch_size": cell.micro_batch_size,
        "train_file": prepared.train_file,
        "contract": measurement.contract,
        "metrics": measurement.metrics,
    }


def _facts_of(entries: list[Entry], began: float, plan: Plan) -> dict[str, Any]:
    steps = [entry for entry in entries if entry.kind is EntryKind.STEP]
    phases = [entry.fields for entry in entries if entry.kind is EntryKind.PHASE]
    warm_up = plan.job.recipe.budget.amount - getattr(plan.job, "measured", 0)
    return {
        "step_s": [entry.fields["step_time_s"] for entry in steps[int(warm_up) :]],
        "tokens_per_second": [entry.fields["tokens_per_second_per_device"] for entry in steps[int(warm_up) :]],
        "first_step_s": steps[0].fields["step_time_s"],
        "first_step_done_s": steps[0].time_ms / 1000 - began,
        "stalls_s": [phase["stall_s"] for phase in phases if "stall_s" in phase],
        "checkpoint_bytes": max((phase.get("checkpoint_bytes", 0) for phase in phases), default=0),
        "last_loss": steps[-1].fields["loss"],
    }
