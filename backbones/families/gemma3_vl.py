"""Gemma 3 with its vision tower: SigLIP at 896 pixels, pooled to 256 tokens an image.

Sizes: arXiv:2503.19786 and the models' config.json. Five of six layers see a window; tokens of an image see each other
in both directions. The 270M and 1B models read text alone: see gemma3.py.
"""

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec, Vision, VisionTower

_HALVES = (0.5, 0.5, 0.5)


def _vision(tower: VisionTower, image_size: int, tokens: int, connector: int) -> Vision:
    return Vision(
        towers=(tower,),
        image_size=image_size,
        tokens_per_image=tokens,
        connector_parameters=connector,
        mean=_HALVES,
        std=_HALVES,
        resample="bilinear",
        placeholder="<image_soft_token>",
        frame=(("<start_of_image>",), ("<end_of_image>",)),
        around=("\n\n", "\n\n"),
        packs=False,
    )


register(
    BackboneSpec(
        backbone_id="tiny-gemma3-vl",
        family="tiny",
        hf_hub_path="builtin:tiny-llama2",
        parameters=318_720,
        prompt_builder=PURE,
        context_length=1024,
        licence="mit",
        pad_token="<PAD>",
        requires_bos=True,
        llm_cls="Gemma3ForConditionalGeneration",
        decoder_layer_cls="Gemma3DecoderLayer",
        backbone_cls="backbones.vision_language.gemma:RandomGemma3VLBackbone",
        architecture=Architecture(64, 128, 6, 2, 1, 32, 1088, True),
        config=(
            ("mm_tokens_per_image", 4),
            ("text_config", (("query_pre_attn_scalar", 32), ("sliding_window", 16))),
            ("vision_config", (("model_type", "siglip_vision_model"), ("vision_use_head", False))),
        ),
        vision=_vision(VisionTower(32, 64, 2, 2, 8, 23_840, "SiglipEncoderLayer"), 32, 4, 2_080),
    )
)

register(
    BackboneSpec(
        backbone_id="gemma-3-4b-it",
        family="gemma3",
        hf_hub_path="google/gemma-3-4b-it",
        parameters=4_300_079_472,
        prompt_builder=CHAT,
        context_length=131072,
        licence="gemma",
        gated=True,
        requires_bos=True,
        llm_cls="Gemma3ForConditionalGeneration",
        decoder_layer_cls="Gemma3DecoderLayer",
        backbone_cls="backbones.vision_language.gemma:Gemma3VLBackbone",
        architecture=Architecture(2560, 10240, 34, 8, 4, 256, 262208, True),
        config=(
            ("mm_tokens_per_image", 256),
            ("text_config", (("query_pre_attn_scalar", 256), ("sliding_window", 1024))),
            ("vision_config", (("model_type", "siglip_vision_model"), ("vision_use_head", False))),
        ),
        vision=_vision(VisionTower(1152, 4304, 27, 16, 14, 416_866_032, "SiglipEncoderLayer"), 896, 256, 2_950_272),
    )
)
