"""Llama-2 and Vicuna v1.5, the ids that OpenVLA and Prismatic ship.

Sizes: arXiv:2307.09288 and the models' config.json. `-fixed` ids differ from their namesakes in the prompt only: they
use Meta's `<<SYS>>` tag, which the shipped ids write as `<<SYS>`.
"""

from dataclasses import replace
from typing import Any

from backbones.registry import register
from backbones.spec import Architecture, BackboneSpec

_7B = BackboneSpec(
    backbone_id="llama2-7b-pure",
    family="llama2",
    hf_hub_path="meta-llama/Llama-2-7b-hf",
    parameters=6_738_415_616,
    prompt_builder="PurePromptBuilder",
    prompt_variant="legacy",
    context_length=4096,
    licence="llama2",
    pad_token="<PAD>",
    requires_bos=True,
    llm_cls="LlamaForCausalLM",
    decoder_layer_cls="LlamaDecoderLayer",
    backbone_cls="backbones.families.llama2:LLaMa2LLMBackbone",
    architecture=Architecture(
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        vocab_size=32000,
        tied_embeddings=False,
    ),
    gated=True,
)
_13B = replace(
    _7B,
    backbone_id="llama2-13b-pure",
    hf_hub_path="meta-llama/Llama-2-13b-hf",
    parameters=13_015_864_320,
    architecture=Architecture(
        hidden_size=5120,
        intermediate_size=13824,
        num_layers=40,
        num_heads=40,
        num_kv_heads=40,
        head_dim=128,
        vocab_size=32000,
        tied_embeddings=False,
    ),
)


def _chat(base: BackboneSpec, backbone_id: str, hf_hub_path: str) -> BackboneSpec:
    return replace(base, backbone_id=backbone_id, hf_hub_path=hf_hub_path, prompt_builder="LLaMa2ChatPromptBuilder")


def _vicuna(base: BackboneSpec, backbone_id: str, hf_hub_path: str) -> BackboneSpec:
    builder = "VicunaV15ChatPromptBuilder"
    return replace(base, backbone_id=backbone_id, hf_hub_path=hf_hub_path, prompt_builder=builder, gated=False)


_7B_CHAT = _chat(_7B, "llama2-7b-chat", "meta-llama/Llama-2-7b-chat-hf")
_13B_CHAT = _chat(_13B, "llama2-13b-chat", "meta-llama/Llama-2-13b-chat-hf")

register(_7B)
register(_13B)
register(_7B_CHAT)
register(_13B_CHAT)
register(_vicuna(_7B, "vicuna-v15-7b", "lmsys/vicuna-7b-v1.5"))
register(_vicuna(_13B, "vicuna-v15-13b", "lmsys/vicuna-13b-v1.5"))
register(replace(_7B_CHAT, backbone_id="llama2-7b-chat-fixed", prompt_variant="standard"))
register(replace(_13B_CHAT, backbone_id="llama2-13b-chat-fixed", prompt_variant="standard"))


def __getattr__(name: str) -> Any:
    """The family's class, imported on request: it needs torch, the specs above do not."""
    if name == "LLaMa2LLMBackbone":
        from backbones.causal_lm import LLaMa2LLMBackbone

        return LLaMa2LLMBackbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
