"""Negative log-likelihood of shifted labels. Shape suffixes: B rows, T positions, N labelled positions."""

import torch

from backbones.contract import TrainableBackbone
from backbones.inputs import Inputs, PlacedInputs
from orchestrator.planning.sizes.chunks import CACHED_BYTES, MOST_BYTES, count_chunks


def place(backbone: TrainableBackbone, inputs: Inputs, device: torch.device) -> PlacedInputs:
    """Rows on a device, as the backbone's kernel takes them."""
    return backbone.attention.arrange(inputs).on(device)


def labelled_nats(backbone: TrainableBackbone, placed: PlacedInputs) -> torch.Tensor:
    """Negative log-likelihood in nats of each labelled position, fp32 (N,)."""
    recomputes = torch.is_grad_enabled()  # each chunk, in the backward pass
    most_bytes = MOST_BYTES if recomputes or placed.positions_N.device.type != "cpu" else CACHED_BYTES
    return backbone.nats(placed, count_chunks(len(placed.positions_N), backbone.tokenizer_rows.total, most_bytes))


def token_nats(backbone: TrainableBackbone, inputs: Inputs, device: torch.device) -> torch.Tensor:
    """Negative log-likelihood in nats at each position, fp32 (B, T); 0 where the label is ignored."""
    placed = place(backbone, inputs, device)
    nats_N = labelled_nats(backbone, placed)
    everywhere = nats_N.new_zeros(inputs.labels_BT.size)
    return everywhere.index_copy(0, placed.positions_N, nats_N).view(inputs.labels_BT.shape)


def all_logits(backbone: TrainableBackbone, placed: PlacedInputs) -> torch.Tensor:
    """Logits of every position, the rows laid end to end, (B * T, vocabulary)."""
    logits: torch.Tensor = backbone(**placed.arguments, use_cache=False).logits
    return logits.flatten(0, 1)


def summed_nats(backbone: TrainableBackbone, inputs: Inputs, device: torch.device) -> torch.Tensor:
    """Scalar fp32: the total of all rows, to be divided by the target tokens of the global step."""
    return labelled_nats(backbone, place(backbone, inputs, device)).sum()
