"""Gemma 3, the text models: 270M and 1B. The larger ones are multimodal (Gemma3ForConditionalGeneration, a vision tower
beside the decoder), not causal language models, so they cannot be loaded as one.

Sizes: arXiv:2503.19786 and the models' config.json. Five of six layers see a window of 512 tokens. The tokenizer adds
BOS and has a PAD of its own.
"""

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec

# hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied
_270M = Architecture(640, 2048, 18, 4, 1, 256, 262144, True)
_1B = Architecture(1152, 6912, 26, 4, 1, 256, 262144, True)

# name on the hub, sizes, parameters, prompt, revision
_MODELS = [
    ("270m", _270M, 268_098_176, PURE, "9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1"),
    ("270m-it", _270M, 268_098_176, CHAT, "ac82b4e820549b854eebf28ce6dedaf9fdfa17b3"),
    ("1b-pt", _1B, 999_885_952, PURE, "fcf18a2a879aab110ca39f8bffbccd5d49d8eb29"),
    ("1b-it", _1B, 999_885_952, CHAT, "dcc83ea841ab6100d6b47a070329e1ba4cf78752"),
]

for _name, _sizes, _parameters, _prompt, _revision in _MODELS:
    register(
        BackboneSpec(
            backbone_id=f"gemma-3-{_name}",
            family="gemma3",
            hf_hub_path=f"google/gemma-3-{_name}",
            revision=_revision,
            parameters=_parameters,
            prompt_builder=_prompt,
            context_length=32768,
            licence="gemma",
            gated=True,
            requires_bos=True,
            llm_cls="Gemma3ForCausalLM",
            decoder_layer_cls="Gemma3DecoderLayer",
            architecture=_sizes,
            config=(("query_pre_attn_scalar", 256), ("sliding_window", 512)),
        )
    )
