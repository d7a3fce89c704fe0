"""The language models that are trained.

A backbone is a `BackboneSpec` that some module registers when it is imported: a file of `backbones.families`, an
installed entry point of the group `backbones.families`, or a plug-in (`load_plugin`). docs/add-a-backbone.md adds one.
For one run no registration is needed: `hf:ORG/NAME@REVISION`, `hf:./FOLDER`. `fused:TOWERS+BACKBONE` is any of these
behind vision towers (`backbones.vision`). A model that needs behaviour of its own names its class in
`backbone_cls="module:Class"`: a subclass of `backbones.causal_lm.CausalLMBackbone`, or any `LLMBackbone` with the same
constructor. What OpenVLA and Prismatic import is in `backbones.prismatic`.

Importing this package, listing ids and resolving a spec load neither torch nor transformers.
"""

from typing import TYPE_CHECKING, Any

from backbones.reference import HubError, InvalidReferenceError
from backbones.registry import (
    PluginError,
    UnknownBackboneError,
    backbone_ids,
    build,
    get_spec,
    load_codec,
    load_plugin,
    register,
)
from backbones.spec import Architecture, BackboneSpec, Vision, VisionTower

if TYPE_CHECKING:
    from backbones.adaptation import apply_adaptation
    from backbones.attention import AttentionChoice, AttentionUnavailableError, resolve_attention
    from backbones.causal_lm import (
        CausalLMBackbone,
        LLaMa2LLMBackbone,
        MistralLLMBackbone,
        PhiLLMBackbone,
        Qwen25LLMBackbone,
    )
    from backbones.contract import LLMBackbone
    from backbones.hf_causal import HFCausalLLMBackbone
    from backbones.loading import WeightsError
    from backbones.prompting import Codec, CodecError, Encoded, PromptBuilder

_LAZY = {
    "AttentionChoice": "attention",
    "AttentionUnavailableError": "attention",
    "CausalLMBackbone": "causal_lm",
    "Codec": "prompting",
    "CodecError": "prompting",
    "Encoded": "prompting",
    "HFCausalLLMBackbone": "hf_causal",
    "LLMBackbone": "contract",
    "LLaMa2LLMBackbone": "causal_lm",
    "MistralLLMBackbone": "causal_lm",
    "PhiLLMBackbone": "causal_lm",
    "PromptBuilder": "prompting",
    "Qwen25LLMBackbone": "causal_lm",
    "WeightsError": "loading",
    "apply_adaptation": "adaptation",
    "resolve_attention": "attention",
}

__all__ = [
    "Architecture",
    "AttentionChoice",
    "AttentionUnavailableError",
    "BackboneSpec",
    "CausalLMBackbone",
    "Codec",
    "CodecError",
    "Encoded",
    "HFCausalLLMBackbone",
    "HubError",
    "InvalidReferenceError",
    "LLMBackbone",
    "LLaMa2LLMBackbone",
    "MistralLLMBackbone",
    "PhiLLMBackbone",
    "PluginError",
    "PromptBuilder",
    "Qwen25LLMBackbone",
    "UnknownBackboneError",
    "Vision",
    "VisionTower",
    "WeightsError",
    "apply_adaptation",
    "backbone_ids",
    "build",
    "get_spec",
    "load_codec",
    "load_plugin",
    "register",
    "resolve_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
