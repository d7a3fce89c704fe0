"""Which parameters of a backbone learn, and the adapters that learn in their place."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backbones.errors import BackboneError
from backbones.parameters import is_adapter, local_rows

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from backbones.hf_causal import HFCausalLLMBackbone


class AdaptationError(BackboneError, ValueError):
    """There is no such adaptation, or nothing of this backbone would learn under it."""

    status = "INFEASIBLE"


ADAPTATIONS = ("full", "last_layer", "bias_only", "lora", "connector")


VISION_KINDS = ("full", "last_layer")  # under which vision towers may learn too
VisionMode = Literal["frozen", "full"]


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: W x + alpha / rank * B A x (arXiv:2106.09685).

    `target_modules` are last names of modules, such as q_proj; None: every matrix of the decoder layers.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None


def apply_adaptation(
    backbone: "HFCausalLLMBackbone", kind: str, lora: Lora | None = None, vision: VisionMode = "frozen"
) -> int:
    """Sets `requires_grad` of every parameter for full | last_layer | bias_only | lora | connector; returns how many
    numbers learn.

    last_layer: the input embedding, the last decoder layer and the output head. lora: adapters alone, whose values
    `init_adapters` sets. connector: what hands on to the language model what a vision tower saw. Of a backbone that
    sees, full is the language model and the connector; `vision` "full" adds the towers to it, and towers and connector
    to last_layer. Raises AdaptationError for another kind, for target modules that do not exist, and where nothing
    would learn.

    OpenVLA's stages: align is connector; finetune and vla-train are full; full-finetune and vla-full-train are full
    with vision full; last-layer is last_layer; vla-sandwich-train is last_layer with vision full.
    """
    learning = [*_learning(backbone, kind, lora), *_seeing(backbone, kind, vision)]
    backbone.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    trainable = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    if trainable == 0:
        raise AdaptationError(
            f"adaptation {kind}: nothing of {backbone.identifier} would learn; choose full or last_layer"
        )
    return trainable


def _learning(backbone: "HFCausalLLMBackbone", kind: str, lora: Lora | None) -> "Iterable[nn.Parameter]":
    """The parameters that learn; lora's are added here."""
    match kind:
        case "full":
            return _of_parts(backbone, "language", "connector")
        case "connector":
            return _of_parts(backbone, "connector")
        case "last_layer":
            return (parameter for module in backbone.last_layer_finetune_modules for parameter in module.parameters())
        case "bias_only":
            named = backbone.llm.named_parameters()
            return (one for name, one in named if name.endswith(".bias") and backbone.part_of(name) == "language")
        case "lora":
            _add_adapters(backbone, lora or Lora())
            return (parameter for name, parameter in backbone.named_parameters() if is_adapter(name))
    raise AdaptationError(f"unknown adaptation {kind!r}; choose one of {', '.join(ADAPTATIONS)}")


def _seeing(backbone: "HFCausalLLMBackbone", kind: str, vision: VisionMode) -> "Iterable[nn.Parameter]":
    """What learns beside the language model where the towers do."""
    if vision == "frozen":
        return ()
    if kind not in VISION_KINDS:
        raise AdaptationError(f"adaptation {kind} leaves the vision tower as it is; set vision to frozen")
    return _of_parts(backbone, "vision", "connector")


def _of_parts(backbone: "HFCausalLLMBackbone", *parts: str) -> "Iterable[nn.Parameter]":
    return (one for name, one in backbone.llm.named_parameters() if backbone.part_of(name) in parts)


def lora_targets(backbone: "HFCausalLLMBackbone") -> tuple[str, ...]:
    """The last names of all matrices in the decoder layers: what lora adapts unless told otherwise."""
    matrices = {name.rpartition(".")[2] for layer in backbone.decoder_layers for name in _matrices(layer)}
    return tuple(sorted(matrices))


def init_adapters(llm: "PreTrainedModel", seed: int) -> None:
    """A as peft draws it (Kaiming uniform), B zero: the adapted model starts as the model.

    Every rank draws the whole of A, which is small, from `seed`, and keeps its rows.
    """
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if not is_adapter(name):
                continue
            full = torch.zeros(parameter.shape, device="cpu")
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(full, a=math.sqrt(5), generator=generator)
            local, first = local_rows(parameter)
            local.copy_(full[first : first + len(local)])


def _add_adapters(backbone: "HFCausalLLMBackbone", lora: Lora) -> None:
    from peft import LoraConfig, TaskType

    known = lora_targets(backbone)
    unknown = sorted(set(lora.target_modules or ()) - set(known))
    if unknown:
        raise AdaptationError(
            f"lora: {backbone.identifier} has no {', '.join(unknown)} in its decoder layers; choose target_modules "
            f"among {', '.join(known)}"
        )
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(backbone, set(lora.target_modules or known)),
        fan_in_fan_out=_stores_transposed(backbone),
        bias="none",
    )
    backbone.llm.add_adapter(config)


def _targets(backbone: "HFCausalLLMBackbone", wanted: set[str]) -> list[str]:
    """The matrices to adapt as peft is told: by last names, but by full names where a vision tower has such too."""
    if not backbone.vision_layers:
        return sorted(wanted)
    inside = {module for layer in backbone.decoder_layers for module in layer.modules()}
    named = backbone.llm.named_modules()
    return [name for name, module in named if module in inside and name.rpartition(".")[2] in wanted]


def _matrices(layer: "nn.Module") -> list[str]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _stores_transposed(backbone: "HFCausalLLMBackbone") -> bool:
    """GPT-2 keeps its matrices as (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in backbone.decoder_layers.modules())
