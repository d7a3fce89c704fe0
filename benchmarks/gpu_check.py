"""What the product's lines on GPUs demand, measured on the GPU of this machine by one command.

    python -m benchmarks.gpu_check                      # make gpu-check; writes benchmarks/results/gpu-check-DATE.json
    python -m benchmarks.gpu_check --parts kernels cells --accelerator H100
    python -m benchmarks.gpu_check --cpu                # the same parts on a tiny shape, without a claim about speed

Each part runs in a process of its own with a time limit, the most important first, and is written down as it ends:

speed-2048, speed-8192   the product with its default recipe and with recomputation left to the plan, between two runs
                         of the reference loop (reference_loop.py), on a model of Qwen3-1.7B's shape
kernels                  packed documents against each alone, on every attention kernel that runs here
images                   a vision-language backbone and two behind towers, each beside a bare loop (seeing.py)
cells                    a cell, another one in the same process, and one in a process that finds the compiled code
disk                     what the scratch folder takes a second, beside the stalls that the other parts measured

Nothing is downloaded: weights are random, the tokenizer is a tiny backbone's. `--scratch` wants about 60 GB of disk.
Over 300 lines: the parts and the command that runs each of them are one document.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen3Config

from backbones.attention import AttentionUnavailableError, resolve_attention
from backbones.inputs import Example, make_inputs
from benchmarks import seeing
from benchmarks.cli import ROOT, machine
from benchmarks.product_cells import make_model_folder, plan_cell, run_planned
from benchmarks.reference_loop import Work, run_loop

KERNELS = ("varlen", "flash_attention_2", "flex_attention", "sdpa", "eager")
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}  # of the largest logit, as in a certificate
QWEN3_17B = {
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 4096,
}  # fmt: skip
LLAMA3_8B = {
    "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256,
}  # fmt: skip
WINDOW = 16
LORA_RANK = 16


@dataclass(frozen=True)
class Scale:
    """What is measured: a shape, the work of a step at both widths, and how many steps."""

    shape: dict[str, int]
    lora_shape: dict[str, int]
    narrow: Work
    wide: Work
    lora: Work
    seen: seeing.Seen
    steps: int
    warm_up: int
    disk_bytes: int


GPU = Scale(
    QWEN3_17B,
    LLAMA3_8B,
    narrow=Work(16, 2048, 4, 200),
    wide=Work(4, 8192, 1, 1600),
    lora=Work(16, 2048, 2, 200),
    seen=seeing.REAL,
    steps=6,
    warm_up=3,
    disk_bytes=8 * 10**9,
)
CPU = Scale(
    TINY,
    TINY,
    narrow=Work(4, 64, 2, 16),
    wide=Work(2, 128, 1, 32),
    lora=Work(4, 64, 2, 16),
    seen=seeing.TINY,
    steps=3,
    warm_up=1,
    disk_bytes=64 * 10**6,
)


@dataclass(frozen=True)
class Setting:
    """Where a part runs."""

    scale: Scale
    device: torch.device
    accelerator: str | None
    scratch: Path

    @property
    def config(self) -> PreTrainedConfig:
        return Qwen3Config(**self.scale.shape, max_position_embeddings=40960, tie_word_embeddings=True)


Part = Callable[[Setting], dict[str, Any]]


def speed(setting: Setting, work: Work) -> dict[str, Any]:
    """All weights learn; the product also with recomputation left to the plan."""
    planned = {"product, recomputation as planned": {"activation_checkpointing": "auto"}}
    return beside_reference(setting, setting.config, work, {"product": {}} | planned)


def lora(setting: Setting) -> dict[str, Any]:
    """Adapters learn; the reference recomputes nothing, so neither does the product."""
    config = LlamaConfig(**setting.scale.lora_shape, max_position_embeddings=8192, rope_theta=500_000.0)
    adaptation = {"kind": "lora", "rank": LORA_RANK, "alpha": 2 * LORA_RANK}
    recipes = {"product": {"adaptation": adaptation, "activation_checkpointing": False}}
    return beside_reference(setting, config, setting.scale.lora, recipes, lora_rank=LORA_RANK)


def beside_reference(
    setting: Setting, config: PreTrainedConfig, work: Work, recipes: dict[str, dict[str, Any]], **options: Any
) -> dict[str, Any]:
    """The product by each recipe, between two runs of the reference loop; ratios of tokens/s, medians over steps."""
    scale, device = setting.scale, setting.device
    model = make_model_folder(config, setting.scratch / f"model-{config.model_type}", device)

    def loop() -> dict[str, Any]:
        return run_loop(config, work, device, steps=scale.steps, warm_up=scale.warm_up, **options)

    def product(recipe: dict[str, Any]) -> dict[str, Any]:
        plan = plan_cell(model, setting.scratch, work, setting.accelerator, scale.steps, scale.warm_up, **recipe)
        gc.collect()
        return run_planned(plan, device)

    sides = {"reference": loop()} | {name: product(recipe) for name, recipe in recipes.items()}
    sides["reference again"] = loop()
    best = max(sides["reference"]["tokens_per_second"], sides["reference again"]["tokens_per_second"])
    ratios = {name: float(np.median(sides[name]["tokens_per_second"])) / best for name in recipes}
    return {"work": asdict(work), "sides": sides, "of_reference": ratios}


def images(setting: Setting) -> dict[str, Any]:
    """Each backbone that sees, and the product's share of a bare loop's speed."""
    seeing.register_random()
    scale = setting.scale
    places = (scale.seen, setting.scratch, setting.device, setting.accelerator)
    by = {
        name: seeing.beside_bare(name, *places, steps=scale.steps, warm_up=scale.warm_up)
        for name in scale.seen.backbones
    }
    return {"images": by, "of_reference": {name: one["of_bare"] for name, one in by.items()}}


def kernels(setting: Setting) -> dict[str, Any]:
    """By model and kernel, the largest difference of packed logits from eager fp32 ones of each document alone."""
    shape = {**TINY, "vocab_size": 512}
    models = {
        "qwen3, grouped heads": Qwen3Config(**shape),
        f"mistral, window of {WINDOW}": MistralConfig(**shape, sliding_window=WINDOW),
    }
    found = {
        name: {kernel: compare(config, kernel, setting.device) for kernel in KERNELS} for name, config in models.items()
    }
    return {"found": found, "holds": all(one.get("holds", True) for by in found.values() for one in by.values())}


def compare(config: PreTrainedConfig, kernel: str, device: torch.device) -> dict[str, Any]:
    """One kernel: in bf16 where it has no fp32."""
    torch.manual_seed(0)
    with device:
        alone = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    try:
        choice = resolve_attention(kernel, llm_cls=type(alone), config=config)
    except AttentionUnavailableError as error:
        return {"not_run": str(error)}
    dtype = torch.bfloat16 if choice.is_half_precision_only else torch.float32
    draw = np.random.default_rng(0)
    rows = [
        [Example(draw.integers(3, 500, size), np.ones(size, bool)) for size in row] for row in ((90, 7, 31), (64, 64))
    ]
    with torch.no_grad():
        expected = []
        for ids in (ids for row in rows for ids, *_ in row):
            expected.append(alone(torch.from_numpy(ids)[None].to(device), use_cache=False).logits[0])
        packed = alone.to(dtype)
        packed.set_attn_implementation(choice.prepare())
        inputs = choice.arrange(make_inputs(rows, pad_token_id=0))
        logits = packed(**inputs.on(device).arguments, use_cache=False).logits.float().flatten(0, 1)
    difference = float((logits - torch.cat(expected)).abs().max() / torch.cat(expected).abs().max())
    return {"dtype": str(dtype), "difference": difference, "holds": difference <= TOLERANCE[dtype]}


def cells(setting: Setting) -> dict[str, Any]:
    """From the call to the end of the first step, of one cell after another in this process."""
    scale = setting.scale
    model = make_model_folder(setting.config, setting.scratch / f"model-{setting.config.model_type}", setting.device)
    found = []
    for _ in range(2):
        plan = plan_cell(model, setting.scratch, scale.narrow, setting.accelerator, steps=3, warm_up=1)
        gc.collect()
        found.append(run_planned(plan, setting.device))
    return {"cells": found}


def disk(setting: Setting) -> dict[str, Any]:
    """Bytes a second of a plain sequential write to the scratch folder, flushed."""
    file, block = setting.scratch / "written", b"\0" * 2**24
    count = max(setting.scale.disk_bytes // len(block), 1)
    began = time.perf_counter()
    with open(file, "wb", buffering=0) as stream:
        for _ in range(count):
            stream.write(block)
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - began
    file.unlink()
    return {"bytes": count * len(block), "seconds": seconds, "bytes_per_second": count * len(block) / seconds}


# By name: the part and its time limit in seconds. A speed part took about 100 s of an H200 when it was written for.
PARTS: dict[str, tuple[Part, int]] = {
    "speed-2048": (lambda setting: speed(setting, setting.scale.narrow), 300),
    "kernels": (kernels, 120),
    "cells": (cells, 200),
    "cells-again": (cells, 200),
    "disk": (disk, 120),
    "speed-8192": (lambda setting: speed(setting, setting.scale.wide), 300),
    "lora": (lora, 300),
    "images": (images, 400),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="a tiny shape on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--accelerator", help="as in placement.accelerator; what CUDA's name of the device begins with")
    parser.add_argument("--scratch", type=Path, help="where models, data and checkpoints go; a temporary folder else")
    parser.add_argument("--json", type=Path, help="where to write what was found")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # run by this command itself
    options = parser.parse_args()
    if options.part is not None:
        run_part(options)
        return
    if not options.cpu and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --cpu runs the same parts on a tiny shape")
    kind = "cpu" if options.cpu else "gpu"
    file = options.json or ROOT / "benchmarks" / "results" / f"{kind}-check-{datetime.now(UTC):%Y-%m-%d}.json"
    with tempfile.TemporaryDirectory() as scratch:
        sound = run_all(options, file, options.scratch or Path(scratch))
    raise SystemExit(0 if sound else 1)


def run_all(options: argparse.Namespace, file: Path, scratch: Path) -> bool:
    """Runs the parts in order and writes the document after each; says whether all of them ran and hold."""
    document: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "parts": {}}
    document["device"] = "cpu" if options.cpu else torch.cuda.get_device_name()
    passed = ["--cpu"] if options.cpu else []
    passed += ["--accelerator", options.accelerator] if options.accelerator else []
    for name in options.parts:
        out, began = scratch / f"{name}.json", time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", name, "--scratch", str(scratch), *passed]
        try:
            ended = subprocess.run([*command, "--json", str(out)], cwd=ROOT, timeout=PARTS[name][1]).returncode
            found = json.loads(out.read_text("utf-8")) if ended == 0 else {"failed": f"exit code {ended}"}
        except subprocess.TimeoutExpired:
            found = {"failed": f"not done in {PARTS[name][1]} s"}
        document["parts"][name] = {**found, "wall_s": time.perf_counter() - began}
        document["machine"]["load_after"] = os.getloadavg()[0]
        file.write_text(json.dumps(document, indent=1), encoding="utf-8")
        print(f"{name}: {summary(found)}", flush=True)
    return all("failed" not in found and found.get("holds", True) for found in document["parts"].values())


def run_part(options: argparse.Namespace) -> None:
    """One part, in a world of one rank."""
    device = torch.device("cpu" if options.cpu else "cuda:0")
    accelerator = None if options.cpu else options.accelerator or find_accelerator()
    setting = Setting(CPU if options.cpu else GPU, device, accelerator, options.scratch)
    with world_of_one(device):
        found = PARTS[options.part][0](setting)
    options.json.write_text(json.dumps(found, default=str), encoding="utf-8")


def find_accelerator() -> str | None:
    """The name that the plan knows this device by."""
    from orchestrator.planning.sizes.memory import DEVICE_GIB

    words = torch.cuda.get_device_name().replace("-", " ").split()
    return next((word for word in words if word in DEVICE_GIB), None)


@contextmanager
def world_of_one(device: torch.device) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def summary(found: dict[str, Any]) -> str:
    """A line for people; the document has the rest."""
    if "images" in found:
        rates = {name: round(one["images_per_second"]["product"], 1) for name, one in found["images"].items()}
        of = {name: f"{share:.2f}" for name, share in found["of_reference"].items()}
        return f"images/s {json.dumps(rates)}, of the bare loop {json.dumps(of)}"
    if "of_reference" in found:
        rates = {name: float(np.median(side["tokens_per_second"])) for name, side in found["sides"].items()}
        of = {name: f"{share:.2f}" for name, share in found["of_reference"].items()}
        return f"tokens/s {json.dumps({name: round(rate) for name, rate in rates.items()})}, of the reference {of}"
    if "cells" in found:
        return "first step done after " + ", ".join(f"{cell['first_step_done_s']:.1f} s" for cell in found["cells"])
    if "found" in found:
        return json.dumps(found["found"])
    return json.dumps(found)


if __name__ == "__main__":
    main()
