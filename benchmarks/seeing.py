"""Training on images: a cell of the product beside two runs of a bare loop around the same model.

The bare loop is what one would write by hand and tune: the class that the backbone wraps, its layers sharded one by one
in bf16, decoder layers compiled, nats at labelled positions alone, fused AdamW, and rows that lie collated on the
device, pixels and all. What the product takes beyond it is reading, normalising and copying images, recording, and
looking for orders. A row is a robot's step: an image, an instruction, seven action tokens.

Real sizes come with random weights and the tokenizer of a tiny backbone: nothing is downloaded.
"""

import gc
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from backbones.hf_causal import HFCausalLLMBackbone
from backbones.inputs import Example, PlacedInputs
from backbones.registry import backbone_ids, build, get_spec, register
from backbones.vision.towers import EYES
from benchmarks.product_cells import plan_on, run_planned
from benchmarks.reference_loop import forget, timed_steps
from orchestrator.data.prepare import load_tokenized
from orchestrator.planning.plan import Cell
from orchestrator.training.model.sharding import decoder_layers, vision_layers

LENGTH = 384  # tokens of a row at most; an image of `fused:` backbones takes 256
DIMENSIONS = 7  # of an action
LANGUAGE, SEES = "qwen3-1.7b", "qwen3-vl-2b"
TOWERS = ("siglip-so400m-224", "dinosiglip-224px")


@dataclass(frozen=True)
class Seen:
    """What is measured: backbones, rows of a step and of a pass, pixels a side of the images on disk."""

    backbones: tuple[str, ...]
    rows: int
    rows_at_a_time: int
    side: int


TINY = Seen(("tiny-qwen3-vl", "fused:tiny-siglip+tiny-qwen", "fused:tiny-dinosiglip+tiny-qwen"), 4, 2, 40)
REAL = Seen((f"random-{SEES}", *(f"fused:random-{towers}+random-{LANGUAGE}" for towers in TOWERS)), 64, 16, 256)


def register_random() -> None:
    """Registers the backbones of real size whose weights are drawn."""
    if f"random-{SEES}" in backbone_ids():
        return
    drawn: dict[str, Any] = {"hf_hub_path": "builtin:tiny-qwen", "revision": None}
    for name, backbone_cls in (
        (LANGUAGE, "backbones.random_init:RandomInitBackbone"),
        (SEES, "backbones.vision_language.qwen_vl:RandomQwenVLBackbone"),
    ):
        register(replace(get_spec(name), backbone_id=f"random-{name}", backbone_cls=backbone_cls, **drawn))
    for towers in TOWERS:
        EYES[f"random-{towers}"] = tuple(replace(tower, hf_hub_path=None, revision=None) for tower in EYES[towers])


def beside_bare(
    backbone_id: str,
    seen: Seen,
    scratch: Path,
    device: torch.device,
    accelerator: str | None,
    *,
    steps: int,
    warm_up: int,
) -> dict[str, Any]:
    """Seconds of each step, images and tokens a second, and the product's share of the faster bare loop's speed.

    Speeds are by medians over steps. Tokens are those of rows without padding, an image's placeholders among them.
    """
    data = {split: str(scratch / f"{split}-seen.jsonl") for split in ("train", "validation")}
    if not Path(data["validation"]).exists():
        write_steps(Path(data["train"]), 2 * seen.rows, seen.side)
        write_steps(Path(data["validation"]), 8, seen.side)
    plan = plan_on(
        f"sees-{''.join(letter if letter.isalnum() else '-' for letter in backbone_id)}",
        *(backbone_id, scratch, accelerator, steps, warm_up),
        data={**data, "format": "actions"},
        sequence_length=LENGTH,
        global_batch_size=seen.rows,
        micro_batch_size=seen.rows_at_a_time,
        packing=False,
        activation_checkpointing="auto",
        adaptation={"kind": "full", "vision": "full"},
    )
    gc.collect()
    product = run_planned(plan, device)
    loops = [bare_loop(plan.cells[0], product["train_file"], seen, device, steps, warm_up) for _ in range(2)]
    taken = {"product": median(product["step_s"]), "bare": min(median(one["step_s"]) for one in loops)}
    return {
        "step_s": {"product": product["step_s"], "bare": [one["step_s"] for one in loops]},
        "images_per_second": {name: seen.rows / one for name, one in taken.items()},
        "tokens_per_second": {name: loops[0]["tokens"] / one for name, one in taken.items()},
        "of_bare": taken["bare"] / taken["product"],
        "peak_gib": {"product": product["metrics"]["peak_memory_gib"], "bare": loops[0]["peak_gib"]},
        "contract": product["contract"],
    }


def write_steps(file: Path, count: int, side: int) -> None:
    """Steps of a robot, two in an episode, each with a picture of its own beside the file."""
    draw = np.random.default_rng(len(file.stem))
    with open(file, "w", encoding="utf-8") as stream:
        for number in range(count):
            picture = f"{file.stem}-{number}.png"
            Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(file.parent / picture)
            action = draw.uniform(-1, 1, DIMENSIONS).tolist()
            row = {"instruction": "pick up the red block", "action": action, "episode": number // 2, "image": picture}
            stream.write(json.dumps(row) + "\n")


def bare_loop(
    cell: Cell, train_file: str, seen: Seen, device: torch.device, steps: int, warm_up: int
) -> dict[str, Any]:
    """What `timed_steps` says, and the tokens of a step."""
    forget(device)
    backbone = build(cell.backbone, max_length=LENGTH, compute_dtype=torch.bfloat16)
    model = _sharded(backbone, device)
    batches, tokens = _passes(backbone, train_file, seen, device)
    passes = [partial(_nats, model, batch) for batch in batches]
    targets = sum(len(batch.targets_N) for batch in batches)
    return {**timed_steps(model, passes, targets, device, steps, warm_up), "tokens": tokens}


def _nats(model: Any, batch: PlacedInputs) -> torch.Tensor:
    nats: torch.Tensor = model.labelled_nats(batch.positions_N, batch.targets_N, 1, **batch.arguments)
    return nats.sum()


def _sharded(backbone: HFCausalLLMBackbone, device: torch.device) -> Any:
    """The model by itself on the device, each layer a unit."""
    model = backbone.llm.to(device).train()
    decoders = decoder_layers(backbone)
    units = [*decoders, *(layer for _, layers in vision_layers(backbone) for layer in layers)]
    mesh = init_device_mesh(device.type, (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if device.type == "cuda":
        for layer in decoders:
            layer.compile()
    for layer in units:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "labelled_nats")
    return model


def _passes(
    backbone: HFCausalLLMBackbone, train_file: str, seen: Seen, device: torch.device
) -> tuple[list[PlacedInputs], int]:
    """The micro-batches of a step, on the device, and how many tokens they hold."""
    data = load_tokenized(train_file)
    examples = []
    for number in range(seen.rows):
        ids, is_learned, _ = data.example(number)
        examples.append(Example(ids, is_learned, data.images(number)))
    firsts = range(0, seen.rows, seen.rows_at_a_time)
    rows = [[[one] for one in examples[first : first + seen.rows_at_a_time]] for first in firsts]
    return [backbone.collate(few).on(device) for few in rows], sum(len(one.input_ids) for one in examples)
