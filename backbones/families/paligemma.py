"""PaliGemma 2: SigLIP before Gemma 2. Base models, asked by a prompt and a line break.

Sizes: arXiv:2412.03555 and the models' config.json. A prompt with its image sees itself in both directions, so rows
hold one example each.
"""

from backbones.registry import register
from backbones.spec import Architecture, BackboneSpec, Vision, VisionTower

_HALVES = (0.5, 0.5, 0.5)


def _vision(tower: VisionTower, image_size: int, tokens: int, connector: int) -> Vision:
    return Vision((tower,), image_size, tokens, connector, _HALVES, _HALVES, place="start", packs=False)


register(
    BackboneSpec(
        backbone_id="tiny-paligemma",
        family="tiny",
        hf_hub_path="builtin:tiny-llama2",
        parameters=178_432,
        prompt_builder="PaliGemmaPromptBuilder",
        context_length=1024,
        licence="mit",
        pad_token="<PAD>",
        requires_bos=True,
        llm_cls="PaliGemmaForConditionalGeneration",
        decoder_layer_cls="Gemma2DecoderLayer",
        backbone_cls="backbones.vision_language.gemma:RandomPaliGemmaBackbone",
        architecture=Architecture(64, 128, 2, 2, 1, 32, 1088, True),
        config=(
            ("projection_dim", 64),
            ("hidden_size", 64),
            ("text_config", (("model_type", "gemma2"), ("query_pre_attn_scalar", 32), ("sliding_window", 16))),
            ("vision_config", (("model_type", "siglip_vision_model"), ("vision_use_head", False))),
        ),
        vision=_vision(VisionTower(32, 64, 3, 2, 8, 32_384, "SiglipEncoderLayer"), 32, 16, 2_112),
    )
)

register(
    BackboneSpec(
        backbone_id="paligemma2-3b-pt-224",
        family="paligemma2",
        hf_hub_path="google/paligemma2-3b-pt-224",
        parameters=3_032_242_416,
        prompt_builder="PaliGemmaPromptBuilder",
        context_length=8192,
        licence="gemma",
        gated=True,
        requires_bos=True,
        llm_cls="PaliGemmaForConditionalGeneration",
        decoder_layer_cls="Gemma2DecoderLayer",
        backbone_cls="backbones.vision_language.gemma:PaliGemmaBackbone",
        architecture=Architecture(2304, 9216, 26, 8, 4, 256, 257216, True),
        config=(
            ("projection_dim", 2304),
            ("hidden_size", 2304),
            ("text_config", (("model_type", "gemma2"), ("query_pre_attn_scalar", 256), ("sliding_window", 4096))),
            ("vision_config", (("model_type", "siglip_vision_model"), ("vision_use_head", False))),
        ),
        vision=_vision(VisionTower(1152, 4304, 27, 16, 14, 412_442_352, "SiglipEncoderLayer"), 224, 256, 2_656_512),
    )
)
