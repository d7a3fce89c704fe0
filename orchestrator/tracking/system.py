"""What a machine does while a cell trains on it: processor, memory, network, GPUs, a sample every ten seconds.

One process of each machine writes a file of its own beside the spool, from a thread; a tracker sends them under the
names that MLflow gives system metrics. No ray, mlflow; NVIDIA's pynvml (the extra `gpu`) where GPUs are to be seen.
"""

import importlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

SAMPLE_S = 10.0
BEGINNING, ENDING = "system-", ".jsonl"  # of a machine's file; its name stands between
MEGA = 1e6

Values = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """One line. `step` counts the samples of a machine over all attempts."""

    time_ms: int
    step: int
    values: Values


@contextmanager
def sampling(folder: Path, is_first_on_node: bool, every_s: float = SAMPLE_S) -> Iterator[None]:
    """Samples this machine until the block ends, and once more then."""
    if not is_first_on_node:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_sample, args=(folder, done, every_s), name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(every_s)


def _sample(folder: Path, done: threading.Event, every_s: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    file = folder / f"{BEGINNING}{host}{ENDING}"
    step = sum(1 for _ in read_samples(file, 0))
    meters = (_machine(), _gpus())
    with open(file, "ab") as stream:
        if stream.tell() and file.read_bytes()[-1:] != b"\n":
            stream.write(b"\n")  # a killed process left half a line
        last = False
        while not last:
            last = done.is_set()
            values = {name: value for meter in meters for name, value in meter().items()}
            stream.write((json.dumps(asdict(Sample(time.time_ns() // 1_000_000, step, values))) + "\n").encode())
            stream.flush()
            step += 1
            done.wait(every_s)
        os.fsync(stream.fileno())


def _machine() -> Callable[[], Values]:
    """Network figures are since now."""
    first = psutil.net_io_counters()
    psutil.cpu_percent()  # the next call tells of the time since this one

    def read() -> Values:
        memory, network = psutil.virtual_memory(), psutil.net_io_counters()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": round(memory.used / MEGA, 1),
            "system_memory_usage_percentage": memory.percent,
            "network_receive_megabytes": round((network.bytes_recv - first.bytes_recv) / MEGA, 3),
            "network_transmit_megabytes": round((network.bytes_sent - first.bytes_sent) / MEGA, 3),
        }

    return read


def _gpus() -> Callable[[], Values]:
    """Of all GPUs of the machine, whoever uses them; nothing where there are none, or no pynvml."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    except Exception:  # not installed, no driver, no GPU
        return dict

    def read() -> Values:
        values: Values = {}
        for number, handle in enumerate(handles):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            values[f"gpu_{number}_memory_usage_megabytes"] = round(memory.used / MEGA, 1)
            values[f"gpu_{number}_memory_usage_percentage"] = round(100 * memory.used / memory.total, 1)
            asked = {
                "utilization_percentage": lambda one: float(nvml.nvmlDeviceGetUtilizationRates(one).gpu),
                "power_usage_watts": lambda one: nvml.nvmlDeviceGetPowerUsage(one) / 1000,
            }
            for name, ask in asked.items():
                try:
                    values[f"gpu_{number}_{name}"] = ask(handle)
                except nvml.NVMLError:  # a share of a GPU does not say
                    continue
        return values

    return read


def sample_files(folder: Path) -> dict[str, Path]:
    """By machine."""
    files = sorted(folder.glob(f"{BEGINNING}*{ENDING}"))
    return {file.name.removeprefix(BEGINNING).removesuffix(ENDING): file for file in files}


def read_samples(file: Path, offset: int) -> Iterator[tuple[Sample, int]]:
    """Whole samples from a byte offset, each with the offset behind it; what was cut off is passed over."""
    if not file.exists():
        return
    with open(file, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                sample = Sample(**json.loads(line))
            except ValueError:
                continue
            yield sample, offset
