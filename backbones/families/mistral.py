"""Mistral 7B v0.1, the ids that OpenVLA and Prismatic ship. Sizes: arXiv:2310.06825 and the models' config.json."""

from dataclasses import replace
from typing import Any

from backbones.registry import register
from backbones.spec import Architecture, BackboneSpec

_PURE = BackboneSpec(
    backbone_id="mistral-v0.1-7b-pure",
    family="mistral",
    hf_hub_path="mistralai/Mistral-7B-v0.1",
    parameters=7_241_732_096,
    prompt_builder="PurePromptBuilder",
    prompt_variant="legacy",
    context_length=32768,
    licence="apache-2.0",
    pad_token="<PAD>",
    requires_bos=True,
    llm_cls="MistralForCausalLM",
    decoder_layer_cls="MistralDecoderLayer",
    backbone_cls="backbones.families.mistral:MistralLLMBackbone",
    architecture=Architecture(
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=32000,
        tied_embeddings=False,
    ),
    gated=True,
)

register(_PURE)
register(
    replace(
        _PURE,
        backbone_id="mistral-v0.1-7b-instruct",
        hf_hub_path="mistralai/Mistral-7B-Instruct-v0.1",
        prompt_builder="MistralInstructPromptBuilder",
    )
)


def __getattr__(name: str) -> Any:
    """The family's class, imported on request: it needs torch, the specs above do not."""
    if name == "MistralLLMBackbone":
        from backbones.causal_lm import MistralLLMBackbone

        return MistralLLMBackbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
