"""Predicted peak memory of a device, in closed form: what lives at each moment of a step. No torch, ray, mlflow.

Every term is counted in tensors that exist, none is fitted; `benchmarks/memory_plan.py` measures them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from backbones.spec import BackboneSpec
from orchestrator.hardware import GIB
from orchestrator.planning.sizes.activations import FP32, Activations
from orchestrator.planning.sizes.chunks import positions_per_chunk
from orchestrator.planning.sizes.units import Units
from orchestrator.spec_files.spec import Placement, Recipe

Moment = Literal["loss", "first layer", "last layer", "reduction", "embedding", "root"]

# Log-probabilities, their gradient and that of the logits, fp32 each, are alive together in the backward pass of
# torch's cross entropy.
LOGIT_BYTES = 3 * FP32


@dataclass(frozen=True)
class MemoryPrediction:
    """GiB of one device at its peak. `moment` says when that is; the terms after it are those of that moment.

    `absent` is what of the gradients does not exist yet: with one micro-batch a step, none does while the loss is
    computed.
    """

    weights: float
    gradients: float
    optimizer: float
    moment: Moment
    gathered: float  # parameters of whole FSDP units, in the dtype that computes
    reducing: float  # gradients of whole units, on their way to the shards
    activations: float
    logits: float
    absent: float

    @property
    def states(self) -> float:
        """Weights, gradients and optimizer state: what a device holds whatever the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def working(self) -> float:
        """What the peak needs beside them."""
        return self.gathered + self.reducing + self.activations + self.logits - self.absent

    @property
    def total(self) -> float:
        return self.states + self.working


def predict_memory(
    spec: BackboneSpec,
    recipe: Recipe,
    placement: Placement,
    micro_batch_size: int,
    *,
    checkpointing: bool | str | None = None,
    reshard_after_forward: bool = True,
    compiled: bool = False,
) -> MemoryPrediction:
    """The largest of the moments of a step, once the optimizer has its state.

    `checkpointing` is the recipe's unless given: True (and `auto`, until it is decided), False, or selective. Without
    `reshard_after_forward` every unit stays gathered until its backward pass; `compiled`: the decoder layers are.
    """
    units = Units(spec, recipe.adaptation)
    activations = Activations(
        units,
        rows=micro_batch_size,
        length=recipe.sequence_length,
        compute_bytes=2 if recipe.precision == "bf16" else 4,
        checkpointing=recipe.activation_checkpointing if checkpointing is None else checkpointing,
        compiled=compiled,
        masked=_has_masks(recipe, placement) or spec.vision is not None,
    )
    rows = placement.parallel.rows_of_a_rank(recipe.global_batch_size)
    step = _Step(
        units,
        activations,
        shards=placement.parallel.shard,
        accumulates=rows > micro_batch_size,
        reshards=reshard_after_forward,
        on_gloo=placement.gpus_per_worker == 0,
    )
    moment, terms = max(step.moments.items(), key=lambda one: one[1].total)
    return MemoryPrediction(
        weights=FP32 * units.whole / step.shards / GIB,
        gradients=FP32 * units.learning / step.shards / GIB,
        optimizer=recipe.optimizer.state_bytes * units.learning / step.shards / GIB,
        moment=moment,
        gathered=terms.gathered / GIB,
        reducing=terms.reducing / GIB,
        activations=terms.activations / GIB,
        logits=terms.logits / GIB,
        absent=terms.absent / GIB,
    )


def logits_positions(spec: BackboneSpec, tokens: int) -> int:
    """How many of a micro-batch's positions have their logits at once, if each of them is labelled."""
    return min(tokens, positions_per_chunk(spec.architecture.vocab_size))


def _has_masks(recipe: Recipe, placement: Placement) -> bool:
    """Whether packed rows are kept apart by masks: kernels that are told lengths, which a GPU has, need none."""
    on_cpu = placement.gpus_per_worker == 0
    return recipe.packing and (recipe.attention in ("eager", "sdpa") or (recipe.attention == "auto" and on_cpu))


@dataclass(frozen=True)
class _Terms:
    """Bytes at one moment, beside weights and optimizer state, all gradients taken as there."""

    gathered: float = 0
    reducing: float = 0
    activations: float = 0
    logits: float = 0
    absent: float = 0

    @property
    def total(self) -> float:
        return self.gathered + self.reducing + self.activations + self.logits - self.absent


@dataclass(frozen=True)
class _Step:
    """One optimizer step of a rank. `accumulates`: a step has several micro-batches."""

    units: Units
    activations: Activations
    shards: int
    accumulates: bool
    reshards: bool
    on_gloo: bool

    @cached_property
    def moments(self) -> dict[Moment, _Terms]:
        """Source: when torch.distributed.fsdp gathers, frees and reduces (`_fsdp_param_group.py`)."""
        units, kept, c = self.units, self.activations, self.activations.compute_bytes
        root, layer, unit = c * units.root, c * units.layer, units.learning_of_a_layer
        all_layers = layer * units.sizes.num_layers
        ahead = layer if self.shards > 1 else 0  # the next unit is gathered while this one computes
        head = c * units.learning_head  # a gradient that waits, whole, until the root is reduced at the end
        buffer = FP32 * unit  # what the unit before was reduced from: kept until the next one is
        logits = LOGIT_BYTES * units.sizes.vocab_size * logits_positions(units.spec, kept.tokens)
        recomputed = kept.layer if kept.checkpointing else 0
        return {
            "loss": _Terms(
                gathered=root + (0 if self.reshards else all_layers),
                activations=kept.kept + kept.kept_by_head,
                logits=logits,
                absent=self._absent(units.learning),
            ),
            "first layer": _Terms(
                gathered=root + (layer + ahead if self.reshards else all_layers),
                reducing=head,
                activations=kept.kept + recomputed + kept.workspace,
                absent=self._absent(units.learning),
            ),
            "last layer": _Terms(
                gathered=root + layer,
                reducing=head + buffer,
                activations=kept.layer + kept.workspace + kept.hidden,
                absent=self._absent(unit + units.learning_root),
            ),
            "reduction": _Terms(
                gathered=root + ahead,
                reducing=head + self._reduced(unit),
                activations=kept.hidden,
                absent=self._absent(units.learning_root),
            ),
            "embedding": _Terms(
                gathered=root,
                reducing=c * (units.learning_root + self._second_of_a_tied) + buffer,
                activations=kept.hidden,
                absent=self._absent(units.learning_root),
            ),
            "root": _Terms(reducing=self._reduced(units.learning_root, last=units.learning_head)),
        }

    @property
    def _second_of_a_tied(self) -> int:
        """A tied embedding's own gradient, before it is added to the one that came from the head."""
        return self.units.learning_head if self.units.sizes.tied_embeddings else 0

    def _reduced(self, numbers: float, last: float = 0) -> float:
        """While a unit is reduced: its gradients beside their fp32 copy, and after they are freed the copy beside the
        new part, which is added to the old one where there is one.

        FSDP's loop over the gradients holds on to the `last` of them, and gloo reduces a copy of its own.
        """
        copied = self.activations.compute_bytes * numbers - self._absent(numbers)
        added = FP32 * numbers / self.shards if self.accumulates else 0
        if self.shards > 1:
            added += self.activations.compute_bytes * last + (FP32 * numbers if self.on_gloo else 0)
        return FP32 * numbers + max(copied, added)

    def _absent(self, numbers: float) -> float:
        """Gradients of these numbers, unless an earlier micro-batch has left them."""
        return 0 if self.accumulates else FP32 * numbers / self.shards
