"""Negative log-likelihood of shifted labels. Shape suffixes: B rows, T positions, V vocabulary rows."""

import torch
from torch.nn import functional

from backbones.contract import LLMBackbone
from orchestrator.data.feed import IGNORED, Batch, as_one_row


def token_nats(backbone: LLMBackbone, batch: Batch, device: torch.device) -> torch.Tensor:
    """Negative log-likelihood in nats at each position, fp32 (B, T); 0 where the label is ignored.

    Passes position ids and neither mask nor cache: that is what keeps packed examples apart in transformers. Its flash
    kernels do so for a batch of one row only (`_is_packed_sequence`) and else let examples of a row see each other, so
    they get all rows as one.
    """
    rows = batch.labels.shape
    if str(backbone.llm.config._attn_implementation).startswith("flash"):
        batch = as_one_row(batch)
    labels_BT = torch.from_numpy(batch.labels).to(device)
    logits_BTV = backbone(
        input_ids=torch.from_numpy(batch.input_ids).to(device),
        position_ids=torch.from_numpy(batch.position_ids).to(device),
        use_cache=False,
    ).logits
    nats = functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nats.view(rows)


def summed_nats(backbone: LLMBackbone, batch: Batch, device: torch.device) -> torch.Tensor:
    """Scalar fp32: the batch's total, to be divided by the target tokens of the global step."""
    return token_nats(backbone, batch, device).sum()
