"""Negative log-likelihood of shifted labels. Shape suffixes: B rows, T positions, V vocabulary rows."""

import torch
from torch.nn import functional

from backbones.contract import TrainableBackbone
from backbones.inputs import IGNORED, Inputs


def token_nats(backbone: TrainableBackbone, inputs: Inputs, device: torch.device) -> torch.Tensor:
    """Negative log-likelihood in nats at each position, fp32 (B, T); 0 where the label is ignored.

    The flash kernels of transformers keep packed examples apart for a batch of one row only (`_is_packed_sequence`) and
    else let examples of a row see each other, so they get all rows as one.
    """
    shape = inputs.labels_BT.shape
    if str(backbone.llm.config._attn_implementation).startswith("flash"):
        inputs = inputs.as_one_row()
    labels_BT = torch.from_numpy(inputs.labels_BT).to(device)
    logits_BTV = backbone(**inputs.forward_arguments(device), use_cache=False).logits
    nats = functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nats.view(shape)


def summed_nats(backbone: TrainableBackbone, inputs: Inputs, device: torch.device) -> torch.Tensor:
    """Scalar fp32: the total of all rows, to be divided by the target tokens of the global step."""
    return token_nats(backbone, inputs, device).sum()
