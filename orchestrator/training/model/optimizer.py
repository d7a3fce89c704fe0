"""The optimizers by kind, behind one object: AdamW, with weight decay on matrices only.

Another kind is a builder in `BUILDERS`, and a value of `optimizer.kind` in the spec.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from orchestrator.spec_files.spec import Optimizer


@dataclass(frozen=True)
class Part:
    """A torch optimizer and the share of the scheduled rate that it runs at."""

    optimizer: torch.optim.Optimizer
    rate_scale: float = 1.0


@dataclass(frozen=True)
class Optimizers:
    """What updates a model: one torch optimizer, or several that share its parameters among them."""

    parts: tuple[Part, ...]

    @property
    def torch_optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """What checkpoints store, each under the names of its parameters."""
        return tuple(part.optimizer for part in self.parts)

    @cached_property
    def learning(self) -> tuple[nn.Parameter, ...]:
        """Every parameter that is updated."""
        groups = (group for part in self.parts for group in part.optimizer.param_groups)
        return tuple(parameter for group in groups for parameter in group["params"])

    def squared_gradients(self) -> torch.Tensor:
        """Sum of the squares of the gradients in this rank's shards, scalar fp64 on their device; nobody waits."""
        norms = torch._foreach_norm(self._local_gradients(), 2.0)
        return torch.stack(norms).double().square().sum()

    def clip(self, norm: float, most: float) -> None:
        """Scales gradients of norm `norm` down to at most `most`, as `torch.nn.utils.clip_grad_norm_` does."""
        scale = most / (norm + 1e-6)
        if scale < 1:
            torch._foreach_mul_(self._local_gradients(), scale)

    @torch.no_grad()
    def _local_gradients(self) -> list[torch.Tensor]:
        """Each gradient as far as this rank holds it: arithmetic on them is ten times cheaper than on DTensors."""
        found = (parameter.grad for parameter in self.learning if parameter.grad is not None)
        return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in found]

    def step(self, rate: float) -> None:
        """One update at a scheduled learning rate."""
        for part in self.parts:
            for group in part.optimizer.param_groups:
                group["lr"] = rate * part.rate_scale
            part.optimizer.step()

    def zero_grad(self) -> None:
        """Forgets every gradient."""
        for part in self.parts:
            part.optimizer.zero_grad()

    def decay_counts(self) -> dict[str, int]:
        """How many parameter elements are decayed and how many are not."""
        counts = {"decay_parameters": 0, "no_decay_parameters": 0}
        for group in (group for part in self.parts for group in part.optimizer.param_groups):
            key = "decay_parameters" if group["weight_decay"] else "no_decay_parameters"
            counts[key] += sum(parameter.numel() for parameter in group["params"])
        return counts

    def state_dtypes(self) -> Iterator[torch.dtype]:
        """The dtype of every tensor of state but the counts of steps."""
        for state in (state for part in self.parts for state in part.optimizer.state.values()):
            yield from (value.dtype for name, value in state.items() if name != "step")


def build_optimizers(model: nn.Module, settings: Optimizer) -> Optimizers:
    """Optimizers over the trainable parameters of a sharded model, as the spec asks."""
    return BUILDERS[settings.kind](model, settings)


def _adamw(model: nn.Module, settings: Optimizer) -> Optimizers:
    """Vectors and biases (norms included) are not decayed.

    Fused: one pass over memory instead of a dozen. Its results are those of the others but for rounding.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = {name for name, parameter in trainable if parameter.ndim <= 1 or name.endswith(".bias")}
    groups = [
        {"params": [p for name, p in trainable if name not in plain], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trainable if name in plain], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    return Optimizers((Part(optimizer),))


BUILDERS: dict[str, Callable[[nn.Module, Optimizer], Optimizers]] = {"adamw": _adamw}
