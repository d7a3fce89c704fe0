"""What a decoder layer keeps for its backward pass when its activations are recomputed."""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

# The operations whose results cost most to compute anew: matrices, and the attention kernels, of which a build of torch
# has some. Everything between them (norms, rotations, gates) is cheap.
EXPENSIVE = (
    *("aten.mm", "aten.addmm", "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_cudnn_attention"),
    *("aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_flash_attention_for_cpu"),
    "torch_attn._varlen_attn",
)


def checkpointing_arguments(selective: bool) -> dict[str, Any]:
    """Arguments of `torch.utils.checkpoint.checkpoint` for a layer: only its input is kept, or, where `selective`,
    what its matrices and its attention kernel gave as well."""
    arguments: dict[str, Any] = {"use_reentrant": False}
    if selective:
        kept = [operation for name in EXPENSIVE if (operation := _find_operation(name)) is not None]
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, kept)
    return arguments


def found_checkpointing(layers: list[torch.nn.Module]) -> bool | str:
    """Whether every one of these layers recomputes its activations, or `selective`."""
    if not all(getattr(layer, "gradient_checkpointing", False) for layer in layers):
        return False
    functions = (getattr(layer, "_gradient_checkpointing_func", None) for layer in layers)
    return "selective" if all("context_fn" in getattr(one, "keywords", {}) for one in functions) else True


def _find_operation(name: str) -> Any:
    """The overload that runs; None where this torch has no such operation."""
    space, _, operation = name.partition(".")
    return getattr(getattr(getattr(torch.ops, space), operation, None), "default", None)
