"""What OpenVLA's own PrismaticVLM computes at tiny sizes, for tests that have neither its code nor timm.

`python tests/backbones/upstream_vlm.py CLONE` writes `vision/upstream.json` anew, with a clone of openvla/openvla
(c8f03f4), timm and torchvision installed. Its language models are this project's; its towers are timm's at the sizes of
the tiny towers; all weights are `values_of` their names in a Prismatic checkpoint.
"""

import json
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

STORED = Path(__file__).parent / "vision" / "upstream.json"
LANGUAGE = "tiny-llama2"
SIZE, TOKENS, COLUMNS = 32, 9, slice(0, 1088, 128)
PROJECTORS = {"tiny-siglip": "gelu-mlp", "tiny-dinov2": "gelu-mlp", "tiny-dinosiglip": "fused-gelu-mlp"}


def values_of(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Of the tensor with this name in a Prismatic checkpoint: a wave that begins somewhere."""
    name = name.replace("lm_head", "model.embed_tokens")  # they are tied
    wave = 0.2 * np.sin(0.7 * np.arange(np.prod(shape)) + zlib.crc32(name.encode()) % 1000)
    return torch.from_numpy(wave.reshape(shape).astype(np.float32))


def inputs(towers: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, labels, pixels of each tower) of two examples."""
    ids = torch.tensor([[1, *range(10 + row, 10 + row + 3 * (TOKENS - 1), 3)] for row in range(2)])
    labels = ids.masked_fill(torch.arange(TOKENS) < 3, -100)
    pixels = torch.sin(0.01 * torch.arange(2 * 3 * towers * SIZE * SIZE)).reshape(2, 3 * towers, SIZE, SIZE)
    return ids, labels, pixels


def facts(vlm: Any, eyes: str) -> dict[str, Any]:
    """What is stored of one model: names, shapes, the new projector's sum, features, loss, logits, one gradient."""
    drawn = sum(float(tensor.double().abs().sum()) for tensor in vlm.projector.state_dict().values())
    modules = {name: getattr(vlm, name) for name in vlm.all_module_keys}
    for key, module in modules.items():
        module.load_state_dict({n: values_of(f"{key}.{n}", t.shape) for n, t in module.state_dict().items()})
    ids, labels, pixels = inputs(2 if eyes == "tiny-dinosiglip" else 1)
    seen = {"dino": pixels[:, :3], "siglip": pixels[:, 3:]} if eyes == "tiny-dinosiglip" else pixels
    vlm.freeze_backbones("full-finetune")
    output = vlm(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=seen, labels=labels)
    output.loss.backward()
    return {
        "shapes": {
            key: {name: list(tensor.shape) for name, tensor in modules[key].state_dict().items()}
            for key in ("vision_backbone", "projector")
        },
        "without_gradient": [n for n, p in vlm.vision_backbone.named_parameters() if p.grad is None],
        "projector_drawn": drawn,
        "features": _rounded(vlm.vision_backbone(seen)[0, ::4]),
        "loss": float(output.loss),
        "logits": _rounded(output.logits[..., COLUMNS]),
        "projector_gradient": float(next(vlm.projector.parameters()).grad.double().norm()),
        "learning": {stage: _learning(vlm, stage) for stage in STAGES},
    }


STAGES = ("align", "vla-train", "vla-full-train", "vla-last-layer-train", "vla-sandwich-train")


def _rounded(tensor: torch.Tensor) -> list[Any]:
    values: list[Any] = np.round(tensor.detach().double().numpy(), 6).tolist()
    return values


def _learning(vlm: Any, stage: str) -> list[str]:
    vlm.freeze_backbones(stage)
    return [name for name, parameter in vlm.named_parameters() if parameter.requires_grad]


def main(clone: Path) -> None:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    import backbones.prismatic
    import backbones.prompting
    from backbones.registry import build

    sizes = {
        "dinov2": {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 2, "reg_tokens": 2},
        "siglip": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2},
    }
    create, layers = timm.create_model, VisionTransformer.get_intermediate_layers

    def small(name: str, **given: Any) -> Any:
        return create(name, **{**given, **sizes["siglip" if "siglip" in name else "dinov2"], "pretrained": False})

    timm.create_model = small
    # Upstream's timm, 0.9.10, gives a tuple, which it takes apart.
    VisionTransformer.get_intermediate_layers = lambda self, *given, **named: tuple(layers(self, *given, **named))
    for name in ("", "/models", "/models/backbones", "/models/vlms", "/util"):  # without what their __init__ loads
        package = ModuleType("prismatic" + name.replace("/", "."))
        package.__path__ = [f"{clone}/prismatic{name}"]
        sys.modules[package.__name__] = package
    sys.modules["prismatic.models.backbones.llm"] = backbones.prismatic
    sys.modules["prismatic.models.backbones.llm.prompting"] = backbones.prompting
    from prismatic.models.backbones.vision import DinoSigLIPViTBackbone, DinoV2ViTBackbone, SigLIPViTBackbone
    from prismatic.models.vlms.prismatic import PrismaticVLM

    towers = {
        "tiny-siglip": (SigLIPViTBackbone, "siglip-vit-so400m"),
        "tiny-dinov2": (DinoV2ViTBackbone, "dinov2-vit-l"),
        "tiny-dinosiglip": (DinoSigLIPViTBackbone, "dinosiglip-vit-so-224px"),
    }
    found = {}
    for eyes, (cls, name) in towers.items():
        language = build(LANGUAGE)
        encode = language.tokenizer.encode
        language.tokenizer.encode = lambda *_, **__: [0]  # its tiny vocabulary has no "True", which upstream asks for
        vlm = PrismaticVLM("x", cls(name, "resize-naive", SIZE), language, arch_specifier=PROJECTORS[eyes]).eval()
        language.tokenizer.encode = encode
        found[eyes] = facts(vlm, eyes)
    STORED.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
