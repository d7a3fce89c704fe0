"""The language models that are trained.

How to add a backbone: write one file in `backbones/families/` with one registration. Nothing else changes.

    from backbones.registry import register
    from backbones.spec import Architecture, BackboneSpec

    register(BackboneSpec(
        backbone_id="my-model-7b",
        family="my-model",
        hf_hub_path="my-org/my-model-7b",           # hub id, or an absolute folder
        revision="<40 hex digits>",
        parameters=7_000_000_000,
        prompt_builder="ChatTemplatePromptBuilder",  # the tokenizer's own; or a format of backbones.prompting
        context_length=8192,
        licence="apache-2.0",
        llm_cls="LlamaForCausalLM",                  # any causal language model of transformers
        decoder_layer_cls="LlamaDecoderLayer",
        architecture=Architecture(...),
    ))

The file is found when the first id is looked up, so it must not import torch. A model that needs behaviour of its own
names its class in `backbone_cls="module:Class"`: a subclass of `backbones.causal_lm.CausalLMBackbone` (or any
`LLMBackbone` with the same constructor) in a module of its own. A package outside this one registers by an entry point
of the group `backbones.families`. For one run, no registration is needed: `hf:ORG/NAME@REVISION`, `hf:./FOLDER`.

Importing this package, listing ids and resolving a spec load neither torch nor transformers.
"""

from typing import TYPE_CHECKING, Any

from backbones.reference import HubError, InvalidReferenceError
from backbones.registry import UnknownBackboneError, backbone_ids, build, get_spec, load_codec, register
from backbones.spec import Architecture, BackboneSpec

if TYPE_CHECKING:
    from backbones.adaptation import apply_adaptation
    from backbones.attention import AttentionChoice, AttentionUnavailableError, resolve_attention
    from backbones.causal_lm import CausalLMBackbone, LLaMa2LLMBackbone, MistralLLMBackbone, PhiLLMBackbone
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
    "PromptBuilder",
    "UnknownBackboneError",
    "WeightsError",
    "apply_adaptation",
    "backbone_ids",
    "build",
    "get_spec",
    "load_codec",
    "register",
    "resolve_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
