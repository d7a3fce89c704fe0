"""SmolVLM2, and the class Idefics 3 that it grew out of: SigLIP, a pixel shuffle, SmolLM2.

Sizes: arXiv:2504.05299 and the models' config.json. An image is one tile of the tower's own size: it is not split.
"""

from dataclasses import replace

from backbones.registry import register
from backbones.spec import CHAT, Architecture, BackboneSpec, Vision, VisionTower

_HALVES = (0.5, 0.5, 0.5)
_FRAME = (("<fake_token_around_image>", "<global-img>"), ("<fake_token_around_image>",))


def _vision(tower: VisionTower, image_size: int, tokens: int, connector: int) -> Vision:
    return Vision((tower,), image_size, tokens, connector, _HALVES, _HALVES, resample="lanczos", frame=_FRAME)


_TINY = BackboneSpec(
    backbone_id="tiny-smolvlm",
    family="tiny",
    hf_hub_path="builtin:tiny-qwen",
    parameters=384_960,
    prompt_builder=CHAT,
    context_length=1024,
    licence="mit",
    pad_token="<PAD>",
    llm_cls="SmolVLMForConditionalGeneration",
    decoder_layer_cls="LlamaDecoderLayer",
    backbone_cls="backbones.vision_language.idefics:RandomIdeficsBackbone",
    architecture=Architecture(64, 128, 2, 2, 1, 32, 2112, False),
    config=(("scale_factor", 2),),
    vision=_vision(VisionTower(32, 64, 3, 2, 8, 32_384, "SmolVLMEncoderLayer"), 32, 4, 8_192),
)
register(_TINY)
register(
    replace(
        _TINY,
        backbone_id="tiny-idefics3",
        llm_cls="Idefics3ForConditionalGeneration",
        vision=_vision(VisionTower(32, 64, 3, 2, 8, 32_384, "Idefics3EncoderLayer"), 32, 4, 8_192),
    )
)

_BASE = VisionTower(768, 3072, 12, 12, 16, 86_433_024, "SmolVLMEncoderLayer")
_LARGE = VisionTower(1152, 4304, 27, 16, 14, 412_987_248, "SmolVLMEncoderLayer")
# name on the hub, sizes, parameters, how it sees, pixel shuffle
_MODELS = [
    (
        "SmolVLM2-500M-Video-Instruct",
        Architecture(960, 2560, 32, 15, 5, 64, 49280, False),
        507_482_304,
        _vision(_BASE, 512, 64, 11_796_480),
        4,
    ),
    (
        "SmolVLM2-2.2B-Instruct",
        Architecture(2048, 8192, 24, 32, 32, 64, 49280, False),
        2_246_784_880,
        _vision(_LARGE, 384, 81, 21_233_664),
        3,
    ),
]
for _name, _sizes, _parameters, _sight, _factor in _MODELS:
    register(
        BackboneSpec(
            backbone_id=_name.lower().removesuffix("-instruct").removesuffix("-video"),
            family="smolvlm",
            hf_hub_path=f"HuggingFaceTB/{_name}",
            parameters=_parameters,
            prompt_builder=CHAT,
            context_length=8192,
            licence="apache-2.0",
            llm_cls="SmolVLMForConditionalGeneration",
            decoder_layer_cls="LlamaDecoderLayer",
            backbone_cls="backbones.vision_language.idefics:IdeficsBackbone",
            architecture=_sizes,
            config=(("scale_factor", _factor),),
            vision=_sight,
        )
    )
