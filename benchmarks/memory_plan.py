"""Predicted memory beside the measured peak of real training steps, for 12 configurations.

    python -m benchmarks.memory_plan --json memory-plan.json

Each rank is a process that builds a random model of the product's own kind, shards it and trains by `train_step`, as a
worker does. Measured are steps after the first (the optimizer has its state then): every allocation and release of
torch's allocator in one (torch.profiler), on top of what weights, buffers and optimizer state hold before it.
The resident set is no measure: it includes the interpreter, libraries and pages that were freed. On a GPU
(`--device cuda`, in a world of one) it is what `torch.cuda.max_memory_allocated` says.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from backbones.spec import Architecture, BackboneSpec
from benchmarks.cli import machine

MIB = 1024**2
TOLERANCE = 0.10
# hidden, intermediate, layers, heads, key heads, head size, rows, tied
SMALL = Architecture(384, 1024, 8, 6, 6, 64, 8192, tied_embeddings=False)  # 20 M parameters
FEW_ROWS = Architecture(384, 1024, 10, 6, 2, 64, 1088, tied_embeddings=True)  # the layers count, not the logits
LARGE = Architecture(2048, 6144, 28, 16, 8, 128, 151_936, tied_embeddings=True)  # for a GPU: Qwen3-1.7B


@dataclass(frozen=True)
class Configuration:
    """One way to train: what a spec may say of it. Batches in rows of `sequence_length` tokens."""

    architecture: Architecture = SMALL
    llm_cls: str = "LlamaForCausalLM"
    adaptation: str = "full"
    checkpointing: bool = True
    precision: str = "bf16"
    micro_batch_size: int = 2
    accumulation: int = 1
    ranks: int = 1
    replicas: int = 1
    sequence_length: int = 256
    packing: bool = True

    @property
    def title(self) -> str:
        """What differs from the first."""
        plain, mine = asdict(Configuration()), asdict(self)
        few = f"{self.architecture.vocab_size} rows, " if self.architecture != SMALL else ""
        changed = [name for name in mine if mine[name] != plain[name] and name != "architecture"]
        return few + ", ".join(f"{name} {mine[name]}" for name in changed)


CONFIGURATIONS = (
    Configuration(),
    Configuration(precision="fp32", accumulation=2),
    Configuration(checkpointing=False),
    Configuration(checkpointing=False, precision="fp32", adaptation="lora"),
    Configuration(adaptation="last_layer", accumulation=2),
    Configuration(checkpointing=False, adaptation="last_layer"),
    Configuration(FEW_ROWS, llm_cls="Qwen2ForCausalLM", adaptation="bias_only", checkpointing=False),
    Configuration(FEW_ROWS, llm_cls="Qwen3ForCausalLM", checkpointing=False, micro_batch_size=4),
    Configuration(ranks=2, accumulation=2, micro_batch_size=1),
    Configuration(FEW_ROWS, ranks=2, precision="fp32"),
    Configuration(FEW_ROWS, ranks=2, checkpointing=False, adaptation="lora"),
    Configuration(ranks=2, replicas=2, checkpointing=False, micro_batch_size=1),
)
ON_A_GPU = tuple(
    Configuration(LARGE, "Qwen3ForCausalLM", sequence_length=2048, **changes)
    for changes in (
        {"micro_batch_size": 4, "accumulation": 4},
        {"micro_batch_size": 1, "accumulation": 2},
        {"micro_batch_size": 2, "accumulation": 2, "checkpointing": False},
        {"micro_batch_size": 4, "adaptation": "lora"},
        {"micro_batch_size": 4, "adaptation": "last_layer", "accumulation": 2},
        {"micro_batch_size": 2, "precision": "fp32"},
    )
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--only", type=int, nargs="+", help="numbers of configurations, from 0")
    arguments.add_argument("--json", type=Path, help="where to write every single measurement")
    options = arguments.parse_args()
    facts = machine()
    chosen = CONFIGURATIONS if options.device == "cpu" else ON_A_GPU
    numbers = options.only or range(len(chosen))
    results = [result(chosen[number], options.device) for number in numbers]
    facts["load_after"] = os.getloadavg()[0]
    worst = max(abs(one["ratio"] - 1) for one in results)
    print(f"\nworst: {worst:.1%} off, {TOLERANCE:.0%} allowed; load {facts['load_before']} to {facts['load_after']}")
    if options.json:
        document = {"machine": facts, "device": options.device, "worst": worst, "measurements": results}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(worst > TOLERANCE)


def result(configuration: Configuration, device: str) -> dict[str, Any]:
    """Trains a configuration in fresh processes; prints and returns predicted and measured MiB of the fullest rank."""
    from orchestrator.planning.sizes.memory import predict_memory

    with tempfile.TemporaryDirectory() as scratch:
        job = make_job(configuration, Path(scratch), device)
        measured = max(in_ranks(configuration.ranks, job, device))
    cell = job.cell
    predicted = predict_memory(cell.backbone, cell.recipe, cell.placement, cell.micro_batch_size)
    found = predicted.total * 1024
    ratio = found / measured
    figures = f"{found:8.1f} MiB predicted, {measured:8.1f} measured, ratio {ratio:.3f}"
    print(f"{figures}, peak: {predicted.moment:12} {configuration.title}", flush=True)
    terms = {name: value * 1024 if isinstance(value, float) else value for name, value in asdict(predicted).items()}
    return {"configuration": asdict(configuration), "measured": measured, "ratio": ratio, "predicted": terms}


def in_ranks(number: int, job: Any, device: str) -> list[float]:
    """The peak of each rank, in MiB."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    ranks = [context.Process(target=run_rank, args=(rank, number, job, device, results)) for rank in range(number)]
    for rank in ranks:
        rank.start()
    peaks: list[float] = []
    while len(peaks) < number:
        with contextlib.suppress(queue.Empty):
            peaks.append(results.get(timeout=1))
        if any(rank.exitcode for rank in ranks):
            raise SystemExit("a rank failed")
    for rank in ranks:
        rank.join()
    return peaks


def run_rank(rank: int, ranks: int, job: Any, device: str, results: Any) -> None:
    """A few steps of training on one rank; puts the peak of those after the first."""
    import torch
    from torch import distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(job.folder / "store"), ranks)  # type: ignore[attr-defined]
    backend = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=300))
    results.put(peak_of_a_step(job, torch.device(device)) / MIB)
    dist.barrier()
    dist.destroy_process_group()


def peak_of_a_step(job: Any, device: Any) -> int:
    """Bytes, of a step after the first."""
    import torch

    from orchestrator.parallel import Mesh
    from orchestrator.training.step import train_step
    from orchestrator.training.trainee import build_trainee

    trainee = build_trainee(job, Mesh.build(device, job.cell.placement.parallel))
    works = trainee.feed.steps()
    train_step(job.cell, trainee, next(works), 1e-5)
    trainee.optimizers.zero_grad()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        train_step(job.cell, trainee, next(works), 1e-5)
        return torch.cuda.max_memory_allocated()
    # What a thread of gloo releases is missing in the record, which can only raise a peak: the least of three counts.
    return min(allocated_peak(job, trainee, next(works)) for _ in range(3))


def allocated_peak(job: Any, trainee: Any, work: Any) -> int:
    """What is held before a step, and torch's allocations and releases during it, in order."""
    from torch.profiler import ProfilerActivity, profile

    from orchestrator.training.step import train_step

    held = held_bytes(trainee)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_step(job.cell, trainee, work, 1e-5)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = held
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    trainee.optimizers.zero_grad()
    return peak


def held_bytes(trainee: Any) -> int:
    """Storages of weights, buffers and optimizer state, each once."""
    states = [state for part in trainee.optimizers.torch_optimizers for state in part.state.values()]
    tensors = [*trainee.backbone.llm.parameters(), *trainee.backbone.llm.buffers()]
    tensors += [value for state in states for value in state.values()]
    storages = [getattr(tensor, "_local_tensor", tensor).untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def make_job(configuration: Configuration, scratch: Path, device: str) -> Any:
    """What a worker gets: the cell that the product plans for a configuration, and its data."""
    import yaml

    from backbones.registry import backbone_ids, load_codec, register
    from orchestrator.cell_job import CellJob
    from orchestrator.data.parity import compare_tokenizers, save_selection
    from orchestrator.data.prepare import prepare
    from orchestrator.planning.plan import load_comparison

    spec = make_spec(configuration)
    if spec.backbone_id not in backbone_ids():
        register(spec)
    (scratch / "compare.yaml").write_text(yaml.safe_dump(make_facts(configuration, spec.backbone_id, scratch, device)))
    plan = load_comparison(scratch / "compare.yaml")
    codec = load_codec(spec, max_length=configuration.sequence_length)
    prepared = prepare(spec.backbone_id, codec, plan.train, plan.validation, scratch / "prepared")
    parity = compare_tokenizers([prepared], configuration.sequence_length, plan.job.recipe.data.parity)
    save_selection(scratch / "selection.npz", parity, spec.backbone_id)
    return CellJob(
        cell=plan.cells[0],
        attempt=1,
        folder=scratch,
        prepared=prepared,
        selection_file=str(scratch / "selection.npz"),
        flops_per_token=1.0,
        deadline=time.time() + 3600,
    )


def make_facts(configuration: Configuration, backbone_id: str, scratch: Path, device: str) -> dict[str, Any]:
    """The comparison as a spec file has it, with enough short examples to fill the rows of five steps."""
    rows = configuration.micro_batch_size * configuration.accumulation * configuration.ranks
    for split, count in (("train", rows * configuration.sequence_length // 2), ("validation", 4)):
        texts = [f"{split} {number} the ship sailed over a green sea" for number in range(count)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (scratch / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    data = {name: str(scratch / f"{name}.jsonl") for name in ("train", "validation")}
    recipe = {
        "data": {**data, "format": "text"},
        "sequence_length": configuration.sequence_length,
        "global_batch_size": rows,
        "micro_batch_size": configuration.micro_batch_size,
        "packing": configuration.packing,
        "budget": {"kind": "steps", "amount": 2},
        "adaptation": {"kind": configuration.adaptation},
        "precision": configuration.precision,
        "activation_checkpointing": configuration.checkpointing,
    }
    placement = {"workers": configuration.ranks, "replicas": configuration.replicas}
    job = {"name": "memory", "backbones": [backbone_id], "seeds": [0], "storage": str(scratch / "storage")}
    return {**job, "recipe": recipe, "placement": {**placement, "gpus_per_worker": int(device == "cuda")}}


def make_spec(configuration: Configuration) -> BackboneSpec:
    """A random model of these sizes, with the tokenizer of a tiny one."""
    import torch

    from backbones.causal_lm import find_class, make_config
    from backbones.registry import get_spec

    sizes = configuration.architecture
    name = f"{configuration.llm_cls.removesuffix('ForCausalLM').lower()}-{sizes.vocab_size}"
    layer = configuration.llm_cls.replace("ForCausalLM", "DecoderLayer")
    base = replace(
        get_spec("tiny-llama2"),
        backbone_id=name,
        llm_cls=configuration.llm_cls,
        decoder_layer_cls=layer,
        architecture=sizes,
        context_length=4096,
    )
    with torch.device("meta"):
        model = find_class(base)._from_config(make_config(base))
    return replace(base, parameters=sum(parameter.numel() for parameter in model.parameters()))


if __name__ == "__main__":
    main()
