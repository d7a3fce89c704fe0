"""What fits a device: its size, the micro-batch, and what would make a backbone fit. No torch, ray, mlflow."""

from collections.abc import Iterator

from backbones.registry import BackboneSpec
from orchestrator.planning.sizes.footprint import MemoryPrediction, predict_memory
from orchestrator.spec_files.spec import Adaptation, Placement, Recipe

__all__ = [
    "DEVICE_GIB",
    "MemoryPrediction",
    "choose_micro_batch_size",
    "find_device_gib",
    "find_shortage",
    "fits",
    "predict_memory",
]

RESERVED_SHARE = 0.08  # CUDA context, NCCL buffers, fragmentation

_RECOMPUTE = "turn recipe.activation_checkpointing on"

# GiB of one device, by the Ray accelerator type of `placement.accelerator` (ray.util.accelerators).
# Where a type comes in several sizes: the smallest.
DEVICE_GIB = {
    "GB300": 279, "B300": 270, "GB200": 186, "B200": 180, "H200": 141, "H20": 96, "H100": 80, "A100-80G": 80,
    "A100-40G": 40, "A100": 40, "RTX-PRO-6000": 96, "L40S": 48, "A10G": 24, "L4": 24, "V100": 16, "T4": 16,
    "P100": 16, "P4": 8, "K80": 12,
}  # fmt: skip


def find_device_gib(placement: Placement) -> float | None:
    """Usable GiB of one device of the placement, or None when the plan names no known accelerator."""
    size = DEVICE_GIB.get(placement.accelerator or "")
    return None if size is None else size * (1 - RESERVED_SHARE)


def choose_micro_batch_size(spec: BackboneSpec, recipe: Recipe, placement: Placement) -> int:
    """The recipe's number, or for `auto` the largest divisor of a worker's share, up to 32 rows, that fits the device.

    Where the device is not known, at most 8 rows.
    """
    if recipe.micro_batch_size != "auto":
        return recipe.micro_batch_size
    share = placement.parallel.rows_of_a_rank(recipe.global_batch_size)
    usable = find_device_gib(placement)
    divisors = [rows for rows in range(1, min(share, 32 if usable else 8) + 1) if share % rows == 0]
    if usable is None:
        return divisors[-1]
    fitting = [rows for rows in divisors if predict_memory(spec, recipe, placement, rows).total <= usable]
    return fitting[-1] if fitting else 1


def fits(spec: BackboneSpec, recipe: Recipe, placement: Placement, micro_batch_size: int) -> bool | None:
    """Whether the device holds it; None where the plan does not know the device."""
    usable = find_device_gib(placement)
    return None if usable is None else predict_memory(spec, recipe, placement, micro_batch_size).total <= usable


def find_shortage(spec: BackboneSpec, recipe: Recipe, placement: Placement) -> str | None:
    """Why a backbone does not fit its device, with both numbers and what would make it fit; None when it fits."""
    usable = find_device_gib(placement)
    needed = predict_memory(spec, recipe, placement, choose_micro_batch_size(spec, recipe, placement))
    if usable is None or needed.total <= usable:
        return None
    remedy = ", or ".join(_changes_that_fit(spec, recipe, placement)) or "lower recipe.sequence_length"
    return (
        f"{spec.backbone_id} needs about {needed.total:.0f} GiB per GPU: {needed.states:.0f} for weights, gradients "
        f"and {recipe.optimizer.title} state, {needed.working:.0f} for gathered layers and activations. The plan gives "
        f"it {usable:.0f} usable GiB of one {placement.accelerator}; {remedy}"
    )


def _changes_that_fit(spec: BackboneSpec, recipe: Recipe, placement: Placement) -> Iterator[str]:
    """The single changes of a spec after which it fits."""
    changes = {
        "set recipe.micro_batch_size to auto": (recipe.model_copy(update={"micro_batch_size": "auto"}), placement),
    }
    checkpointing: bool | str = recipe.activation_checkpointing
    if not checkpointing:
        for value, text in (("selective", "set recipe.activation_checkpointing to selective"), (True, _RECOMPUTE)):
            changes[text] = (recipe.model_copy(update={"activation_checkpointing": value}), placement)
    elif checkpointing == "selective":
        changes[_RECOMPUTE] = (recipe.model_copy(update={"activation_checkpointing": True}), placement)
    more = range(placement.most + 1, recipe.global_batch_size + 1)
    for workers in (n for n in more if recipe.global_batch_size % n == 0 and n % placement.replicas == 0):
        enough = placement.model_copy(update={"workers": workers})
        changes[f"raise placement.workers to {workers}"] = (recipe, enough)
        if _fits(spec, recipe, enough):
            break
    if recipe.adaptation.kind == "full":
        for kind in ("lora", "last_layer"):
            partial = recipe.model_copy(update={"adaptation": Adaptation(kind=kind)})
            changes[f"set recipe.adaptation.kind to {kind}"] = (partial, placement)
    return (text for text, (changed, placed) in changes.items() if _fits(spec, changed, placed))


def _fits(spec: BackboneSpec, recipe: Recipe, placement: Placement) -> bool:
    rows = choose_micro_batch_size(spec, recipe, placement)
    whole = placement.parallel.rows_of_a_rank(recipe.global_batch_size) % rows == 0
    return whole and fits(spec, recipe, placement, rows) is True
