"""Vision towers by name: the one place. No torch, no transformers.

Sizes are those of the models' config.json; which towers OpenVLA and Prismatic look through, and in which order two are
joined, is openvla/openvla's prismatic/models/backbones/vision. DINOv2 is the one with registers (arXiv:2309.16588). Its
stored positions are those of 518 pixels; they are resampled to the image size here, as timm does when it loads it.
Tiny towers are random: they are drawn from the seed, and need no network.
"""

from backbones.spec import Tower, TowerFamily, VisionTower

MODEL_TYPE = "fused_prismatic"  # in the config.json of a fused backbone
PROJECTORS = ("linear", "gelu-mlp", "fused-gelu-mlp")
# Model types of transformers.
FAMILIES: dict[str, TowerFamily] = {"siglip_vision_model": "siglip", "dinov2_with_registers": "dinov2"}

_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LAYERS: dict[TowerFamily, str] = {"siglip": "SiglipEncoderLayer", "dinov2": "Dinov2WithRegistersLayer"}


def make_tower(
    family: TowerFamily,
    sizes: tuple[int, int, int, int, int],  # hidden, intermediate, layers, heads, patch
    image_size: int,
    hf_hub_path: str | None = None,
    revision: str | None = None,
    registers: int = 0,
) -> Tower:
    """A tower of these sizes, normalised as its kind was trained."""
    hidden, intermediate, layers, heads, patch = sizes
    patches = (image_size // patch) ** 2
    parameters = _parameters(family, hidden, intermediate, layers, patch, patches, registers)
    normal = (_HALF, _HALF) if family == "siglip" else (_IMAGENET_MEAN, _IMAGENET_STD)
    return Tower(
        family,
        VisionTower(hidden, intermediate, layers, heads, patch, parameters, _LAYERS[family]),
        image_size,
        registers,
        *normal,
        hf_hub_path,
        revision,
    )


def _parameters(
    family: TowerFamily, hidden: int, intermediate: int, layers: int, patch: int, patches: int, registers: int
) -> int:
    """Of the whole tower, what its second-to-last layer's features do not need included."""
    norm, matrix = 2 * hidden, hidden * hidden + hidden
    mlp = 2 * hidden * intermediate + intermediate + hidden
    layer = 4 * matrix + mlp + 2 * norm
    embedding = (3 * patch * patch + 1 + patches) * hidden
    if family == "siglip":
        pool = hidden + 4 * matrix + norm + mlp
        return embedding + layers * layer + norm + pool
    # A class token and its position, a mask token, registers; two scales in each layer.
    return embedding + (3 + registers) * hidden + layers * (layer + 2 * hidden) + norm


def _siglip(image_size: int, revision: str | None = None) -> Tower:
    hub = f"google/siglip-so400m-patch14-{image_size}"
    return make_tower("siglip", (1152, 4304, 27, 16, 14), image_size, hub, revision)


def _dinov2(image_size: int) -> Tower:
    hub = "facebook/dinov2-with-registers-large"
    return make_tower("dinov2", (1024, 4096, 24, 16, 14), image_size, hub, registers=4)


_SIGLIP_384 = _siglip(384, "9fdffc58afc957d1a03a25b10dba0329ab15c2a3")
_TINY_SIGLIP = make_tower("siglip", (32, 64, 3, 2, 8), 32)
_TINY_DINOV2 = make_tower("dinov2", (24, 48, 3, 2, 8), 32, registers=2)

# What each name looks through; two towers see the same image, each normalised as it was trained.
EYES: dict[str, tuple[Tower, ...]] = {
    "siglip-so400m-224": (_siglip(224),),
    "siglip-so400m-384": (_SIGLIP_384,),
    "dinov2-large-224": (_dinov2(224),),
    "dinosiglip-224px": (_dinov2(224), _siglip(224)),
    "dinosiglip-384px": (_dinov2(384), _SIGLIP_384),
    "tiny-siglip": (_TINY_SIGLIP,),
    "tiny-dinov2": (_TINY_DINOV2,),
    "tiny-dinosiglip": (_TINY_DINOV2, _TINY_SIGLIP),
}


def projector_widths(kind: str, vision_width: int, text_width: int) -> tuple[int, ...]:
    """What each of a projector's matrices takes, and what the last one gives. Raises ValueError for another kind.

    Source: openvla/openvla, prismatic/util/nn_utils.py.
    """
    match kind:
        case "linear":
            return vision_width, text_width
        case "gelu-mlp":
            return vision_width, text_width, text_width
        case "fused-gelu-mlp":
            return vision_width, 4 * vision_width, text_width, text_width
    raise ValueError(f"unknown projector {kind!r}; choose one of {', '.join(PROJECTORS)}")
