"""From per-item scores and a cell's spool to its `Measurement`. No torch: the driver reads these too."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from orchestrator.data.sources.containers import read_columns, write_columns
from orchestrator.layout import CellFolder
from orchestrator.planning.sizes.flops import find_mfu
from orchestrator.results import EvaluationPoint, Measurement, StepMetrics, load_json, measurement_from_json, write_json
from orchestrator.tracking.spool import EntryKind, read_spool, with_warm_up

WARM_UP_STEPS = 2  # the first steps of every attempt: allocator, kernel selection, page cache


@dataclass(frozen=True)
class ItemScores:
    """One entry per scored held-out item; `items` rise."""

    items: np.ndarray  # (items,) int64, indices into the validation split
    nats: np.ndarray  # (items,) float64
    tokens: np.ndarray  # (items,) int64, scored tokens
    bytes: np.ndarray  # (items,) int64, UTF-8 bytes of the original text

    @property
    def bits_per_byte(self) -> float:
        """Total nats / ln 2 / total bytes: the byte-weighted corpus ratio."""
        return bits_per_byte(float(self.nats.sum()), int(self.bytes.sum()))

    @property
    def each_bits_per_byte(self) -> np.ndarray:
        """Of every item by itself, (items,) float64."""
        each: np.ndarray = self.nats / math.log(2) / np.maximum(self.bytes, 1)
        return each

    @property
    def loss(self) -> float:
        """Nats per scored token."""
        return float(self.nats.sum()) / max(int(self.tokens.sum()), 1)


def bits_per_byte(nats: float, number_of_bytes: int) -> float:
    """Nats over UTF-8 bytes in bits. Source: The Pile, https://arxiv.org/abs/2101.00027, section 3.1."""
    return nats / math.log(2) / max(number_of_bytes, 1)


def measure(
    folder: Path,
    spool_folder: Path,
    *,
    workers: int,
    device: str,
    on_gpu: bool,
    flops_per_token: float,
    peak_memory_gib: float,
    peak_host_memory_gib: float,
    load_time_s: float,
    checkpoint_stall_s: float,
    contract: dict[str, Any],
    extra: Mapping[str, float],
    facts: Mapping[str, Any],
) -> Measurement:
    """Summarises a finished cell. Rates are per device over steps after warm-up; times in seconds.

    `extra` is what other stages measured, by name, and `facts` what they say besides.
    """
    entries = list(read_spool(spool_folder))
    steps = [StepMetrics(**entry.fields) for entry in entries if entry.kind is EntryKind.STEP]
    points = sorted(
        (EvaluationPoint(**entry.fields) for entry in entries if entry.kind is EntryKind.EVALUATION),
        key=lambda point: point.step,
    )
    warm = [StepMetrics(**entry.fields) for entry, counts in with_warm_up(entries, WARM_UP_STEPS) if counts] or steps
    warm_time = sum(step.step_time_s for step in warm)
    tokens_per_second = sum(step.tokens_per_second_per_device * step.step_time_s for step in warm) / warm_time
    bytes_per_token = steps[-1].bytes_seen / steps[-1].tokens_seen
    total_time = sum(step.step_time_s for step in steps)
    metrics: dict[str, float | None] = {
        "val_bits_per_byte": points[-1].val_bits_per_byte,
        "val_bits_per_byte_before": points[0].val_bits_per_byte,
        "val_loss": points[-1].val_loss,
        "train_loss": steps[-1].loss,
        "tokens_per_second_per_device": tokens_per_second,
        "bytes_per_second_per_device": tokens_per_second * bytes_per_token,
        "step_time_s": median(step.step_time_s for step in warm),
        "train_time_s": total_time,
        "peak_memory_gib": peak_memory_gib,
        "peak_host_memory_gib": peak_host_memory_gib,
        "mfu": find_mfu(tokens_per_second, flops_per_token, device) if on_gpu else None,
        "gpu_hours": workers * total_time / 3600 if on_gpu else None,
        "load_time_s": load_time_s,
        "checkpoint_stall_s": checkpoint_stall_s,
        "steps": steps[-1].step,
        "examples_seen": steps[-1].examples_seen,
        "tokens_seen": steps[-1].tokens_seen,
        "bytes_seen": steps[-1].bytes_seen,
        "training_flops": steps[-1].tokens_seen * flops_per_token,
        "parameters": contract["parameters"],
        **extra,
    }
    data = {"device": device, "workers": workers, **facts}
    return Measurement(metrics, points, contract, data, CellFolder(folder).items.name)


def save_item_scores(folder: Path, scores: ItemScores) -> None:
    """Keeps the per-item scores that the verdict pairs: a row an item, with the columns of `ItemScores`."""
    columns = {"item": scores.items, "nats": scores.nats, "tokens": scores.tokens, "bytes": scores.bytes}
    write_columns(CellFolder(folder).items, columns)


def load_item_scores(folder: Path) -> ItemScores:
    """The per-item scores of a finished cell, also of one that an earlier version finished. Raises OSError."""
    files = CellFolder(folder)
    if files.earlier_items.exists() and not files.items.exists():
        with np.load(files.earlier_items, allow_pickle=False) as arrays:
            return ItemScores(**{name: arrays[name] for name in arrays.files})
    columns = read_columns(files.items)
    return ItemScores(*(columns[name] for name in ("item", "nats", "tokens", "bytes")))


def write_measurement(folder: Path, measurement: Measurement) -> None:
    """The last thing a worker does: its presence says that the cell was trained and measured."""
    write_json(CellFolder(folder).measurement, asdict(measurement))


def find_measurement(folder: Path) -> Measurement | None:
    """The measurement of a cell whose workers finished, or None."""
    path = CellFolder(folder).measurement
    return measurement_from_json(load_json(path)) if path.exists() else None
