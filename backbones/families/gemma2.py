"""Gemma 2: base models and their instruction-tuned versions.

Sizes: arXiv:2408.00118 and the models' config.json. Scores and logits are soft-capped, which only some attention
kernels compute; every second layer sees a window of 4096 tokens. The tokenizer adds BOS and has a PAD of its own.
"""

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec

# size: (hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied), parameters, score scaling
_SIZES = {
    "2b": (Architecture(2304, 9216, 26, 8, 4, 256, 256000, True), 2_614_341_888, 256),
    "9b": (Architecture(3584, 14336, 42, 16, 8, 256, 256000, True), 9_241_705_984, 256),
    "27b": (Architecture(4608, 36864, 46, 32, 16, 128, 256000, True), 27_227_128_320, 144),
}
# name on the hub, size, prompt, revision
_MODELS = [
    ("2b", "2b", PURE, "c5ebcd40d208330abc697524c919956e692655cf"),
    ("2b-it", "2b", CHAT, "299a8560bedf22ed1c72a8a11e7dce4a7f9f51f8"),
    ("9b", "9b", PURE, "33c193028431c2fde6c6e51f29e6f17b60cbfac6"),
    ("9b-it", "9b", CHAT, "11c9b309abf73637e4b6f9a3fa1e92e615547819"),
    ("27b", "27b", PURE, "938270f5272feb02779b55c2bb2fffdd0f53ff0c"),
    ("27b-it", "27b", CHAT, "aaf20e6b9f4c0fcf043f6fb2a2068419086d77b0"),
]

for _name, _size, _prompt, _revision in _MODELS:
    _sizes, _parameters, _scale = _SIZES[_size]
    register(
        BackboneSpec(
            backbone_id=f"gemma-2-{_name}",
            family="gemma2",
            hf_hub_path=f"google/gemma-2-{_name}",
            revision=_revision,
            parameters=_parameters,
            prompt_builder=_prompt,
            context_length=8192,
            licence="gemma",
            gated=True,
            requires_bos=True,
            llm_cls="Gemma2ForCausalLM",
            decoder_layer_cls="Gemma2DecoderLayer",
            architecture=_sizes,
            config=(
                ("query_pre_attn_scalar", _scale),
                ("attn_logit_softcapping", 50.0),
                ("final_logit_softcapping", 30.0),
                ("sliding_window", 4096),
            ),
        )
    )
