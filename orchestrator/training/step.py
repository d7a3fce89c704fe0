"""One optimizer step over the global batch, whatever the number of ranks and micro-batches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor

from orchestrator.data.feed import StepWork
from orchestrator.planning.plan import Cell
from orchestrator.training.loss import summed_nats
from orchestrator.training.trainee import Trainee

CONTINUE, STOP, TIMED_OUT = 0, 1, 2  # orders of the main rank


@dataclass(frozen=True)
class StepOutcome:
    """What a step measured over all ranks, and whether the main rank wants the run to go on."""

    loss: float
    grad_norm: float
    order: int

    @property
    def is_finite(self) -> bool:
        """Whether the update was made."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def train_step(cell: Cell, trainee: Trainee, work: StepWork, rate: float, order: int = CONTINUE) -> StepOutcome:
    """One optimizer step over the global batch, with gradients left in place; collective.

    The loss is the sum over all target tokens of the step divided by their number, over all ranks and micro-batches:
    FSDP averages gradients over ranks, so each micro-batch is scaled by the number of ranks. No update is made when
    loss or gradient norm is not finite.
    """
    mesh = trainee.mesh
    share = mesh.dims.rows_of_a_rank(len(work.rows))
    mine = work.rows[mesh.dp_rank * share : (mesh.dp_rank + 1) * share]
    sums = torch.zeros(2, dtype=torch.float64, device=mesh.device)
    for rows in _chunks(mine, cell.micro_batch_size):
        nats = summed_nats(trainee.backbone, trainee.backbone.collate(trainee.feed.examples(rows)), mesh.device)
        (nats * (mesh.dp_size / work.targets)).backward()
        sums[0] += nats.detach()
    # The order travels with the loss: one reduction a step, and every rank stops at the same step.
    sums[1] = order
    mesh.sum_over_data(sums)
    loss = float(sums[0]) / work.targets
    norm = torch.nn.utils.clip_grad_norm_(
        [p for p in trainee.backbone.llm.parameters() if p.requires_grad], cell.recipe.optimizer.max_grad_norm
    )
    grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    outcome = StepOutcome(loss, grad_norm, int(sums[1]))
    if outcome.is_finite:
        trainee.optimizers.step(rate)
    return outcome


def _chunks(rows: tuple[tuple[int, ...], ...], size: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
