"""`fused:` references: towers, a language backbone and, if need be, a projector. No torch, no transformers."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from backbones.errors import InvalidReferenceError
from backbones.spec import BackboneSpec, Fusion, Tower, Vision
from backbones.vision.towers import EYES, FAMILIES, PROJECTORS, make_tower, projector_widths

FUSED = "fused:"
BACKBONE_CLS = "backbones.vision.backbone:FusedBackbone"
SAVED_LANGUAGE_CLS = "backbones.vision.backbone:SavedLanguage"


def is_fused(backbone_id: str) -> bool:
    """Whether this is a `fused:` reference."""
    return backbone_id.startswith(FUSED)


def resolve_fused(reference: str, find_language: Callable[[str], BackboneSpec]) -> BackboneSpec:
    """The spec of `fused:<towers>+<language backbone>[+<projector>]`.

    The projector is upstream's unless it is named: fused-gelu-mlp behind two towers, gelu-mlp behind one. Raises
    InvalidReferenceError for unknown towers and for a backbone that sees by itself, and what `find_language` raises.
    """
    eyes, plus, rest = reference.removeprefix(FUSED).partition("+")
    name, _, ending = rest.rpartition("+")
    language_id, projector = (name, ending) if ending in PROJECTORS and name else (rest, "")
    if not (plus and language_id):
        raise InvalidReferenceError(
            f"{reference}: write {FUSED}TOWERS+BACKBONE, such as {FUSED}dinosiglip-224px+llama2-7b-pure, or "
            f"{FUSED}TOWERS+BACKBONE+PROJECTOR with one of {', '.join(PROJECTORS)}"
        )
    if eyes not in EYES:
        close = get_close_matches(eyes, EYES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ";"
        raise InvalidReferenceError(f"{reference}: there are no vision towers {eyes!r}{hint} Known: {', '.join(EYES)}")
    if is_fused(rest):
        raise InvalidReferenceError(f"{reference}: {rest} sees by itself; name a backbone that reads text alone")
    if name and not projector:
        close = get_close_matches(ending, PROJECTORS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ";"
        raise InvalidReferenceError(
            f"{reference}: there is no projector {ending!r}{hint} Known: {', '.join(PROJECTORS)}"
        )
    language = find_language(language_id)
    if language.vision is not None:
        raise InvalidReferenceError(
            f"{reference}: {language_id} sees by itself; name a backbone that reads text alone, or train {language_id} "
            "as it is"
        )
    towers = EYES[eyes]
    return fuse(reference, eyes, towers, projector or ("fused-gelu-mlp" if len(towers) > 1 else "gelu-mlp"), language)


def fuse(
    backbone_id: str,
    eyes: str,
    towers: tuple[Tower, ...],
    projector: str,
    language: BackboneSpec,
    *,
    is_whole: bool = False,
) -> BackboneSpec:
    """The spec of a language backbone behind towers; what it reads, says and is prompted by is the language's."""
    vision = vision_of(towers, projector, language.architecture.hidden_size)
    seen = vision.connector_parameters + sum(tower.parameters for tower in vision.towers)
    return replace(
        language,
        backbone_id=backbone_id,
        parameters=language.parameters + seen,
        backbone_cls=BACKBONE_CLS,
        vision=vision,
        fusion=Fusion(eyes, towers, projector, language, is_whole),
    )


def fuse_saved(
    reference: str, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], language: BackboneSpec
) -> BackboneSpec:
    """The spec of an exported fused backbone, from its config.json and the shapes of its tensors.

    Raises InvalidReferenceError for towers that are no SigLIP or DINOv2.
    """
    towers = []
    for number, one in enumerate(config["vision_configs"]):
        if one["model_type"] not in FAMILIES:
            raise InvalidReferenceError(
                f"{reference}: config.json has a vision tower of model type {one['model_type']}, which is none of "
                f"{', '.join(FAMILIES)}"
            )
        counted = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(f"vision_towers.{number}."))
        colours = slice(3 * number, 3 * number + 3)
        tower = make_tower(
            FAMILIES[one["model_type"]],
            (
                one["hidden_size"],
                one.get("intermediate_size") or one["hidden_size"] * one["mlp_ratio"],
                one["num_hidden_layers"],
                one["num_attention_heads"],
                one["patch_size"],
            ),
            one["image_size"],
            registers=one.get("num_register_tokens", 0),
        )
        mean, std = tuple(config["means"][colours]), tuple(config["stds"][colours])
        towers.append(replace(tower, mean=mean, std=std, sizes=replace(tower.sizes, parameters=counted)))
    language = replace(language, backbone_cls=SAVED_LANGUAGE_CLS)
    return fuse(reference, config["eyes"], tuple(towers), config["projector"], language, is_whole=True)


def vision_of(towers: tuple[Tower, ...], projector: str, text_width: int) -> Vision:
    """How a model with these towers sees: three channels for each tower, normalised as the tower was trained."""
    first = towers[0]
    widths = projector_widths(projector, sum(tower.sizes.hidden_size for tower in towers), text_width)
    return Vision(
        towers=tuple(tower.sizes for tower in towers),
        image_size=first.image_size,
        tokens_per_image=(first.image_size // first.sizes.patch_size) ** 2,
        connector_parameters=sum((taken + 1) * given for taken, given in itertools.pairwise(widths)),
        mean=tuple(value for tower in towers for value in tower.mean),
        std=tuple(value for tower in towers for value in tower.std),
        placeholder=None,
        place="bos",
    )
