"""Peak anonymous memory of each rank while a bf16 checkpoint becomes sharded fp32 master weights, three ways.

    python -m benchmarks.loading --ranks 2 4 --rounds 3 --json loading.json

`ours` lays the model out, shards it and lets each rank read its own rows; `from_pretrained` loads the whole model on
each rank and then shards it; `transformers` is its own distributed loading (`DistributedConfig`). Each runs in fresh
processes, in turns. Memory is Pss_Anon of /proc/self/smaps_rollup, above what it is once everything is imported, the
process group stands and a tiny model has run, sampled until after the first forward pass (bf16, 64 tokens), which is
when lazily mapped weights have been touched. The forward pass gathers one decoder layer at a time in bf16, twice for a
moment (FSDP copies it out of its buffer), so the shape counts: `deep` has 300M parameters in 95 thin layers, `usual` in
30. All sides run with glibc's threshold for mapped memory fixed at its initial 128 KiB: freed buffers then go back to
the system, and what is measured is what is held. Linux only.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cli import machine

MIB = 1024**2
METHODS = ("ours", "from_pretrained", "transformers")
SHAPES = {
    "deep": {"hidden_size": 512, "intermediate_size": 1365, "num_hidden_layers": 95, "num_attention_heads": 8},
    "usual": {"hidden_size": 896, "intermediate_size": 2432, "num_hidden_layers": 30, "num_attention_heads": 14},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--shapes", choices=SHAPES, nargs="+", default=["deep", "usual"])
    arguments.add_argument("--json", type=Path, help="where to write every single measurement")
    options = arguments.parse_args()
    facts = machine()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(128 * 1024)  # for the processes that are started from here
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for shape in options.shapes:
            in_a_process(make_checkpoint, Path(scratch) / shape, SHAPES[shape])
        for number in range(options.rounds):
            for shape, ranks, method in itertools.product(options.shapes, options.ranks, METHODS):
                measured = measure(method, ranks, Path(scratch) / shape)
                results.append({"shape": shape, "ranks": ranks, "method": method, "round": number, **measured})
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, results))
    if options.json:
        document = {"machine": facts, "shapes": SHAPES, "measurements": results}
        options.json.write_text(json.dumps(document, indent=2), encoding="utf-8")


def make_checkpoint(folder: Path, shape: dict[str, int]) -> None:
    """A random Llama in bf16, with a tokenizer of 1,088 rows."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from backbones.registry import get_spec

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1088, tie_word_embeddings=True, **shape))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = get_spec("tiny-llama2").folder
    assert tokenizer is not None
    for file in tokenizer.glob("tokenizer*.json"):
        shutil.copy(file, folder)


def measure(method: str, ranks: int, folder: Path) -> dict[str, Any]:
    """Highest peak over the ranks, and the slowest rank's time, until after the first forward pass."""
    with tempfile.TemporaryDirectory() as scratch:
        context = multiprocessing.get_context("spawn")
        results: Any = context.Queue()
        processes = [
            context.Process(target=run_rank, args=(method, rank, ranks, folder, Path(scratch), results))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit(f"{method} on {ranks} ranks failed; its traceback stands above")
        found = [results.get(timeout=60) for _ in processes]
    return {
        "peak_mib": max(one["peak"] for one in found) / MIB,
        "shard_mib": max(one["shard"] for one in found) / MIB,
        "seconds": max(one["seconds"] for one in found),
        "logit_sum": found[0]["logit_sum"],
    }


def run_rank(method: str, rank: int, ranks: int, folder: Path, scratch: Path, results: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), TOKENIZERS_PARALLELISM="false")
    import peft  # noqa: F401  # what training imports anyway
    import torch
    import torch.distributed as dist
    from transformers.models.llama import modeling_llama  # noqa: F401

    import orchestrator.training.model.sharding  # noqa: F401

    torch.set_num_threads(1)
    store = dist.FileStore(str(scratch / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=300))
    loaders: dict[str, Callable[[Path], Any]] = {
        "ours": load_ours,
        "from_pretrained": load_whole,
        "transformers": load_natively,
    }
    warm_up(dist)
    sampler = Sampler()
    started = time.perf_counter()
    model = loaders[method](folder)
    with torch.no_grad():
        logits = model(torch.arange(64)[None], use_cache=False).logits
    seconds = time.perf_counter() - started
    peak = sampler.stop()
    names = dict(model.named_parameters())  # tied ones once; the state dict has shards where these may be gathered
    shard = sum(tensor.to_local().numel() for name, tensor in model.state_dict().items() if name in names) * 4
    results.put({"peak": peak, "shard": shard, "seconds": seconds, "logit_sum": float(logits.float().sum())})
    dist.barrier()


def warm_up(dist: Any) -> None:
    """Takes a small model through sharding and a forward pass, for what is imported and allocated on first use."""
    import gc

    import torch

    from backbones.registry import get_spec
    from orchestrator.parallel import Mesh
    from orchestrator.training.model.sharding import build_sharded

    backbone, _ = build_sharded(get_spec("tiny-llama2"), recipe(), Mesh.build(torch.device("cpu")), seed=0)
    with torch.no_grad():
        backbone.llm(torch.arange(64)[None], use_cache=False)
    del backbone
    gc.collect()
    dist.barrier()


def recipe() -> Any:
    from orchestrator.spec_files.spec import Recipe

    nothing = {"train": "-", "validation": "-"}
    budget = {"kind": "steps", "amount": 1}
    return Recipe.model_validate(
        {"data": nothing, "budget": budget, "sequence_length": 64, "activation_checkpointing": False}
    )


def load_ours(folder: Path) -> Any:
    import torch

    from backbones.registry import get_spec
    from orchestrator.parallel import Mesh
    from orchestrator.training.model.sharding import build_sharded

    backbone, _ = build_sharded(get_spec(f"hf:{folder}"), recipe(), Mesh.build(torch.device("cpu")), seed=0)
    return backbone.llm


def load_whole(folder: Path) -> Any:
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def load_natively(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    distributed = DistributedConfig(fsdp_size=int(os.environ["WORLD_SIZE"]), fsdp_mixed_precision=True)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, distributed_config=distributed)


class Sampler:
    """The highest Pss_Anon of this process above where it began, looked at every 5 ms."""

    def __init__(self) -> None:
        self._first = self._highest = anonymous_bytes()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._stopping.set()
        self._thread.join()
        return max(self._highest, anonymous_bytes()) - self._first

    def _watch(self) -> None:
        while not self._stopping.wait(0.005):
            self._highest = max(self._highest, anonymous_bytes())


def anonymous_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss_Anon:")) * 1024


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls it in a process of its own, so that this one stays small."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def render(facts: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """A Markdown table of medians over the rounds, and the largest ratio to the shard."""
    load = f"load {facts['load_before']:.1f} to {facts['load_after']:.1f}"
    title = f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {load}; bf16 file, fp32 master weights"
    table = [title, "", "| shape | ranks | | peak MiB | shard MiB | peak / shard (max) | of from_pretrained | s |"]
    table.append("|---|---:|---|---:|---:|---:|---:|---:|")
    cases = dict.fromkeys((one["shape"], one["ranks"]) for one in results)
    for (shape, ranks), method in itertools.product(cases, METHODS):
        found, whole = (
            [one for one in results if (one["shape"], one["ranks"], one["method"]) == (shape, ranks, which)]
            for which in (method, "from_pretrained")
        )
        ratios = [one["peak_mib"] / one["shard_mib"] for one in found]
        of_whole = median(a["peak_mib"] / b["peak_mib"] for a, b in zip(found, whole, strict=True))
        peak, seconds = (median(one[key] for one in found) for key in ("peak_mib", "seconds"))
        table.append(
            f"| {shape} | {ranks} | {method} | {peak:.0f} | {found[0]['shard_mib']:.0f} | "
            f"{median(ratios):.2f} ({max(ratios):.2f}) | {of_whole:.2f} | {seconds:.1f} |"
        )
    return "\n".join(table)


if __name__ == "__main__":
    main()
