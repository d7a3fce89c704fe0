"""SmolVLM and Idefics 3: a SigLIP-like tower, a pixel shuffle, a plain Llama."""

from typing import Any

import numpy as np

from backbones.vision_language.backbone import RandomVision, VisionLanguageBackbone
from backbones.vision_language.processor import Processor


class IdeficsBackbone(VisionLanguageBackbone):
    """Every image is one tile, seen whole. Positions are those of text, so rows pack as texts do."""

    tower = ("model.vision_model",)
    connector = ("model.connector",)

    def look_at(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """As the images of one row: the model lays those of all rows end to end anyway."""
        return {"pixel_values": pixels[None]}

    def processor_settings(self) -> dict[str, Any]:
        """One tile: the square itself."""
        tile = {"longest_edge": self.vision.image_size}
        return {**super().processor_settings(), "max_image_size": tile, "do_image_splitting": False}

    @property
    def processor(self) -> Processor | None:
        """Idefics 3's, for both: SmolVLM's does the same with a tile, but needs packages that read videos."""
        before, behind = ("".join(names) for names in self.vision.frame)
        settings = {"image_seq_len": self.vision.tokens_per_image}
        prompt = str(self.codec.prompt_with_image)
        prompt = prompt.replace(f"{before}{self.placeholders}{behind}", str(self.vision.placeholder))
        return Processor("Idefics3Processor", settings, {"image_token": str(self.vision.placeholder)}, prompt)


class RandomIdeficsBackbone(RandomVision, IdeficsBackbone):
    """Drawn from a seed."""
