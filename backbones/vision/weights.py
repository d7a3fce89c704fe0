"""Weights of vision towers: each from its own model on the hub, or drawn."""

from functools import partial
from pathlib import Path

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from backbones.loading import StoredNames, fill

# Of files that hold more than the tower, such as SigLIP's text model: what the tower's names begin with.
_PART = "vision_model."
_POSITIONS = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")


def fill_tower(tower: PreTrainedModel, folder: Path, device: torch.device) -> None:
    """Gives a sharded tower that is laid out on meta its stored weights; each rank reads its own rows.

    Positions that are stored for another image size are resampled. Raises what `fill` raises.
    """
    state = tower.state_dict()
    resample = {name: partial(resample_positions, shape=state[name].shape) for name in _POSITIONS if name in state}
    fill(tower, folder, device, StoredNames.of(tower), {}, part=_PART, converted=resample)


def resample_positions(stored: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Positions of a square of patches for a square of another size, bicubic with antialiasing; a class token's stays.

    As timm does: huggingface/pytorch-image-models, timm/layers/pos_embed.py.
    """
    if stored.shape == shape:
        return stored
    before = int(stored.shape[-2] - _square(stored.shape[-2]) ** 2)
    rows = stored.reshape(-1, stored.shape[-1])
    sides = _square(len(rows) - before), _square(shape[-2] - before)
    grid = rows[before:].float().reshape(1, sides[0], sides[0], -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, (sides[1], sides[1]), mode="bicubic", antialias=True, align_corners=False)
    patches = grid.permute(0, 2, 3, 1).reshape(sides[1] ** 2, -1).to(stored.dtype)
    return torch.cat([rows[:before], patches]).reshape(shape)


def _square(count: int) -> int:
    return int(count**0.5)
