"""Which parameters of a backbone learn, and the adapters that learn in their place."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backbones.errors import BackboneError
from backbones.parameters import is_adapter, local_rows

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from backbones.hf_causal import HFCausalLLMBackbone


class AdaptationError(BackboneError, ValueError):
    """There is no such adaptation, or nothing of this backbone would learn under it."""

    status = "INFEASIBLE"


ADAPTATIONS = ("full", "last_layer", "bias_only", "lora")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: W x + alpha / rank * B A x (arXiv:2106.09685).

    `target_modules` are last names of modules, such as q_proj; None: every matrix of the decoder layers.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None


def apply_adaptation(backbone: "HFCausalLLMBackbone", kind: str, lora: Lora | None = None) -> int:
    """Sets `requires_grad` of every parameter for full | last_layer | bias_only | lora; returns how many numbers learn.

    last_layer: the input embedding, the last decoder layer and the output head. lora: adapters alone, whose values
    `init_adapters` sets. Raises AdaptationError for another kind, for target modules that do not exist, and
    where nothing would learn.
    """
    learning = _learning(backbone, kind, lora)
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
            return backbone.parameters()
        case "last_layer":
            return (parameter for module in backbone.last_layer_finetune_modules for parameter in module.parameters())
        case "bias_only":
            return (parameter for name, parameter in backbone.named_parameters() if name.endswith(".bias"))
        case "lora":
            _add_adapters(backbone, lora or Lora())
            return (parameter for name, parameter in backbone.named_parameters() if is_adapter(name))
    raise AdaptationError(f"unknown adaptation {kind!r}; choose one of {', '.join(ADAPTATIONS)}")


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
        target_modules=list(lora.target_modules or known),
        fan_in_fan_out=_stores_transposed(backbone),
        bias="none",
    )
    backbone.llm.add_adapter(config)


def _matrices(layer: "nn.Module") -> list[str]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _stores_transposed(backbone: "HFCausalLLMBackbone") -> bool:
    """GPT-2 keeps its matrices as (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in backbone.decoder_layers.modules())
