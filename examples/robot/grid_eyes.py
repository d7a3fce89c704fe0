"""Tiny backbones that see grid worlds tile by tile, for `--plugin`: one token for each of 5 x 5 tiles.

`grid-idefics3` is one vision-language model. `fused:grid-siglip+grid-llama2` and `fused:grid-siglip+grid-qwen` are
put together of a tower of the same sizes and a language backbone. Language models are alike in size, and small: what
teaches them to listen to an instruction is many updates, not many weights. Their matrices start at the scale of their
width, for at the 0.02 of large models so small ones take longer.
"""

from dataclasses import replace

from backbones.registry import get_spec, register
from backbones.spec import Architecture
from backbones.vision import EYES
from backbones.vision.towers import make_tower

TILES, SIDE, TILE = 25, 40, 8  # of an image, its pixels a side, and a tile's
TOWER = (32, 64, 1, 2, TILE)  # hidden, intermediate, layers, heads, patch
START = ("initializer_range", 0.1)


def sizes(base: str) -> Architecture:
    """Of a language model: width, feed-forward, layers, heads, key and value heads, width of a head."""
    old = get_spec(base).architecture
    return Architecture(64, 128, 3, 4, 4, 16, old.vocab_size, old.tied_embeddings)


def grid_language(base: str, name: str, parameters: int) -> None:
    """Registers a sibling of a tiny backbone that reads text alone."""
    spec = get_spec(base)
    register(
        replace(spec, backbone_id=name, parameters=parameters, architecture=sizes(base), config=(*spec.config, START))
    )


def grid_vision_language(base: str, name: str, parameters: int, tower: int, connector: int) -> None:
    """Registers a sibling of a tiny backbone that sees; numbers are of parameters."""
    spec = get_spec(base)
    assert spec.vision is not None
    (old,) = spec.vision.towers
    width, feed_forward, layers, heads, patch = TOWER
    seen = replace(
        old,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_layers=layers,
        num_heads=heads,
        patch_size=patch,
        parameters=tower,
    )
    sight = replace(
        spec.vision, towers=(seen,), image_size=SIDE, tokens_per_image=TILES, connector_parameters=connector
    )
    config = (("scale_factor", 1), ("text_config", (START,)), ("vision_config", (START,)))
    register(
        replace(spec, backbone_id=name, parameters=parameters, architecture=sizes(base), vision=sight, config=config)
    )


EYES["grid-siglip"] = (make_tower("siglip", TOWER, SIDE),)
grid_language("tiny-llama2", "grid-llama2", 192_960)
grid_language("tiny-qwen", "grid-qwen", 258_592)
grid_vision_language("tiny-idefics3", "grid-idefics3", 411_296, 15_584, 2_048)
