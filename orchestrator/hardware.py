"""What a worker runs on: its device, the device's name, its memory, the versions that matter.

Imports torch only where a device is asked for.
"""

import importlib.metadata
import platform
import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 1024**3
RECORDED_PACKAGES = ("torch", "transformers", "ray", "mlflow", "accelerate", "tokenizers", "safetensors", "numpy")


def device_name(device: "torch.device") -> str:
    """CUDA's own name of the device, or the processor's model."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"CPU {model or platform.processor() or platform.machine()}"


def peak_memory_gib(device: "torch.device") -> float:
    """Largest device memory that tensors took; on a CPU the largest resident size of the process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    distributions = {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES}
    return {"python": platform.python_version(), **distributions}
