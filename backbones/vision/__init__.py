"""Fused backbones: a registered language model behind one or two vision towers, as OpenVLA and Prismatic build theirs.

`fused:<towers>+<language backbone>[+<projector>]`, such as `fused:dinosiglip-224px+llama2-7b-pure`. Patch features of
the second-to-last layer of each tower, without class and register tokens, are joined over the channel, projected to
the language model's width, and stand right behind the first token. Importing this package loads no torch.
"""

from backbones.vision.reference import FUSED, is_fused, resolve_fused
from backbones.vision.towers import EYES, PROJECTORS

__all__ = ["EYES", "FUSED", "PROJECTORS", "is_fused", "resolve_fused"]
