"""What cells took: the wall time of every attempt times its devices, and the money where the spec has a price."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from jobs.results.costs.documents import AttemptsRecord, BackboneCost, Costs, Device, Spent
from jobs.results.documents import TrainedCell
from orchestrator.layout import CellFolder
from orchestrator.results import read_json
from orchestrator.spec_files.spec import Job, Placement
from orchestrator.tracking.spool import Entry, EntryKind, read_spool

HOUR_S = 3600.0
LOADING = "loading"  # the phase of an attempt that follows its start


@dataclass(frozen=True)
class Rate:
    """What an hour of one device costs."""

    per_hour: float
    currency: str


@dataclass(frozen=True)
class AttemptTime:
    """An attempt: from the request for its workers to its end, as far as anybody saw it."""

    seconds: float
    workers: int | None  # None: recorded by a version that did not say
    starting_s: float = 0.0  # of them, until the workers were there and their backbone certified


def device_of(placement: Placement) -> Device:
    """What the hours are of."""
    return "GPU" if placement.gpus_per_worker else "CPU core"


def devices_of(placement: Placement, workers: int) -> int:
    """How many devices so many workers hold."""
    return workers * (placement.gpus_per_worker or placement.cpus_per_worker)


def find_rate(job: Job) -> Rate | None:
    """The spec's price for what its workers hold; None where it has none."""
    if job.price is None:
        return None
    amount = job.price.per_gpu_hour if job.placement.gpus_per_worker else job.price.per_core_hour
    return None if amount is None else Rate(amount, job.price.currency)


def spent(attempts: Iterable[AttemptTime], placement: Placement, rate: Rate | None) -> Spent:
    """What a cell took, with this placement."""
    seconds = device_seconds = starting_s = 0.0
    for attempt in attempts:
        seconds += attempt.seconds
        starting_s += attempt.starting_s
        device_seconds += attempt.seconds * devices_of(placement, attempt.workers or placement.most)
    hours = device_seconds / HOUR_S
    cost = None if rate is None else hours * rate.per_hour
    return {"seconds": seconds, "device_hours": hours, "cost": cost, "starting_s": starting_s}


def total(
    cells: Sequence[TrainedCell], device: Device, rate: Rate | None, trials: Sequence[tuple[str, Spent]] = ()
) -> Costs:
    """What a job took, and each of its backbones. `trials` of learning rates are runs of none of them."""
    by_backbone: dict[str, list[TrainedCell]] = {}
    for cell in cells:
        by_backbone.setdefault(cell["backbone_id"], []).append(cell)
    tuning: dict[str, float] = {}
    for backbone_id, one in trials:
        tuning[backbone_id] = tuning.get(backbone_id, 0.0) + one["device_hours"]
    hours = sum(cell["spent"]["device_hours"] for cell in cells) + sum(tuning.values())
    return {
        "device": device,
        "price_per_hour": None if rate is None else rate.per_hour,
        "currency": None if rate is None else rate.currency,
        "device_hours": hours,
        "cost": _priced(hours, rate),
        "backbones": [_backbone(name, own, tuning.get(name, 0.0), rate) for name, own in by_backbone.items()],
    }


def _backbone(backbone_id: str, cells: Sequence[TrainedCell], tuning: float, rate: Rate | None) -> BackboneCost:
    hours = sum(cell["spent"]["device_hours"] for cell in cells) + tuning
    finished = [cell["spent"]["device_hours"] for cell in cells if cell["status"] == "SUCCEEDED"]
    per_run = fmean(finished) if finished else None
    return {
        "backbone_id": backbone_id,
        "device_hours": hours,
        "tuning_device_hours": tuning,
        "device_hours_per_run": per_run,
        "cost": _priced(hours, rate),
        "cost_per_run": _priced(per_run, rate),
    }


def _priced(hours: float | None, rate: Rate | None) -> float | None:
    return None if hours is None or rate is None else hours * rate.per_hour


def attempt_times(folder: Path) -> list[AttemptTime]:
    """The attempts of a cell, the first one first; none where it never began."""
    files = CellFolder(folder)
    record: AttemptsRecord = read_json(files.attempts) if files.attempts.exists() else {"count": 0, "reasons": []}
    return spans(read_spool(files.spool), record.get("ended_ms", []))


def spans(entries: Iterable[Entry], ended_ms: Sequence[int | None]) -> list[AttemptTime]:
    """An attempt that nobody saw end took until its last line, and one that failed as long as it was waited for."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    loading: dict[int, int] = {}
    workers: dict[int, int] = {}
    for entry in entries:
        first.setdefault(entry.attempt, entry.time_ms)
        last[entry.attempt] = entry.time_ms
        if entry.kind is EntryKind.PHASE and "workers" in entry.fields:
            workers[entry.attempt] = entry.fields["workers"]
        if entry.kind is EntryKind.PHASE and entry.fields.get("phase") == LOADING:
            loading.setdefault(entry.attempt, entry.time_ms)
    ends = _numbered(ended_ms)
    return [
        AttemptTime(
            max(0, ends.get(attempt, 0) - began, last[attempt] - began) / 1000,
            workers.get(attempt),
            max(0, loading.get(attempt, began) - began) / 1000,
        )
        for attempt, began in sorted(first.items())
    ]


def _numbered(ended_ms: Sequence[int | None]) -> Mapping[int, int]:
    return {number: ended for number, ended in enumerate(ended_ms, 1) if ended is not None}
