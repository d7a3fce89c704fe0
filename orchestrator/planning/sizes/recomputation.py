"""What the memory plan leaves room for: kept activations, weights that stay gathered. No torch, ray, mlflow."""

from collections.abc import Iterable
from typing import Literal

from backbones.registry import BackboneSpec
from orchestrator.hardware import GIB
from orchestrator.planning.sizes.memory import choose_micro_batch_size, find_device_gib, fits, predict_memory
from orchestrator.spec_files.spec import Placement, Recipe

# Bytes of each parameter that stays gathered, in units of the compute dtype: its value, and what FSDP and the allocator
# hold beside it. Measured for 1.72 B parameters in bf16 on an H200: 9.0 GiB, which is 5.6 bytes a parameter.
GATHERED_COPIES = 3


def resolve_activation_checkpointing(
    recipe: Recipe, placement: Placement, specs: Iterable[BackboneSpec]
) -> bool | Literal["selective"]:
    """Whether the cells of a job recompute activations: what the recipe says, and for `auto` one answer for them all.

    auto: not where every backbone fits its device with all activations kept. Where the device is not known, they are
    recomputed.
    """
    if recipe.activation_checkpointing != "auto":
        return recipe.activation_checkpointing
    keeping = recipe.model_copy(update={"activation_checkpointing": False})
    return not all(fits(spec, keeping, placement, choose_micro_batch_size(spec, keeping, placement)) for spec in specs)


def keeps_weights_gathered(spec: BackboneSpec, recipe: Recipe, placement: Placement, micro_batch_size: int) -> bool:
    """Whether a layer's weights may stay gathered from its forward to its backward pass: where they all fit the device.

    FSDP then gathers each layer once for both. Where the device is not known: no.
    """
    usable = find_device_gib(placement)
    if usable is None:
        return False
    compute_bytes = 2 if recipe.precision == "bf16" else 4
    whole = spec.parameters * compute_bytes * GATHERED_COPIES / GIB
    return predict_memory(spec, recipe, placement, micro_batch_size).total + whole <= usable
