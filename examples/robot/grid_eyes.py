"""Tiny backbones that see grid worlds tile by tile, for `--plugin`: one token for each of 7 x 7 tiles.

Three ways of seeing: Idefics' and Gemma's SigLIP, whose patches are tiles, and Qwen's tower, which merges four patches
to a tile. Their language models are alike in size.
"""

from dataclasses import replace
from typing import Any

from backbones.registry import get_spec, register
from backbones.spec import Architecture

TILES, SIDE = 49, 56  # of an image, and its pixels a side


def grid(base: str, name: str, parameters: int, tower: int, connector: int, config: tuple[Any, ...]) -> None:
    """Registers a wider sibling of a tiny backbone that sees; sizes are numbers of parameters."""
    spec = get_spec(base)
    assert spec.vision is not None
    (old,) = spec.vision.towers
    seen = replace(old, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2, parameters=tower)
    sizes = {"image_size": SIDE, "tokens_per_image": TILES, "connector_parameters": connector}
    sight = replace(spec.vision, towers=(seen,), **sizes)  # type: ignore[arg-type]
    old_sizes = spec.architecture
    architecture = Architecture(96, 256, 3, 3, 1, 32, old_sizes.vocab_size, old_sizes.tied_embeddings)
    register(
        replace(spec, backbone_id=name, parameters=parameters, architecture=architecture, vision=sight, config=config)
    )


grid("tiny-idefics3", "grid-idefics3", 789_792, 82_560, 6_144, (("scale_factor", 1),))
grid(
    "tiny-qwen2.5-vl",
    "grid-qwen2.5-vl",
    678_816,
    89_472,
    90_528,
    (
        get_spec("tiny-qwen2.5-vl").config[0],
        ("vision_config", (("out_hidden_size", 96), ("window_size", 16), ("fullatt_block_indexes", (1,)))),
    ),
)
grid(
    "tiny-gemma3-vl",
    "grid-gemma3-vl",
    489_568,
    82_560,
    6_208,
    (
        ("mm_tokens_per_image", TILES),
        ("text_config", (("query_pre_attn_scalar", 32), ("sliding_window", 128))),
        ("vision_config", (("model_type", "siglip_vision_model"), ("vision_use_head", False))),
    ),
)
