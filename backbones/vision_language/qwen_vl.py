"""Qwen2.5-VL and Qwen3-VL: patches of all images in one list, and positions on three axes.

Shape suffixes: B rows, T positions.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from backbones.inputs import Example, Inputs
from backbones.vision_language.backbone import RandomVision, VisionLanguageBackbone
from backbones.vision_language.pixels import patches


class QwenVLBackbone(VisionLanguageBackbone):
    """Position ids have four rows: those of text, which keep packed examples apart, and time, height and width.

    On the three axes an image's tokens are a grid, and what follows goes on behind its longer side. Without these rows
    the model computes something else without an error. Source: transformers, `get_rope_index`.
    """

    tower = ("model.visual",)
    connector = ("model.visual.merger", "model.visual.deepstack_merger_list")

    def arrange(self, inputs: Inputs, rows: Sequence[Sequence[Example]]) -> Inputs:
        side = self._side
        axes_3BT = np.repeat(inputs.position_ids_BT[None], 3, axis=0)
        grid = np.stack(np.meshgrid([0], np.arange(side), np.arange(side), indexing="ij")).reshape(3, -1)
        for line, row in enumerate(rows):
            start = 0
            for number, example in enumerate(row):
                is_last = number == len(row) - 1
                end = axes_3BT.shape[2] if is_last else start + len(example.input_ids)  # padding goes on with the last
                seen = np.flatnonzero(self.is_image_token(example.input_ids))
                for first in seen[:: side * side]:
                    at = start + first
                    behind = at + side * side
                    axes_3BT[:, line, behind:end] -= side * side - side
                    axes_3BT[:, line, at:behind] = axes_3BT[0, line, at] + grid
                start = end
        return replace(inputs, token_extras={"position_ids": np.concatenate([inputs.position_ids_BT[None], axes_3BT])})

    def token_types(self, example: Example) -> dict[str, np.ndarray]:
        return {"mm_token_type_ids": self.is_image_token(example.input_ids)[None].astype(np.int64)}

    def look_at(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        config = self.llm.config.vision_config
        side = self.vision.image_size // config.patch_size
        grid = np.tile(np.array([[1, side, side]], np.int64), (len(pixels), 1))
        laid = patches(pixels, config.patch_size, config.spatial_merge_size, config.temporal_patch_size)
        return {"pixel_values": laid, "image_grid_thw": grid}

    def processor_settings(self) -> dict[str, Any]:
        """The class keeps the ratio of the sides; a square becomes the square of just so many pixels."""
        config, pixels = self.llm.config.vision_config, self.vision.image_size**2
        return {
            "size": {"shortest_edge": pixels, "longest_edge": pixels},
            "patch_size": config.patch_size,
            "merge_size": config.spatial_merge_size,
            "temporal_patch_size": config.temporal_patch_size,
        }

    @property
    def _side(self) -> int:
        """Tokens along a side of an image."""
        config = self.llm.config.vision_config
        return self.vision.image_size // (int(config.patch_size) * int(config.spatial_merge_size))


class RandomQwenVLBackbone(RandomVision, QwenVLBackbone):
    """Drawn from a seed."""
