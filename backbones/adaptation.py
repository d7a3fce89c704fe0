"""Which parameters of a backbone learn."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backbones.contract import LLMBackbone

ADAPTATIONS = ("full", "last_layer", "bias_only")


def apply_adaptation(backbone: "LLMBackbone", kind: str) -> int:
    """Sets `requires_grad` of every parameter for full | last_layer | bias_only; returns how many numbers learn.

    last_layer: the input embedding, the last decoder layer and the output head. Raises ValueError for another kind,
    and where nothing would learn.
    """
    if kind == "lora":
        raise ValueError(f"lora is not available in this version; choose one of {', '.join(ADAPTATIONS)}")
    if kind not in ADAPTATIONS:
        raise ValueError(f"unknown adaptation {kind!r}; choose one of {', '.join(ADAPTATIONS)}")
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(kind == "full" or (kind == "bias_only" and name.endswith(".bias")))
    if kind == "last_layer":
        for module in backbone.last_layer_finetune_modules:
            module.requires_grad_(True)
    trainable = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    if trainable == 0:
        raise ValueError(f"adaptation {kind}: nothing of {backbone.identifier} would learn; choose full or last_layer")
    return trainable
