"""Tiny backbones whose patches are the tiles of a grid world, for `--plugin`: one token for each of 7 x 7 tiles."""

from dataclasses import replace

from backbones.registry import get_spec, register
from backbones.spec import Architecture, VisionTower

_IDEFICS = get_spec("tiny-idefics3")
assert _IDEFICS.vision is not None
_TOWER = VisionTower(64, 128, 2, 2, 8, 82_560, "Idefics3EncoderLayer")
register(
    replace(
        _IDEFICS,
        backbone_id="grid-idefics3",
        parameters=789_792,
        architecture=Architecture(96, 256, 3, 3, 1, 32, 2112, False),
        config=(("scale_factor", 1),),
        vision=replace(
            _IDEFICS.vision, towers=(_TOWER,), image_size=56, tokens_per_image=49, connector_parameters=6_144
        ),
    )
)
