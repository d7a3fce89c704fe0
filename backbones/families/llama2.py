"""Llama-2 and Vicuna v1.5, the ids that OpenVLA and Prismatic ship.

Sizes: arXiv:2307.09288 and the models' config.json. `-fixed` ids differ from their namesakes in the prompt only: they
use Meta's `<<SYS>>` tag, which the shipped ids write as `<<SYS>`. PAD is added as 32000, which makes 32064 rows of
32000. Vicuna is not pinned: the commits known here hold pickled weights, which are never loaded. The 70B model is no
id of upstream's, and not pinned either.
"""

from dataclasses import replace
from typing import Any

from backbones.registry import register
from backbones.spec import PURE, Architecture, BackboneSpec

_7B = BackboneSpec(
    backbone_id="llama2-7b-pure",
    family="llama2",
    hf_hub_path="meta-llama/Llama-2-7b-hf",
    revision="01c7f73d771dfac7d292323805ebc428287df4f9",
    parameters=6_738_415_616,
    prompt_builder=PURE,
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
    revision="5c31dfb671ce7cfe2d7bb7c04375e44c55e815b1",
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
_70B = replace(
    _7B,
    backbone_id="llama2-70b-pure",
    hf_hub_path="meta-llama/Llama-2-70b-hf",
    revision=None,
    parameters=68_976_648_192,
    architecture=Architecture(
        hidden_size=8192,
        intermediate_size=28672,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=32000,
        tied_embeddings=False,
    ),
)


_7B_CHAT = replace(
    _7B,
    backbone_id="llama2-7b-chat",
    hf_hub_path="meta-llama/Llama-2-7b-chat-hf",
    revision="f5db02db724555f92da89c216ac04704f23d4590",
    prompt_builder="LLaMa2ChatPromptBuilder",
)
_13B_CHAT = replace(
    _13B,
    backbone_id="llama2-13b-chat",
    hf_hub_path="meta-llama/Llama-2-13b-chat-hf",
    revision="a2cb7a712bb6e5e736ca7f8cd98167f81a0b5bd8",
    prompt_builder="LLaMa2ChatPromptBuilder",
)


def _vicuna(base: BackboneSpec, backbone_id: str, hf_hub_path: str) -> BackboneSpec:
    builder = "VicunaV15ChatPromptBuilder"
    vicuna = replace(base, backbone_id=backbone_id, hf_hub_path=hf_hub_path, prompt_builder=builder)
    return replace(vicuna, revision=None, gated=False)


register(_7B)
register(_13B)
register(_70B)
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
