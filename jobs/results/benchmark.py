"""What a benchmark found, as the facts of `benchmark.json`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic_core import to_jsonable_python

from jobs.formats import size
from jobs.results.benchmark_documents import BenchmarkReport, CellFigures, MeasuredCell, SpoolFigures, SpreadFacts
from jobs.results.finished import environment, outcome
from jobs.results.throughput import figures, find_faults, same_time_as
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Cell, CellForecast, Plan
from orchestrator.planning.sizes.flops import find_mfu
from orchestrator.results import CellResult, Measurement
from orchestrator.spec_files.spec import Benchmark
from orchestrator.tracking.spool import read_spool


def benchmark_document(plan: Plan, results: Sequence[CellResult], command: str) -> BenchmarkReport:
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
            "workers": job.placement.most,
            "global_batch_size": job.recipe.global_batch_size,
            "sequence_length": job.recipe.sequence_length,
            "training_examples": len(plan.train),
            "held_out_examples": len(plan.validation),
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


def headline(cells: Sequence[MeasuredCell]) -> str:
    """Who is fastest, in text per second: a token is not the same amount of text for every tokenizer."""
    rates = {cell["backbone_id"]: cell["figures"]["bytes_per_second_per_device"] for cell in cells if cell["figures"]}
    speeds = {name: rate for name, rate in rates.items() if rate}
    if not speeds:
        return "No run finished, so nothing was measured."
    first, *others = sorted(speeds, key=lambda name: -speeds[name]["median"])
    speed = f"{size(speeds[first]['median'])} of text a second per device"
    if not others:
        return f"{first} trains on {speed}."
    near = [name for name in others if not is_slower(speeds[name], speeds[first])]
    if near:
        return f"{first} and {' and '.join(near)} cannot be told apart: about {speed}."
    ratio = speeds[first]["median"] / speeds[others[0]]["median"]
    doubt = any(cell["faults"] for cell in cells if cell["backbone_id"] in (first, others[0]))
    verb = "came out fastest, with the reservations below" if doubt else "is the fastest"
    return f"{first} {verb}: {speed}, {ratio:.2f} times {others[0]}."


def is_slower(one: SpreadFacts, other: SpreadFacts) -> bool:
    """Whether the intervals of their medians leave no doubt that the first rate is lower."""
    return one["sure"] is not None and other["sure"] is not None and one["sure"][1] < other["sure"][0]


def _cell_facts(cell: Cell, forecast: CellForecast, result: CellResult, job: Benchmark) -> MeasuredCell:
    facts: MeasuredCell = {
        **outcome(result),
        "figures": None,
        "faults": [],
        "contract": {},
    }
    measurement = result.measurement
    if measurement is None:
        return facts
    found = figures(list(read_spool(CellFolder(Path(result.folder)).spool)), job.warm_up, cell.placement.most)
    facts["figures"] = _figures(cell, forecast, measurement, to_jsonable_python(found), found.stall_s)
    facts["faults"] = find_faults(found, job.measured, result.attempts)
    facts["contract"] = measurement.contract
    return facts


def _figures(
    cell: Cell, forecast: CellForecast, measurement: Measurement, found: SpoolFigures, stall_s: float | None
) -> CellFigures:
    """Adds what the spool does not know: the share of each device, MFU, memory."""
    workers, on_gpu = cell.placement.most, cell.placement.gpus_per_worker > 0
    tokens_each = _scaled(found["tokens_per_second"], 1 / workers)
    tokens = find_median(tokens_each)
    knows_peak = on_gpu and cell.recipe.precision == "bf16" and tokens is not None  # the table of peaks is of bf16
    device = measurement.data["device"]
    return {
        **found,
        "tokens_per_second_per_device": tokens_each,
        "bytes_per_second_per_device": _scaled(found["bytes_per_second"], 1 / workers),
        "mfu": find_mfu(tokens, forecast.flops_per_token, device) if knows_peak and tokens is not None else None,
        "flops_per_token": forecast.flops_per_token,
        "peak_device_memory_gib": measurement.metrics["peak_memory_gib"] if on_gpu else None,
        "peak_host_memory_gib": measurement.metrics["peak_host_memory_gib"],
        "predicted_device_memory_gib": forecast.memory.total,
        "checkpoint_bytes": found["checkpoints"][-1]["size_bytes"] if found["checkpoints"] else None,
        "checkpoint_stall_s": stall_s,
    }


def _metrics(figures: CellFigures) -> dict[str, float]:
    """The figures as single numbers, medians where there is a spread; what was not measured is left out."""
    startup = figures["startup"]
    found = {
        "tokens_per_second_per_device": find_median(figures["tokens_per_second_per_device"]),
        "bytes_per_second_per_device": find_median(figures["bytes_per_second_per_device"]),
        "examples_per_second": find_median(figures["examples_per_second"]),
        "step_time_s": find_median(figures["step_time_s"]),
        "mfu": figures["mfu"],
        "peak_device_memory_gib": figures["peak_device_memory_gib"],
        "peak_host_memory_gib": figures["peak_host_memory_gib"],
        "load_s": None if startup is None else startup["load_s"],
        "first_step_s": None if startup is None else startup["first_step_s"],
        "checkpoint_stall_s": figures["checkpoint_stall_s"],
        "checkpoint_bytes": figures["checkpoint_bytes"],
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _scaled(spread: SpreadFacts | None, factor: float) -> SpreadFacts | None:
    if spread is None:
        return None
    return {
        "median": spread["median"] * factor,
        "low": spread["low"] * factor,
        "high": spread["high"] * factor,
        "count": spread["count"],
        "sure": None if spread["sure"] is None else [bound * factor for bound in spread["sure"]],
    }


def find_median(spread: SpreadFacts | None) -> float | None:
    """None where nothing was measured."""
    return None if spread is None else float(spread["median"])
