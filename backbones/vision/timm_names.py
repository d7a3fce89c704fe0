"""Vision towers under timm's names and back: OpenVLA's checkpoints hold its towers as timm stores them.

Both ways on whole state dicts. timm -> ours -> timm gives the same tensors bit for bit. The other way round features
are the same, but a DINOv2 tower's class token carries its position from then on, as timm stores it.
Sources: huggingface/pytorch-image-models, timm/models/vision_transformer.py; transformers' SigLIP and DINOv2 models.
"""

import re
from collections.abc import Mapping
from typing import TypeAlias

import torch

from backbones.spec import TowerFamily

Tensors: TypeAlias = dict[str, torch.Tensor]

# timm's name -> ours; {} is the number of a layer. Matrices that timm stores as one stand in `_JOINED`.
_LAYER = {
    "siglip": "encoder.layers.{}",
    "dinov2": "encoder.layer.{}",
}
_IN_LAYER = {
    "siglip": {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    "dinov2": {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    },
}
_ATTENTION = {"siglip": "self_attn", "dinov2": "attention"}
_OUTSIDE = {
    "siglip": {
        "patch_embed.proj": "embeddings.patch_embedding",
        "norm": "post_layernorm",
        "attn_pool.latent": "head.probe",
        "attn_pool.proj": "head.attention.out_proj",
        "attn_pool.norm": "head.layernorm",
        "attn_pool.mlp.fc1": "head.mlp.fc1",
        "attn_pool.mlp.fc2": "head.mlp.fc2",
    },
    "dinov2": {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
        "reg_token": "embeddings.register_tokens",
    },
}
_SIGLIP_POSITIONS = "embeddings.position_embedding.weight"
_SIGLIP_POOL = "head.attention.in_proj_"
_DINO_POSITIONS = "embeddings.position_embeddings"
_DINO_CLASS = "embeddings.cls_token"
_DINO_MASK = "embeddings.mask_token"  # of its pretraining; timm drops it


class TowerNamesError(ValueError):
    """A state dict is not that of such a tower."""


def from_timm(family: TowerFamily, stored: Mapping[str, torch.Tensor]) -> Tensors:
    """A timm ViT's state dict under the names of transformers' class. Raises TowerNamesError for another kind's."""
    left = dict(stored)
    found: Tensors = {}
    for theirs, ours in _names(family, _depth(left, r"blocks\.(\d+)\.")):
        _move(left, theirs, found, ours)
    for number in range(_depth(left, r"blocks\.(\d+)\.")):
        for kind in ("weight", "bias"):
            parts = _take(left, f"blocks.{number}.attn.qkv.{kind}").chunk(3)
            for which, part in zip("qkv", parts, strict=True):
                found[f"{_LAYER[family].format(number)}.{_ATTENTION[family]}.{which}_proj.{kind}"] = part.clone()
    if family == "siglip":
        found[_SIGLIP_POSITIONS] = _take(left, "pos_embed")[0]
        for kind in ("weight", "bias"):
            pair = [_take(left, f"attn_pool.{which}.{kind}") for which in ("q", "kv")]
            found[_SIGLIP_POOL + kind] = torch.cat(pair)
    else:
        positions = _take(left, "pos_embed")
        found[_DINO_CLASS] = _take(left, "cls_token")
        # timm has the class token's position in the token itself.
        found[_DINO_POSITIONS] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        found[_DINO_MASK] = torch.zeros_like(positions[0, :1])
    if left:
        raise TowerNamesError(f"no part of a {family} tower: {', '.join(sorted(left)[:5])}")
    return found


def to_timm(family: TowerFamily, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """A tower's state dict under timm's names. Raises TowerNamesError for one of another kind."""
    left = dict(tensors)
    depth = _depth(left, r"encoder\.layers?\.(\d+)\.")
    found: Tensors = {}
    for theirs, ours in _names(family, depth):
        _move(left, ours, found, theirs)
    for number in range(depth):
        for kind in ("weight", "bias"):
            names = [f"{_LAYER[family].format(number)}.{_ATTENTION[family]}.{which}_proj.{kind}" for which in "qkv"]
            found[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat([_take(left, name) for name in names])
    if family == "siglip":
        found["pos_embed"] = _take(left, _SIGLIP_POSITIONS)[None]
        for kind in ("weight", "bias"):
            joined = _take(left, _SIGLIP_POOL + kind)
            width = len(joined) // 3
            found[f"attn_pool.q.{kind}"], found[f"attn_pool.kv.{kind}"] = joined[:width].clone(), joined[width:].clone()
    else:
        positions = _take(left, _DINO_POSITIONS)
        found["cls_token"] = _take(left, _DINO_CLASS) + positions[:, :1]
        found["pos_embed"] = positions[:, 1:].clone()
        _take(left, _DINO_MASK)
    if left:
        raise TowerNamesError(f"no part of a {family} tower: {', '.join(sorted(left)[:5])}")
    return found


def _names(family: TowerFamily, depth: int) -> list[tuple[str, str]]:
    """(timm's, ours) of everything that is stored alike: modules with weight and bias, or tensors."""
    inside = [
        (f"blocks.{number}.{theirs}", f"{_LAYER[family].format(number)}.{ours}")
        for number in range(depth)
        for theirs, ours in _IN_LAYER[family].items()
    ]
    return [*_OUTSIDE[family].items(), *inside]


def _move(source: Tensors, name: str, target: Tensors, other: str) -> None:
    if name in source:
        target[other] = source.pop(name)
        return
    for kind in ("weight", "bias"):
        target[f"{other}.{kind}"] = _take(source, f"{name}.{kind}")


def _take(tensors: Tensors, name: str) -> torch.Tensor:
    try:
        return tensors.pop(name)
    except KeyError:
        raise TowerNamesError(f"there is no {name}") from None


def _depth(tensors: Mapping[str, torch.Tensor], pattern: str) -> int:
    return 1 + max((int(found[1]) for name in tensors if (found := re.match(pattern, name))), default=-1)
