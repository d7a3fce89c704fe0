"""AdamW with weight decay on matrices only."""

import torch
from torch import nn

from orchestrator.spec_files.spec import Optimizer


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors and biases (norms included) are not decayed."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = {name for name, parameter in trainable if parameter.ndim <= 1 or name.endswith(".bias")}
    groups = [
        {"params": [p for name, p in trainable if name not in plain], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trainable if name in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.learning_rate, betas=settings.betas
    )


def decay_counts(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """How many parameter elements are decayed and how many are not."""
    counts = {"decay_parameters": 0, "no_decay_parameters": 0}
    for group in optimizer.param_groups:
        key = "decay_parameters" if group["weight_decay"] else "no_decay_parameters"
        counts[key] += sum(parameter.numel() for parameter in group["params"])
    return counts
