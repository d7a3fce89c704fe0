"""One optimizer step over the global batch, whatever the number of ranks and micro-batches."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from backbones.inputs import PlacedInputs
from orchestrator.data.feed import StepWork
from orchestrator.planning.plan import Cell
from orchestrator.training.loss import labelled_nats, place
from orchestrator.training.trainee import Trainee

CONTINUE, STOP, TIMED_OUT = 0, 1, 2  # orders of the main rank


@dataclass(frozen=True)
class StepOutcome:
    """What a step measured over all ranks, and whether the main rank wants the run to go on."""

    loss: float
    grad_norm: float
    order: int
    seconds: float = 0.0  # what the main rank's clock showed, where it has one

    @property
    def is_finite(self) -> bool:
        """Whether the update was made."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def train_step(
    cell: Cell,
    trainee: Trainee,
    work: StepWork,
    rate: float,
    order: int = CONTINUE,
    *,
    clock: Callable[[], float] | None = None,
    batches: Iterable[PlacedInputs] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> StepOutcome:
    """One optimizer step over the global batch, with gradients left in place; collective.

    The main rank's `clock` is read before the ranks hear of each other; it has to be None on all of them or on none.
    `batches` are this rank's micro-batches, where they were made already; `meanwhile` is called before the update, when
    a device has all its work and the host has none. No update is made when loss or gradient norm is not finite.
    """
    mesh = trainee.mesh
    nats = accumulate(trainee, batches or micro_batches(trainee, work, cell.micro_batch_size), work.targets)
    # The order travels with loss and norm: one reduction a step, and every rank stops at the same step. Replicas hold
    # the same gradients, so each adds its share of their squares.
    squares = trainee.optimizers.squared_gradients() / mesh.dims.replicate
    meanwhile()
    told = (order,) if clock is None else (order, clock() if mesh.is_main else 0.0)
    sums = torch.stack((nats, squares, *(torch.full_like(nats, value) for value in told)))
    mesh.sum_over_data(sums)
    # The one time that the host waits for a device. Read a step later, it would save the launch of the update, but the
    # next step would already stand on a model that has to be recorded, stored or given up as of this one.
    total, squared_norm, decided, *seconds = sums.tolist()
    outcome = StepOutcome(total / work.targets, math.sqrt(squared_norm), int(decided), *seconds)
    if outcome.is_finite:
        trainee.optimizers.clip(outcome.grad_norm, cell.recipe.optimizer.max_grad_norm)
        trainee.optimizers.step(rate)
    return outcome


def micro_batches(trainee: Trainee, work: StepWork, size: int) -> Iterator[PlacedInputs]:
    """This rank's rows of a step, `size` at a time, on its device."""
    mesh, backbone = trainee.mesh, trainee.backbone
    share = mesh.dims.rows_of_a_rank(len(work.rows))
    for start in range(mesh.dp_rank * share, (mesh.dp_rank + 1) * share, size):
        rows = work.rows[start : min(start + size, (mesh.dp_rank + 1) * share)]
        yield place(backbone, backbone.collate(trainee.feed.examples(rows), trainee.row_width), mesh.device)


def accumulate(trainee: Trainee, batches: Iterable[PlacedInputs], targets: int) -> torch.Tensor:
    """Adds the gradients of this rank's micro-batches to what is there; returns their nats, fp64, on the device.

    The loss is the sum over all target tokens of the step divided by their number, over all ranks and micro-batches:
    FSDP averages gradients over ranks, so each micro-batch is scaled by the number of ranks.
    """
    total = torch.zeros((), dtype=torch.float64, device=trainee.mesh.device)
    for placed in batches:
        nats = trainee.mesh.faults.spoil(labelled_nats(trainee.backbone, placed).sum())
        (nats * (trainee.mesh.dp_size / targets)).backward()
        total += nats.detach()
    return total
