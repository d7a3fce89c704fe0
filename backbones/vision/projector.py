"""The projector of a fused backbone: from patch features to the language model's embeddings.

OpenVLA's kinds, parameter names and initialisation. Source: openvla/openvla, prismatic/util/nn_utils.py and
prismatic/models/vlms/prismatic.py.
"""

import itertools

import torch
from torch import nn

from backbones.vision.towers import projector_widths


class Projector(nn.Module):
    """`.projector`, whose parameter names are upstream's: one matrix, or two or three with GELU between them.

    As upstream draws a new one: torch's own values, with the width of the patch features as seed.
    """

    def __init__(self, kind: str, vision_width: int, text_width: int) -> None:
        super().__init__()
        widths = projector_widths(kind, vision_width, text_width)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(vision_width)
            first, *others = (nn.Linear(*pair) for pair in itertools.pairwise(widths))
        layers: list[nn.Module] = [first]
        for matrix in others:
            layers += [nn.GELU(), matrix]
        self.projector = nn.Sequential(*layers) if others else first

    def forward(self, patches_NPV: torch.Tensor) -> torch.Tensor:
        """(images, patches, vision width) -> (images, patches, text width)."""
        projected: torch.Tensor = self.projector(patches_NPV)
        return projected
