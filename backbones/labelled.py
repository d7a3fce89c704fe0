"""Negative log-likelihood at labelled positions, without the logits of all positions at once.

Models differ in what they do between their last hidden states and the logits: scales before or after the head,
soft-capping, projections. So the logits come from the model's own forward pass, with its decoder's output given.

Shape suffixes: B rows, T positions, N labelled positions of all rows, P of a chunk, H hidden size, V vocabulary rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

METHODS = ("labelled_nats", "labelled_logits")  # FSDP has to know them as ways into the model, beside `forward`


def add_methods(llm: PreTrainedModel) -> None:
    """Gives a model the methods: sharded, it is entered by a method of its root, whose hooks gather."""
    for name in METHODS:
        setattr(llm, name, MethodType(globals()[name], llm))


def labelled_nats(
    llm: PreTrainedModel, positions_N: torch.Tensor, targets_N: torch.Tensor, chunks: int, **arguments: torch.Tensor
) -> torch.Tensor:
    """Nats of each target at its position in the rows laid end to end, (N,), fp32 or wider.

    Of several chunks, each recomputes its logits in the backward pass, so that one chunk's are alive at a time.
    """
    output = _body(llm)(**arguments, use_cache=False)
    hidden_NH = output.last_hidden_state.flatten(0, 1)[positions_N]
    pairs = zip(hidden_NH.tensor_split(chunks), targets_N.tensor_split(chunks), strict=True)
    compute = partial(_nats, llm, type(output))
    if chunks > 1:
        compute = partial(checkpoint, compute, use_reentrant=False)
    return torch.cat([compute(*pair) for pair in pairs])


def labelled_logits(llm: PreTrainedModel, positions_N: torch.Tensor, **arguments: torch.Tensor) -> torch.Tensor:
    """Logits at positions of the rows laid end to end, (N, V)."""
    output = _body(llm)(**arguments, use_cache=False)
    hidden_NH = output.last_hidden_state.flatten(0, 1)[positions_N]
    return logits_of(llm, type(output)(last_hidden_state=hidden_NH[None]))[0]


def _body(llm: PreTrainedModel) -> nn.Module:
    """What a model's head reads: its decoder, or all of it that sees and reads, where images come in too."""
    body: nn.Module = llm.get_decoder() if llm.config.get_text_config() is llm.config else llm.base_model
    return body


def _nats(
    llm: PreTrainedModel, kind: type[ModelOutput], hidden_PH: torch.Tensor, targets_P: torch.Tensor
) -> torch.Tensor:
    return nats_of(logits_of(llm, kind(last_hidden_state=hidden_PH[None]))[0], targets_P)


def nats_of(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Nats of each target under its logits, (N,), fp32 or wider."""
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    return functional.cross_entropy(logits_NV.to(exact), targets_N, reduction="none")


def logits_of(llm: PreTrainedModel, output: ModelOutput) -> torch.Tensor:
    """What the model makes of its decoder's output, (1, P, V). Raises RuntimeError where it asks no decoder."""
    with _given(_body(llm), output) as asked:
        # The class's own forward pass: the root's hooks have run, and must not run again for each chunk.
        logits_1PV: torch.Tensor = type(llm).forward(llm, use_cache=False).logits
    if len(asked) != 1:
        raise RuntimeError(
            f"{type(llm).__name__} asks its decoder, {type(_body(llm)).__name__}, {len(asked)} times in a "
            "forward pass; its logits cannot be computed from the hidden states of one"
        )
    return logits_1PV


@contextmanager
def _given(decoder: nn.Module, output: ModelOutput) -> Iterator[list[Any]]:
    """Inside, the decoder returns `output`; yields a list that grows by an entry with every call."""
    asked: list[Any] = []

    def forward(*_: Any, **__: Any) -> ModelOutput:
        asked.append(None)
        return output

    decoder.forward = forward
    try:
        yield asked
    finally:
        del decoder.forward
