"""Decoder layers compiled by Inductor, each by itself, and where the code is kept that comes of it."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

CACHE = "TORCHINDUCTOR_CACHE_DIR"
# Variants of one layer's code: training and scoring, each for a width of rows and for any, times the kinds of layers.
# Beyond torch's limit of 8 a layer would run uncompiled from then on, without a word.
VARIANTS = 64


def compiles_layers(request: str, device: torch.device) -> bool:
    """Whether `recipe.compile` (auto | layers | none) means compiled layers: auto does on CUDA alone."""
    return request == "layers" or (request == "auto" and device.type == "cuda")


def compile_layers(llm: PreTrainedModel, layers: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Has each layer compiled at its first call, before it is sharded; layers of one class share their code.

    Embedding, head and loss stay as they are: the number of labelled positions differs from batch to batch. What was
    compiled for an earlier model of this process is forgotten here; on disk it stays.
    """
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = VARIANTS
    llm.base_model.register_forward_pre_hook(_mark_documents, with_kwargs=True)
    for layer in layers:
        layer.compile(backend=backend)


def _mark_documents(_: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
    """Tells the compiler that batches differ in their number of documents, before it takes the first for all."""
    mask = named.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 4 and not mask.is_floating_point():
        torch._dynamo.maybe_mark_dynamic(mask, 3)


def is_compiled(layer: nn.Module) -> bool:
    """Whether calls of the layer run compiled code."""
    return getattr(layer, "_compiled_call_impl", None) is not None


def keep_compiled_code(folder: Path) -> None:
    """Has Inductor keep its code in `folder`, for later models, processes and jobs; to be called before it compiles.

    A folder that somebody chose in the environment stays; Inductor itself writes its default there once it is asked.
    """
    chosen = os.environ.get(CACHE)
    if chosen is None or chosen == _default_folder():
        os.environ[CACHE] = str(folder)


def _default_folder() -> str:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return str(default_cache_dir())
