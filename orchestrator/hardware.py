"""What a worker runs on: its device, the device's name, its memory, the versions that matter.

Imports torch only where a device is asked for.
"""

import ctypes
import gc
import importlib.metadata
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 1024**3
PROCESS_STATUS, PROCESS_REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORGET_PEAK = "5"  # proc(5): resets the peak resident set size to the current one
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
    """Largest device memory that tensors took; on a CPU the largest resident size of the process.

    Both since `forget_peak_memory`. 0 where the system does not say.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / GIB
    # Not getrusage: its maximum is inherited from the process that forked this one.
    lines = PROCESS_STATUS.read_text().splitlines() if PROCESS_STATUS.exists() else []
    kib = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
    return kib * 1024 / GIB


def forget_peak_memory(device: "torch.device") -> None:
    """What comes next has a peak of its own, on the device and in the process. Gives unused device memory back."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError, AttributeError):  # glibc keeps what was freed, for reuse; only Linux has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):  # of this process alone, and only on Linux
        PROCESS_REFERENCES.write_text(FORGET_PEAK)


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    distributions = {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES}
    return {"python": platform.python_version(), **distributions}
