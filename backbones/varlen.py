"""Attention over documents laid end to end: torch's `varlen_attn` as a kernel of transformers. Its only door.

Where transformers passes a mask, this kernel gets the bounds of the documents: int32 (1, 1, 1, N + 1), which first
tokens of N documents and the number of tokens are. `document_bounds` makes them of position ids, on the host and once
for a forward pass; transformers hands a mask of four dimensions to every layer as it is.

Shape suffixes: B rows, T positions, H heads, G heads of keys and values, D head size; rows follow one another in BT.
"""

import inspect
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "varlen"
REFUSED = ("softcap", "s_aux", "position_bias")  # further arguments that models have, which would change the scores

Attend = Callable[..., torch.Tensor]  # with the signature of torch.nn.attention.varlen.varlen_attn


def document_bounds(position_ids_BT: np.ndarray) -> np.ndarray:
    """Where each document begins in the rows laid end to end, then the number of tokens; int32 (1, 1, 1, N + 1).

    A document begins with every row and wherever positions start again at 0; padding belongs to the last one.
    """
    begins_BT = position_ids_BT == 0
    begins_BT[:, 0] = True
    bounds = np.append(np.flatnonzero(begins_BT), begins_BT.size)
    return bounds.astype(np.int32)[None, None, None]


def register_varlen(name: str = NAME, attend: Attend | None = None) -> str:
    """Makes the kernel known to transformers under `name`, and returns that; doing it again changes nothing.

    `attend` stands in for torch's `varlen_attn` where that cannot run: it has its signature.
    """
    if attend is None:
        from torch.nn.attention.varlen import varlen_attn

        attend = cast(Attend, varlen_attn)  # one tensor, as long as nothing further is asked for
    AttentionInterface.register(name, _attention(attend))
    AttentionMaskInterface.register(name, _bounds_of_mask)
    return name


def _attention(attend: Attend) -> Callable[..., tuple[torch.Tensor, None]]:
    """`attend` as transformers calls an attention function."""
    groups_heads = "enable_gqa" in inspect.signature(attend).parameters  # torch 2.11 has no such argument

    def attention(
        module: torch.nn.Module,
        query_BHTD: torch.Tensor,
        key_BGTD: torch.Tensor,
        value_BGTD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **further: Any,
    ) -> tuple[torch.Tensor, None]:
        if dropout or any(further.get(name) is not None for name in REFUSED):
            raise ValueError(f"varlen attention has neither dropout nor {', '.join(REFUSED)}; use another kernel")
        if attention_mask is None or not getattr(module, "is_causal", True):
            raise ValueError("varlen attention is causal and needs the bounds of the documents in place of a mask")
        B, H, T, D = query_BHTD.shape
        options: dict[str, Any] = {}
        if groups_heads:
            options["enable_gqa"] = key_BGTD.shape[1] != H
        elif key_BGTD.shape[1] != H:
            key_BGTD, value_BGTD = (x.repeat_interleave(H // x.shape[1], 1) for x in (key_BGTD, value_BGTD))
        rows = [x.transpose(1, 2).reshape(B * T, x.shape[1], D) for x in (query_BHTD, key_BGTD, value_BGTD)]
        bounds = attention_mask.reshape(-1)
        # A window of transformers counts the token itself, that of flash attention only what stands before it. No
        # document is longer than a row: the longest one that there is would have to be asked of the device.
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        mixed = attend(*rows, bounds, bounds, T, T, scale=scaling, window_size=window, **options)
        return mixed.reshape(B, T, H, D), None

    return attention


def _bounds_of_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> torch.Tensor:
    """The bounds for a forward pass that was given none, of transformers' own mask: what cannot see what precedes it
    begins a document. Raises ValueError where there is a padding mask or a cache."""
    if attention_mask is not None or q_length != kv_length:
        raise ValueError(
            "varlen attention computes whole documents without a padding mask or a cache; "
            "use_attention('sdpa') before generating"
        )
    rows, second = torch.arange(batch_size, device=device)[:, None], torch.arange(1, q_length, device=device)[None]
    begins_BT = torch.ones(batch_size, q_length, dtype=torch.bool, device=device)
    begins_BT[:, 1:] = ~mask_function(rows, torch.zeros_like(rows), second, second - 1)
    starts = begins_BT.flatten().nonzero().flatten()
    return torch.nn.functional.pad(starts, (0, 1), value=batch_size * q_length).to(torch.int32)[None, None, None]
