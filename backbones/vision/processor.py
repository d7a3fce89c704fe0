"""The image processor of fused backbones, for whoever shows images to an exported one."""

from typing import Any, ClassVar

import numpy as np
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_backends import PilBackend

from backbones.spec import FILTERS
from backbones.vision.model import FusedConfig
from backbones.vision.pixels import stacked


class FusedImageProcessor(PilBackend):
    """`pixel_values` (N, 3 for each tower, S, S): each image as one square, normalised as each tower was trained.

    `image_mean` and `image_std` have three values for each tower.
    """

    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    resample = FILTERS["bicubic"]
    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def _preprocess(
        self,
        images: list[np.ndarray],
        size: Any,
        resample: Any,
        image_mean: list[float],
        image_std: list[float],
        return_tensors: Any,
        **others: Any,
    ) -> BatchFeature:
        squares = [self.resize(image, size, resample).transpose(1, 2, 0) for image in images]
        pixels = stacked(np.stack(squares), image_mean, image_std)
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


AutoImageProcessor.register(FusedConfig, image_processor_classes={"pil": FusedImageProcessor}, exist_ok=True)
