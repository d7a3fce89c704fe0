"""Qwen2.5-VL and Qwen3-VL, the dense models. Every image is a square of one size, which their towers take any of.

Sizes: arXiv:2502.13923, arXiv:2511.21631 and the models' config.json. Left out: the mixtures of experts.
"""

from dataclasses import replace

from backbones.registry import register
from backbones.spec import CHAT, Architecture, BackboneSpec, ConfigValue, Vision, VisionTower

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALVES = (0.5, 0.5, 0.5)
_QWEN25, _QWEN3 = "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"


def _vision25(tower: VisionTower, image_size: int, tokens: int, connector: int) -> Vision:
    frame = (("<|vision_start|>",), ("<|vision_end|>",))
    return Vision(
        (tower,), image_size, tokens, connector, _CLIP_MEAN, _CLIP_STD, placeholder="<|image_pad|>", frame=frame
    )


def _vision3(tower: VisionTower, image_size: int, tokens: int, connector: int) -> Vision:
    return replace(_vision25(tower, image_size, tokens, connector), mean=_HALVES, std=_HALVES)


def _rope(*sections: int, interleaved: bool = False) -> tuple[str, ConfigValue]:
    rope: tuple[tuple[str, ConfigValue], ...] = (("rope_type", "default"), ("mrope_section", sections))
    further = (("rope_theta", 5e6), ("mrope_interleaved", True)) if interleaved else (("rope_theta", 1e6),)
    return "text_config", (("rope_parameters", (*rope, *further)),)


_TINY = BackboneSpec(
    backbone_id="tiny-qwen2.5-vl",
    family="tiny",
    hf_hub_path="builtin:tiny-qwen",
    parameters=269_120,
    prompt_builder=CHAT,
    context_length=1024,
    licence="mit",
    pad_token="<PAD>",
    llm_cls=_QWEN25,
    decoder_layer_cls="Qwen2_5_VLDecoderLayer",
    backbone_cls="backbones.vision_language.qwen_vl:RandomQwenVLBackbone",
    architecture=Architecture(64, 128, 2, 2, 1, 32, 2112, True),
    config=(
        _rope(4, 6, 6),
        ("vision_config", (("out_hidden_size", 64), ("window_size", 16), ("fullatt_block_indexes", (1,)))),
    ),
    vision=_vision25(VisionTower(32, 64, 3, 2, 4, 34_848, "Qwen2_5_VLVisionBlock"), 32, 16, 24_800),
)
register(_TINY)
register(
    replace(
        _TINY,
        backbone_id="tiny-qwen3-vl",
        parameters=315_008,
        llm_cls=_QWEN3,
        decoder_layer_cls="Qwen3VLTextDecoderLayer",
        config=(
            _rope(6, 5, 5, interleaved=True),
            (
                "vision_config",
                (("out_hidden_size", 64), ("num_position_embeddings", 64), ("deepstack_visual_indexes", (0, 1))),
            ),
        ),
        vision=_vision3(VisionTower(32, 64, 3, 2, 4, 30_784, "Qwen3VLVisionBlock"), 32, 16, 74_880),
    )
)

_TOWER25 = VisionTower(1280, 3420, 32, 16, 14, 631_975_680, "Qwen2_5_VLVisionBlock")
_TOWER3 = VisionTower(1024, 4096, 24, 16, 16, 306_242_560, "Qwen3VLVisionBlock")
_WINDOWS: tuple[tuple[str, ConfigValue], ...] = (("window_size", 112), ("fullatt_block_indexes", (7, 15, 23, 31)))
_DEEP: tuple[tuple[str, ConfigValue], ...] = (
    ("num_position_embeddings", 2304),
    ("deepstack_visual_indexes", (5, 11, 17)),
)
# name on the hub, sizes, parameters, how it sees, the rest of its config, licence
_MODELS = [
    (
        "Qwen2.5-VL-3B-Instruct",
        Architecture(2048, 11008, 36, 16, 2, 128, 151936, True),
        3_754_622_976,
        _vision25(_TOWER25, 224, 64, 36_708_608),
        "qwen-research",
    ),
    (
        "Qwen2.5-VL-7B-Instruct",
        Architecture(3584, 18944, 28, 28, 4, 128, 152064, False),
        8_292_166_656,
        _vision25(_TOWER25, 224, 64, 44_574_464),
        "apache-2.0",
    ),
    (
        "Qwen3-VL-2B-Instruct",
        Architecture(2048, 6144, 28, 16, 8, 128, 151936, True),
        2_127_532_032,
        _vision3(_TOWER3, 256, 64, 100_714_496),
        "apache-2.0",
    ),
    (
        "Qwen3-VL-4B-Instruct",
        Architecture(2560, 9728, 36, 32, 8, 128, 151936, True),
        4_437_815_808,
        _vision3(_TOWER3, 256, 64, 109_105_152),
        "apache-2.0",
    ),
]
for _name, _sizes, _parameters, _sight, _licence in _MODELS:
    _is_3 = _sight.towers[0] is _TOWER3
    _own: tuple[tuple[str, ConfigValue], ...] = (
        ("out_hidden_size", _sizes.hidden_size),
        *(_DEEP if _is_3 else _WINDOWS),
    )
    register(
        BackboneSpec(
            backbone_id=_name.lower().removesuffix("-instruct"),
            family="qwen3-vl" if _is_3 else "qwen2.5-vl",
            hf_hub_path=f"Qwen/{_name}",
            parameters=_parameters,
            prompt_builder=CHAT,
            context_length=262144 if _is_3 else 128000,
            licence=_licence,
            llm_cls=_QWEN3 if _is_3 else _QWEN25,
            decoder_layer_cls="Qwen3VLTextDecoderLayer" if _is_3 else "Qwen2_5_VLDecoderLayer",
            backbone_cls="backbones.vision_language.qwen_vl:QwenVLBackbone",
            architecture=_sizes,
            config=(
                _rope(24, 20, 20, interleaved=True) if _is_3 else _rope(16, 24, 24),
                ("vision_config", _own),
            ),
            vision=_sight,
        )
    )
