"""How long a plan's cells would train and what they would cost, where the storage holds a measured speed.

A speed counts where the same backbone ran with the same placement and a recipe that computes the same: in a comparison,
a finetune or a benchmark. Nothing is guessed for other placements; what it was measured on is named beside the numbers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jobs.formats import NOT_AVAILABLE, is_number
from jobs.results.costs.documents import Device
from jobs.results.costs.spent import HOUR_S, Rate, device_of, devices_of, find_rate
from jobs.results.documents import REPORT_FORMAT
from orchestrator.errors import FormatError
from orchestrator.layout import Storage
from orchestrator.planning.plan import Cell, CellForecast, Plan
from orchestrator.results import load_json

LATEST = 20  # jobs of the storage that are looked at
MOST_BYTES = 50_000_000  # of their documents together
DECIDING = (
    *("sequence_length", "global_batch_size", "micro_batch_size", "packing", "precision", "attention"),
    *("activation_checkpointing", "adaptation", "compile"),
)
RATES = ("tokens_per_second_per_device", "bytes_per_second_per_device", "step_time_s")


@dataclass(frozen=True)
class Speed:
    """How fast a backbone trained, medians over its runs; rates are those of one worker."""

    tokens_per_second: float
    bytes_per_second: float
    step_time_s: float
    besides_s: float | None  # of a run: loading, scoring, saving; a benchmark does not know
    starting_s: float  # once a job: workers start, and certificates are made
    job_id: str
    hardware: str


@dataclass(frozen=True)
class CellPrediction:
    """What a cell would take; None where nobody measured it."""

    seconds: float | None
    device_hours: float | None
    cost: float | None


@dataclass(frozen=True)
class Prediction:
    """What a plan would take. `cells` in its order; totals are of the cells that are known, and of starting once."""

    device: Device
    rate: Rate | None
    cells: tuple[CellPrediction, ...]
    starting_hours: float  # of devices
    speeds: Mapping[str, Speed]  # by backbone
    unknown: tuple[str, ...]  # backbones whose cells are not known

    @property
    def known(self) -> int:
        return sum(cell.seconds is not None for cell in self.cells)

    @property
    def device_hours(self) -> float:
        return self.starting_hours + sum(cell.device_hours or 0.0 for cell in self.cells)

    @property
    def cost(self) -> float | None:
        return None if self.rate is None else self.device_hours * self.rate.per_hour


def predict(plan: Plan) -> Prediction:
    """By what was measured in the plan's storage before."""
    speeds, rate = find_speeds(plan), find_rate(plan.job)
    cells = tuple(
        _cell(cell, forecast, speeds.get(cell.backbone.backbone_id), rate)
        for cell, forecast in zip(plan.cells, plan.forecasts, strict=True)
    )
    missing = {
        cell.backbone.backbone_id: None
        for cell, found, forecast in zip(plan.cells, cells, plan.forecasts, strict=True)
        if found.seconds is None and forecast.infeasible is None
    }
    starting_s = max((speed.starting_s for speed in speeds.values()), default=0.0) if plan.cells else 0.0
    starting_hours = starting_s * devices_of(plan.job.placement, plan.job.placement.most) / HOUR_S
    return Prediction(device_of(plan.job.placement), rate, cells, starting_hours, speeds, tuple(missing))


def _cell(cell: Cell, forecast: CellForecast, speed: Speed | None, rate: Rate | None) -> CellPrediction:
    seconds = None if forecast.infeasible is not None else _seconds(cell, forecast, speed)
    if seconds is None:
        return CellPrediction(None, None, None)
    hours = seconds * devices_of(cell.placement, cell.placement.most) / HOUR_S
    return CellPrediction(seconds, hours, None if rate is None else hours * rate.per_hour)


def _seconds(cell: Cell, forecast: CellForecast, speed: Speed | None) -> float | None:
    """Until the budget is used up, and what a run takes besides, where that is known. A budget of time says it."""
    budget, workers = cell.recipe.budget, cell.placement.most
    besides_s = (speed and speed.besides_s) or 0.0
    if budget.kind == "gpu_hours":
        return budget.amount * HOUR_S / workers + besides_s
    if speed is None:
        return None
    if budget.kind == "steps":
        return budget.amount * speed.step_time_s + besides_s
    a_second = {
        "bytes": speed.bytes_per_second,
        "tokens": speed.tokens_per_second,
        "flops": speed.tokens_per_second * forecast.flops_per_token,
    }[budget.kind]
    return budget.amount / (a_second * workers) + besides_s


def find_speeds(plan: Plan) -> dict[str, Speed]:
    """By backbone, the newest measurement in the storage that counts for this plan."""
    wanted = {cell.backbone.backbone_id for cell in plan.cells}
    found: dict[str, Speed] = {}
    for document in _documents(Storage(plan.storage)):
        if wanted <= found.keys():
            break
        if _counts_for(plan, document["comparison"]["spec"]):
            found = {**_speeds(document, wanted), **found}
    return found


def _documents(storage: Storage) -> Iterator[dict[str, Any]]:
    """Reports and benchmarks, the newest first, as many as can be read at once. One that is damaged says nothing."""
    files = [job.report for job in storage.reports()] + [job.benchmark for job in storage.benchmarks()]
    aged = sorted(((file.stat().st_mtime, file) for file in files if file.is_file()), reverse=True)
    left = MOST_BYTES
    for _, file in aged[:LATEST]:
        size = file.stat().st_size
        if size <= left and (document := _readable(file)) is not None:
            left -= size
            yield document


def _readable(file: Path) -> dict[str, Any] | None:
    try:
        document = load_json(file, REPORT_FORMAT)
        return document if isinstance(document["comparison"]["spec"], dict) else None
    except (FormatError, OSError, ValueError, KeyError, TypeError):
        return None


def _counts_for(plan: Plan, spec: Mapping[str, Any]) -> bool:
    recipe, ours = spec.get("recipe") or {}, plan.job.recipe.model_dump(mode="json")
    same_work = all(recipe.get(key) == ours.get(key) for key in DECIDING)
    return same_work and spec.get("placement") == plan.job.placement.model_dump(mode="json")


def _speeds(document: Mapping[str, Any], wanted: set[str]) -> dict[str, Speed]:
    """Of the runs of a report, else of a benchmark, which has its figures by backbone."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for cell in document.get("cells", ()):
        if cell.get("status") == "SUCCEEDED" and cell.get("backbone_id") in wanted:
            metrics = cell.get("metrics") or document.get("metrics", {}).get(cell["backbone_id"], {})
            if all(is_number(metrics.get(name)) and metrics[name] > 0 for name in RATES):
                runs.setdefault(cell["backbone_id"], []).append({**cell, "metrics": metrics})
    job_id = document["comparison"].get("id", NOT_AVAILABLE)
    hardware = document.get("environment", {}).get("hardware", NOT_AVAILABLE)
    return {name: _speed(own, job_id, hardware) for name, own in runs.items()}


def _speed(runs: list[Mapping[str, Any]], job_id: str, hardware: str) -> Speed:
    tokens, size, step = (median(run["metrics"][name] for run in runs) for name in RATES)
    timed = [run for run in runs if run.get("attempts") == 1 and "spent" in run]
    starting = [run["spent"].get("starting_s", 0.0) for run in timed]
    besides = [
        max(0.0, run["spent"]["seconds"] - starting_s - run["metrics"]["train_time_s"])
        for run, starting_s in zip(timed, starting, strict=True)
        if is_number(run["metrics"].get("train_time_s"))
    ]
    between = median(besides) if besides else None
    return Speed(tokens, size, step, between, max(starting, default=0.0), job_id, hardware)
