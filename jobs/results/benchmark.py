"""What a benchmark found: `benchmark.json`, `benchmark.html`, and the tables for a terminal."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.formats import size
from jobs.results.finished import environment, outcome
from jobs.results.throughput import Spread, figures, find_faults, same_time_as
from orchestrator.layout import CellFolder
from orchestrator.planning.flops import find_mfu
from orchestrator.planning.plan import Cell, CellForecast, Plan
from orchestrator.results import CellResult, Measurement
from orchestrator.spec_files.spec import Benchmark
from orchestrator.tracking.spool import read_spool

Document = dict[str, Any]


def benchmark_document(plan: Plan, results: Sequence[CellResult], command: str) -> Document:
    """Everything the page shows, as plain data. `results` are in the order of the plan's cells."""
    job = plan.job
    assert isinstance(job, Benchmark)
    measured = [result.measurement for result in results if result.measurement is not None]
    cells = [
        _cell_facts(cell, forecast, result, job)
        for cell, forecast, result in zip(plan.cells, plan.forecasts, results, strict=True)
    ]
    spans = {cell["backbone_id"]: cell["figures"] and cell["figures"]["span_ms"] for cell in cells}
    for cell in cells:
        if others := same_time_as(cell["backbone_id"], spans):
            cell["faults"].append(f"it was measured at the same time as {', '.join(others)}")
    return {
        "format": 1,
        "comparison": {
            "name": job.name,
            "id": plan.job_id,
            "kind": plan.kind,
            "spec": job.model_dump(mode="json", by_alias=True),
            "spec_yaml": plan.source.text,
            "command": command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "export": None,
        },
        "benchmark": {
            "occurrence": job.occurrence,
            "warm_up_steps": job.warm_up,
            "measured_steps": job.measured,
            "workers": job.placement.workers,
            "global_batch_size": job.recipe.global_batch_size,
            "sequence_length": job.recipe.sequence_length,
            "training_examples": len(plan.train.examples),
            "held_out_examples": len(plan.validation.examples),
        },
        "environment": environment(measured[0] if measured else None),
        "cells": cells,
        "metrics": {cell["backbone_id"]: _metrics(cell["figures"]) for cell in cells if cell["figures"]},
        # What every job's document has, for those who read only that.
        "ranking": [],
        "history": None,
        "certificates": {},
        "verdict": {"sentence": headline(cells)},
    }


def headline(cells: Sequence[Document]) -> str:
    """Who is fastest, in text per second: a token is not the same amount of text for every tokenizer."""
    speeds = {
        cell["backbone_id"]: Spread(**cell["figures"]["bytes_per_second_per_device"])
        for cell in cells
        if cell["figures"] and cell["figures"]["bytes_per_second_per_device"]
    }
    if not speeds:
        return "No run finished, so nothing was measured."
    first, *others = sorted(speeds, key=lambda name: -speeds[name].median)
    speed = f"{size(speeds[first].median)} of text a second per device"
    if not others:
        return f"{first} trains on {speed}."
    near = [name for name in others if not is_slower(speeds[name], speeds[first])]
    if near:
        return f"{first} and {' and '.join(near)} cannot be told apart: about {speed}."
    ratio = speeds[first].median / speeds[others[0]].median
    doubt = any(cell["faults"] for cell in cells if cell["backbone_id"] in (first, others[0]))
    verb = "came out fastest, with the reservations below" if doubt else "is the fastest"
    return f"{first} {verb}: {speed}, {ratio:.2f} times {others[0]}."


def is_slower(one: Spread, other: Spread) -> bool:
    """Whether the intervals of their medians leave no doubt that the first rate is lower."""
    return one.sure is not None and other.sure is not None and one.sure[1] < other.sure[0]


def _cell_facts(cell: Cell, forecast: CellForecast, result: CellResult, job: Benchmark) -> Document:
    facts = {
        **outcome(result),
        "figures": None,
        "faults": [],
        "contract": {},
    }
    measurement = result.measurement
    if measurement is None:
        return facts
    found = figures(list(read_spool(CellFolder(Path(result.folder)).spool)), job.warm_up, cell.placement.workers)
    return facts | {
        "figures": _figures(cell, forecast, measurement, asdict(found)) | {"checkpoint_stall_s": found.stall_s},
        "faults": find_faults(found, job.measured, result.attempts),
        "contract": measurement.contract,
    }


def _figures(cell: Cell, forecast: CellForecast, measurement: Measurement, found: Document) -> Document:
    """Adds what the spool does not know: the share of each device, MFU, memory."""
    workers, on_gpu = cell.placement.workers, cell.placement.gpus_per_worker > 0
    per_device = {
        f"{name}_per_device": _scaled(found[name], 1 / workers) for name in ("tokens_per_second", "bytes_per_second")
    }
    tokens = _median(per_device["tokens_per_second_per_device"])
    knows_peak = on_gpu and cell.recipe.precision == "bf16" and tokens is not None  # the table of peaks is of bf16
    device = measurement.data["device"]
    return {
        **found,
        **per_device,
        "mfu": find_mfu(tokens, forecast.flops_per_token, device) if knows_peak and tokens is not None else None,
        "flops_per_token": forecast.flops_per_token,
        "peak_device_memory_gib": measurement.metrics["peak_memory_gib"] if on_gpu else None,
        "peak_host_memory_gib": measurement.metrics["peak_host_memory_gib"],
        "predicted_device_memory_gib": forecast.memory.total,
        "checkpoint_bytes": found["checkpoints"][-1]["size_bytes"] if found["checkpoints"] else None,
    }


def _metrics(figures: Document) -> dict[str, float]:
    """The figures as single numbers, medians where there is a spread; what was not measured is left out."""
    spreads = ("tokens_per_second_per_device", "bytes_per_second_per_device", "examples_per_second", "step_time_s")
    found = {
        **{name: _median(figures[name]) for name in spreads},
        **{name: figures[name] for name in ("mfu", "peak_device_memory_gib", "peak_host_memory_gib")},
        **{name: figures["startup"][name] for name in ("load_s", "first_step_s")},
        **{name: figures[name] for name in ("checkpoint_stall_s", "checkpoint_bytes")},
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _scaled(spread: Document | None, factor: float) -> Document | None:
    if spread is None:
        return None
    scaled = {name: spread[name] * factor for name in ("median", "low", "high")}
    return spread | scaled | {"sure": spread["sure"] and [bound * factor for bound in spread["sure"]]}


def _median(spread: Document | None) -> float | None:
    return None if spread is None else float(spread["median"])
