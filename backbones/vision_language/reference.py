"""What a folder of a model that sees says of its own eyes. The rest is the family's, whose ids are registered.

transformers is imported where such a folder is read: a config.json leaves out whatever is its class's default.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backbones.errors import InvalidReferenceError
from backbones.registered import registered
from backbones.spec import FILTERS, BackboneSpec, Vision, VisionTower

# Classes of transformers, and the backbones that read their weights.
CLASSES = {
    "SmolVLMForConditionalGeneration": "backbones.vision_language.idefics:IdeficsBackbone",
    "Idefics3ForConditionalGeneration": "backbones.vision_language.idefics:IdeficsBackbone",
    "Qwen2_5_VLForConditionalGeneration": "backbones.vision_language.qwen_vl:QwenVLBackbone",
    "Qwen3VLForConditionalGeneration": "backbones.vision_language.qwen_vl:QwenVLBackbone",
    "Gemma3ForConditionalGeneration": "backbones.vision_language.gemma:Gemma3VLBackbone",
    "PaliGemmaForConditionalGeneration": "backbones.vision_language.gemma:PaliGemmaBackbone",
}
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"

# Names of tensors, in whichever of their layouts a file has them.
_CONNECTOR = re.compile(r"(^|\.)(connector|multi_modal_projector|visual\.merger|deepstack_merger_list)\.")
_TOWER = re.compile(r"(^|\.)(vision_model|vision_tower|visual)\.")
_FILTERS = {number: name for name, number in FILTERS.items()}


def kin_of(llm_cls: str) -> BackboneSpec:
    """A registered backbone of the same class: its image tokens, and where they stand, are the folder's too."""
    family = [spec for spec in registered() if spec.llm_cls == llm_cls and spec.vision is not None]
    return min(family, key=lambda spec: spec.is_builtin)


def whole_config(reference: str, folder: Path) -> Any:
    """The config of a folder with all that its file leaves out. Raises InvalidReferenceError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a config's class says of values that it does not take
        raise InvalidReferenceError(
            f"{reference}: transformers cannot read {folder / 'config.json'}: {error}; correct it, or save the model "
            "again with save_pretrained"
        ) from error


def sight_of(
    reference: str, config: Any, folder: Path, shapes: Mapping[str, Sequence[int]], kin: BackboneSpec
) -> Vision:
    """How the model of a folder sees: sizes from its config and tensors, colours and filter from its image processor.

    Every image becomes one square of the tower's size; of a tower that takes any, of the size that the processor gives
    each image, or the family's. Raises InvalidReferenceError where the tower cannot see such a square.
    """
    assert kin.vision is not None
    settings = _processor_settings(reference, folder)
    sizes = config.vision_config
    image_size = getattr(sizes, "image_size", None) or _fixed_side(settings) or kin.vision.image_size
    joined = getattr(config, "scale_factor", getattr(sizes, "spatial_merge_size", 1))
    patches = image_size // sizes.patch_size  # a side; what is left over is not seen
    if patches % joined:
        raise InvalidReferenceError(
            f"{reference}: an image of {image_size} pixels a side has {patches} x {patches} patches, which squares of "
            f"{joined} x {joined} do not divide; correct the sizes in config.json or {PREPROCESSOR}"
        )
    _check_tokens(reference, config, folder, kin.vision)
    kin_tower = kin.vision.towers[0]
    tower = VisionTower(
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_layers=sizes.depth if hasattr(sizes, "depth") else sizes.num_hidden_layers,
        num_heads=sizes.num_heads if hasattr(sizes, "num_heads") else sizes.num_attention_heads,
        patch_size=sizes.patch_size,
        parameters=_count(shapes, connecting=False),
        layer_cls=kin_tower.layer_cls,
    )
    return replace(
        kin.vision,
        towers=(tower,),
        image_size=image_size,
        tokens_per_image=getattr(config, "mm_tokens_per_image", (patches // joined) ** 2),
        connector_parameters=_count(shapes, connecting=True),
        mean=_colours(reference, settings, "image_mean") or kin.vision.mean,
        std=_colours(reference, settings, "image_std") or kin.vision.std,
        resample=_filter(reference, settings) or kin.vision.resample,
    )


def _check_tokens(reference: str, config: Any, folder: Path, vision: Vision) -> None:
    """The tokenizer has the tokens of an image, and config.json replaces the one that it should."""
    file = folder / "tokenizer.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        added = {one["content"]: one["id"] for one in document["added_tokens"]}
        vocabulary = document["model"]["vocab"]
        pieces = vocabulary if isinstance(vocabulary, dict) else {one[0]: id for id, one in enumerate(vocabulary)}
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidReferenceError(f"{reference}: {file} is no tokenizer: {error!r}; save it again") from error
    ids = pieces | added
    assert vision.placeholder is not None
    missing = [name for name in (vision.placeholder, *vision.frame[0], *vision.frame[1]) if name not in ids]
    if missing:
        raise InvalidReferenceError(
            f"{reference}: the tokenizer has no token {missing[0]!r}, which stands around or for an image; save the "
            "tokenizer that the model was trained with"
        )
    if config.image_token_id != ids[vision.placeholder]:
        raise InvalidReferenceError(
            f"{reference}: config.json has what is seen stand for token {config.image_token_id}, but "
            f"{vision.placeholder!r} is token {ids[vision.placeholder]}; correct image_token_id"
        )


def _processor_settings(reference: str, folder: Path) -> dict[str, Any]:
    """Of the image processor beside a model, which newer files hold inside of the processor's; empty without one."""
    for name in (PROCESSOR, PREPROCESSOR):
        if not (folder / name).is_file():
            continue
        try:
            document = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidReferenceError(f"{reference}: {folder / name} is not JSON: {error}") from error
        settings: dict[str, Any] = document.get("image_processor", {}) if name == PROCESSOR else document
        if settings:
            return settings
    return {}


def _colours(reference: str, settings: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = settings.get(name) or []
    if len(values) not in (0, 3):
        raise InvalidReferenceError(f"{reference}: {name} of its image processor is {values}; give three numbers")
    return tuple(values)


def _filter(reference: str, settings: Mapping[str, Any]) -> str | None:
    number = settings.get("resample")
    if number is not None and number not in _FILTERS:
        raise InvalidReferenceError(
            f"{reference}: resample of its image processor is {number}; pillow's filters are {_FILTERS}"
        )
    return None if number is None else _FILTERS[number]


def _fixed_side(settings: Mapping[str, Any]) -> int | None:
    """Pixels a side of a square that has the one number of pixels to which every image is resized, if it has one."""
    size = settings.get("size") or {}
    pixels: int = size.get("shortest_edge") or 0
    side = math.isqrt(pixels)
    return side if pixels and pixels == size.get("longest_edge") == side**2 else None


def _count(shapes: Mapping[str, Sequence[int]], connecting: bool) -> int:
    """Numbers in the connector, or in the tower without it."""
    return sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if (_CONNECTOR.search(name) is not None if connecting else _TOWER.search(name) and not _CONNECTOR.search(name))
    )
