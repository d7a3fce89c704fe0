"""Training FLOPs and model FLOPs utilisation, in closed form. No torch, ray, mlflow."""

import re

from backbones.registry import BackboneSpec

# Dense bf16 peak in FLOP/s per device, by words of the name that CUDA reports; the first that matches counts.
PEAK_BF16_FLOPS = {
    "H200": 989e12,  # https://www.nvidia.com/en-us/data-center/h200/
    "H100 PCIe": 756e12,  # https://www.nvidia.com/en-us/data-center/h100/
    "H100 NVL": 835e12,  # https://www.nvidia.com/en-us/data-center/h100/
    "H100": 989e12,  # https://www.nvidia.com/en-us/data-center/h100/
    "A100": 312e12,  # https://www.nvidia.com/en-us/data-center/a100/
    "L40S": 362e12,  # https://www.nvidia.com/en-us/data-center/l40s/
    "A10G": 70e12,  # https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf
    "L4": 121e12,  # https://www.nvidia.com/en-us/data-center/l4/
}


def training_flops_per_token(spec: BackboneSpec, sequence_length: int, adaptation: str = "full") -> float:
    """6N + 12LHS: forward and backward of one token, without recomputation.

    N: parameters that multiply (all but the input embedding, which only looks up); L: layers; H: heads x head size;
    S: sequence length. Source: PaLM, appendix B, https://arxiv.org/abs/2204.02311. Of the 6, 2 are the gradients of the
    weights, which frozen ones do not have: 4N where adapters or biases learn (their own are left out), and 4N + 2M for
    last_layer, M being the head and one layer. What images cost beside the tokens that they take, in vision towers and
    connector, is `training_flops_per_image`.
    """
    dims = spec.architecture
    lookup = 0 if dims.tied_embeddings else dims.vocab_size * dims.hidden_size
    attention = 12 * dims.num_layers * dims.num_heads * dims.head_dim * sequence_length
    multiplying = spec.parameters - lookup - spec.seeing_parameters
    head = dims.vocab_size * dims.hidden_size
    learning = {"full": multiplying, "last_layer": head + (multiplying - head) / dims.num_layers}.get(adaptation, 0)
    return float(4 * multiplying + 2 * learning + attention)


def training_flops_per_image(spec: BackboneSpec, adaptation: str = "full", vision: str = "frozen") -> float:
    """Of one image in towers and connector, beside the tokens that it takes; 0 where nothing sees.

    A tower: 2NP + 4LHP^2 forward, of P patches, and three times as much where it learns. A connector is asked once a
    token; its backward pass has the gradients of its weights, where they learn, and of what it was given, where the
    tower does.
    """
    if spec.vision is None:
        return 0.0
    learns = vision == "full"
    seeing = 0.0
    for tower in spec.vision.towers:
        patches = (spec.vision.image_size // tower.patch_size) ** 2
        seeing += 2 * tower.parameters * patches + 4 * tower.num_layers * tower.hidden_size * patches**2
    passes = 1 + (learns or adaptation in ("full", "connector")) + learns
    connecting = 2 * spec.vision.connector_parameters * spec.vision.tokens_per_image * passes
    return float(seeing * (3 if learns else 1) + connecting)


def find_peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak of a device, or None when the device is unknown: an invented peak would be an invented MFU."""
    return next((peak for name, peak in PEAK_BF16_FLOPS.items() if re.search(rf"\b{name}\b", device_name)), None)


def find_mfu(tokens_per_second: float, flops_per_token: float, device_name: str) -> float | None:
    """Model FLOPs utilisation of one device, 0..1, or None on a device with no known peak."""
    peak = find_peak_flops(device_name)
    return None if peak is None else tokens_per_second * flops_per_token / peak
