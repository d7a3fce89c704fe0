"""Towers and projector as the module dictionaries of a Prismatic checkpoint, beside `llm_backbone`.

`vision_backbone` holds one tower as `featurizer.`, or two by their kinds; `projector` has the names it has here.
Source: openvla/openvla, prismatic/models/backbones/vision and prismatic/models/vlms/prismatic.py.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn

from backbones.spec import TowerFamily
from backbones.vision.model import FusedForConditionalGeneration
from backbones.vision.timm_names import TowerNamesError, from_timm, to_timm
from backbones.vision.towers import FAMILIES

PROJECTOR = "projector"
VISION = "vision_backbone"

_FEATURIZERS: dict[TowerFamily, str] = {"siglip": "siglip_featurizer.", "dinov2": "dino_featurizer."}


def written_modules(llm: FusedForConditionalGeneration) -> dict[str, dict[str, torch.Tensor]]:
    """`vision_backbone` and `projector` as upstream stores them."""
    vision = {
        prefix + name: tensor
        for prefix, family, tower in _towers(llm)
        for name, tensor in to_timm(family, tower.state_dict()).items()
    }
    return {VISION: vision, PROJECTOR: llm.projector.state_dict()}


def read_modules(llm: FusedForConditionalGeneration, model: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Fills the projector and, where they are stored, the towers. Raises RuntimeError for what does not fit."""
    llm.projector.load_state_dict(model[PROJECTOR])
    if VISION not in model:
        return
    left = dict(model[VISION])
    for prefix, family, tower in _towers(llm):
        stored = {name.removeprefix(prefix): left.pop(name) for name in list(left) if name.startswith(prefix)}
        try:
            tower.load_state_dict(from_timm(family, stored))
        except TowerNamesError as error:
            raise RuntimeError(f"{VISION}: {prefix}*: {error}") from error
    if left:
        raise RuntimeError(f"{VISION}: this backbone has no tower for {', '.join(sorted(left)[:5])}")


def _towers(llm: FusedForConditionalGeneration) -> Iterator[tuple[str, TowerFamily, nn.Module]]:
    """For each tower what its names begin with, and its kind."""
    for tower in cast(Any, llm.vision_towers):
        family = FAMILIES[tower.config.model_type]
        yield _FEATURIZERS[family] if len(llm.vision_towers) > 1 else "featurizer.", family, tower
