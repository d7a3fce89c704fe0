"""SmolLM3 3B: the base model and the chat model that carries the plain name.

Sizes: the models' config.json. Every fourth layer has no rotary embedding.
"""

from dataclasses import replace

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec

_3B = BackboneSpec(
    backbone_id="smollm3-3b",
    family="smollm3",
    hf_hub_path="HuggingFaceTB/SmolLM3-3B",
    revision="a07cc9a04f16550a088caea529712d1d335b0ac1",
    parameters=3_075_098_624,
    prompt_builder=CHAT,
    context_length=65536,
    licence="apache-2.0",
    llm_cls="SmolLM3ForCausalLM",
    decoder_layer_cls="SmolLM3DecoderLayer",
    # hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied
    architecture=Architecture(2048, 11008, 36, 16, 4, 128, 128256, True),
    config=(("no_rope_layer_interval", 4),),
)

register(_3B)
register(
    replace(
        _3B,
        backbone_id="smollm3-3b-base",
        hf_hub_path="HuggingFaceTB/SmolLM3-3B-Base",
        revision=None,
        prompt_builder=PURE,
    )
)
