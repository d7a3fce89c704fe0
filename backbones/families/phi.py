"""Phi-2, the id that OpenVLA and Prismatic ship. Sizes: the model's config.json.

The shipped id drops 896 unused embedding rows and learns a prompt that ends in a space, as upstream does; the `-fixed`
id keeps the rows and lets the answer open with that space, where the vocabulary has it.
"""

from dataclasses import replace
from typing import Any

from backbones.registry import register
from backbones.spec import Architecture, BackboneSpec

_PHI_2 = BackboneSpec(
    backbone_id="phi-2-3b",
    family="phi",
    hf_hub_path="microsoft/phi-2",
    revision="ef382358ec9e382308935a992d908de099b64c23",
    parameters=2_779_683_840,
    prompt_builder="PhiPromptBuilder",
    prompt_variant="legacy",
    context_length=2048,
    licence="mit",
    pad_token="<|pad|>",
    requires_bos=False,
    llm_cls="PhiForCausalLM",
    decoder_layer_cls="PhiDecoderLayer",
    backbone_cls="backbones.families.phi:PhiLLMBackbone",
    architecture=Architecture(
        hidden_size=2560,
        intermediate_size=10240,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=80,
        vocab_size=51200,
        tied_embeddings=False,
    ),
    config=(("partial_rotary_factor", 0.4),),
)

register(_PHI_2)
register(replace(_PHI_2, backbone_id="phi-2-3b-fixed", prompt_variant="standard"))


def __getattr__(name: str) -> Any:
    """The family's class, imported on request: it needs torch, the specs above do not."""
    if name == "PhiLLMBackbone":
        from backbones.causal_lm import PhiLLMBackbone

        return PhiLLMBackbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
