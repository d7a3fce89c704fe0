"""What a device allows: a plain loop around a stock model of transformers, each part the fastest that is known.

FSDP2 in a world of one, bf16 over fp32 master weights, decoder layers compiled on their own, attention over documents
alone, logits at labelled positions alone, fused AdamW, one look at the loss a step. It reads no data, writes nothing,
resumes nothing: what the product needs beyond it is the product's overhead.
"""

import gc
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedConfig

from backbones.varlen import document_bounds, register_varlen

IGNORED = -100
MATRICES = r".*\.layers\..*_proj"


@dataclass(frozen=True)
class Work:
    """A step: rows of so many tokens, packed with documents, half of each learned; so many rows at a time."""

    rows: int
    width: int
    rows_at_a_time: int
    document: int  # tokens

    @property
    def tokens(self) -> int:
        return self.rows * self.width


def run_loop(
    config: PreTrainedConfig,
    work: Work,
    device: torch.device,
    *,
    steps: int,
    warm_up: int,
    recompute: bool = False,
    lora_rank: int | None = None,
) -> dict[str, Any]:
    """Seconds of each step after `warm_up`, tokens/s of their median, the first step's seconds, peak GiB, the loss.

    `lora_rank`: adapters on every matrix of the decoder layers learn alone; all weights are bf16, and none is a master.
    """
    forget(device)
    model = _build(config, device, recompute, lora_rank)
    batch, targets = _batch(config, work, device)
    count = work.rows // work.rows_at_a_time
    found = timed_steps(model, [partial(model, **batch)] * count, targets * count, device, steps, warm_up)
    return {**found, "tokens_per_second": work.tokens / median(found["step_s"])}


def forget(device: torch.device) -> None:
    """Frees what a run before left, so that memory and compiled code are of the next one."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def timed_steps(
    model: nn.Module,
    passes: Sequence[Callable[[], torch.Tensor]],
    targets: int,
    device: torch.device,
    steps: int,
    warm_up: int,
) -> dict[str, Any]:
    """Trains with clipping and AdamW; seconds of each step after `warm_up`, the first step's, peak GiB, the loss.

    Each of the `passes` of a step gives the nats of its share of the step's `targets`.
    """
    on_gpu = device.type == "cuda"
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    taken, loss = [], 0.0
    for _ in range(warm_up + steps):
        if on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        total = torch.zeros((), device=device)
        for nats_of_pass in passes:
            nats = nats_of_pass()
            (nats / targets).backward()
            total += nats.detach()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = float(total) / targets  # waits for the device
        taken.append(time.perf_counter() - began)
    return {
        "step_s": taken[warm_up:],
        "first_step_s": taken[0],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "loss": loss,
    }


def _build(config: PreTrainedConfig, device: torch.device, recompute: bool, lora_rank: int | None) -> nn.Module:
    on_gpu = device.type == "cuda"
    kernel = register_varlen() if on_gpu else "sdpa"
    dtype = torch.float32 if lora_rank is None else torch.bfloat16
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kernel)
    if lora_rank is not None:
        adapters = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules=MATRICES, bias="none")
        model.add_adapter(adapters)
        model.to(device=device, dtype=dtype)
    model.config.use_cache = False
    model.train()
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.forward = types.MethodType(_labelled_nats, model)
    mesh = init_device_mesh(device.type, (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        if on_gpu:
            layer.compile()
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def _labelled_nats(self: Any, kept: torch.Tensor, targets: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    hidden = self.model(**inputs, use_cache=False)[0].flatten(0, 1)[kept]
    return cross_entropy(self.lm_head(hidden).float(), targets, reduction="sum")


def _batch(config: PreTrainedConfig, work: Work, device: torch.device) -> tuple[dict[str, torch.Tensor], int]:
    """One micro-batch, and how many of its positions are learned."""
    generator = torch.Generator().manual_seed(1)
    shape = work.rows_at_a_time, work.width
    ids_BT = torch.randint(0, config.vocab_size, shape, generator=generator)
    position_BT = (torch.arange(work.width) % work.document).expand(shape).contiguous()
    kept = (position_BT >= work.document // 2).flatten().nonzero().flatten()
    batch = {"input_ids": ids_BT, "position_ids": position_BT, "kept": kept, "targets": ids_BT.flatten()[kept]}
    if device.type == "cuda":
        batch["attention_mask"] = torch.from_numpy(document_bounds(position_BT.numpy()))
    return {name: tensor.to(device) for name, tensor in batch.items()}, len(kept)
