"""A scheduled run against its schedule's own history: what left the band of the earlier runs, which versions moved."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from pydantic import TypeAdapter

from jobs.formats import fixed, is_number, percent, short_id, significant
from jobs.results.documents import (
    EarlierValue,
    History,
    HistoryRecord,
    HistoryRow,
    PackageMove,
    Report,
    TrainedCell,
    load_document,
)
from orchestrator.errors import FormatError, InputError
from orchestrator.identity import content_hash
from orchestrator.layout import Storage
from orchestrator.planning.occurrence import parse_occurrence
from orchestrator.planning.plan import Plan, ids_without_occurrence
from orchestrator.results import FORMAT, CellStatus, write_json

LATEST = 10  # earlier runs that are looked at
FEWEST = 3  # earlier runs that make a band
LEVEL = 0.99  # of the band: with a dozen rows, about one run in nine has one outside by chance
FLOOR = 0.001  # half the band's width is at least this share of the mean: runs that repeat exactly have no spread

RECORD = TypeAdapter(HistoryRecord)


@dataclass(frozen=True)
class Quantity:
    """Something that is watched, and the direction that is worse."""

    metric: str
    heading: str
    worse: str  # above or below
    of_hardware: bool  # compared only between runs on the same hardware

    def written(self, value: Any) -> str:
        return significant(value) if self.of_hardware else fixed(value)


QUANTITIES = (
    Quantity("val_bits_per_byte", "held-out bits per byte", "above", False),
    Quantity("tokens_per_second_per_device", "tokens/s per device", "below", True),
    Quantity("peak_memory_gib", "peak memory (GiB)", "above", True),
)


@dataclass(frozen=True)
class Measured:
    """A backbone in one firing. `subject` is equal where the same was measured: content, recipe, data, seeds."""

    subject: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Record:
    """What the history keeps of a firing."""

    occurrence: str
    hardware: str
    packages: Mapping[str, str]
    backbones: Mapping[str, Measured]

    @property
    def tick(self) -> str:
        return self.occurrence.partition("/")[2]


def compare_with_history(plan: Plan, document: Report) -> History | None:
    """Writes this firing's record below the storage, and compares it with the earlier ones.

    None for a job that no schedule fired. The result is plain data: rows, versions that moved, `sentences`.
    """
    if plan.occurrence is None:
        return None
    folder = Storage(plan.storage).schedule(parse_occurrence(plan.occurrence)[0])
    record = _record(plan.occurrence, ids_without_occurrence(plan), document)
    earlier, left_out = _load_earlier(folder, _file_name(record))
    if record.backbones:  # an attempt that measured nothing says nothing to later ones
        write_json(folder / _file_name(record), {"format": FORMAT, **asdict(record)})
    return compare_records(record, earlier, left_out)


def compare_records(record: Record, earlier: Sequence[Record], left_out: Sequence[str] = ()) -> History:
    """The facts for report and console. `earlier` from the oldest to the newest."""
    rows = [_row(record, earlier, backbone_id, quantity) for backbone_id in record.backbones for quantity in QUANTITIES]
    since = earlier[-1] if earlier and record.backbones else None
    moved = [] if since is None else list(_moved(since, record))
    notes = [
        *([] if earlier else ["the first run of this schedule: there is nothing to compare it with yet"]),
        *([] if record.backbones else ["nothing was measured, so nothing is compared"]),
        *_changed_subjects(record, earlier),
        *left_out,
    ]
    return {
        "schedule": record.occurrence.partition("/")[0],
        "tick": record.tick,
        "level": LEVEL,
        "earlier": [one.tick for one in earlier],
        "rows": rows,
        "moved": moved,
        "moved_since": None if since is None else since.tick,
        "notes": notes,
        "sentences": [*_readings(rows), *_movements(moved, since), *notes],
    }


def prediction_band(values: Sequence[float]) -> tuple[float, float] | None:
    """Where the next value lies with probability `LEVEL`, if it comes from the same normal distribution.

    mean ± t(1 - (1 - LEVEL) / 2, n - 1) · s · sqrt(1 + 1 / n), at least ± FLOOR · |mean|; None below `FEWEST` values.
    Source: Meeker, Hahn, Escobar, Statistical Intervals, 2nd edition 2017, chapter 4: one future observation.
    """
    if len(values) < FEWEST:
        return None
    from scipy.special import stdtrit

    mean, n = fmean(values), len(values)
    half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * stdev(values) * math.sqrt(1 + 1 / n)
    half = max(half, FLOOR * abs(mean))
    return mean - half, mean + half


def _record(occurrence: str, plain_ids: Mapping[str, str], document: Report) -> Record:
    finished: dict[str, list[TrainedCell]] = {}
    for cell in document["cells"]:
        if cell["status"] == CellStatus.SUCCEEDED:
            finished.setdefault(cell["backbone_id"], []).append(cell)
    backbones = {
        backbone_id: Measured(content_hash(sorted(plain_ids[cell["cell_id"]] for cell in cells)), _values(cells))
        for backbone_id, cells in finished.items()
    }
    environment = document["environment"]
    return Record(occurrence, environment["hardware"], environment["packages"], backbones)


def _values(cells: Sequence[TrainedCell]) -> dict[str, float]:
    """Means over the seeds; memory is the largest, as that is what must fit."""
    values = {}
    for quantity in QUANTITIES:
        found = [cell["metrics"].get(quantity.metric) for cell in cells]
        if numbers := [float(value) for value in found if is_number(value)]:
            values[quantity.metric] = max(numbers) if quantity.metric == "peak_memory_gib" else fmean(numbers)
    return values


def _file_name(record: Record) -> str:
    return f"{record.tick.replace(':', '')}.json"


def _instant(file_name: str) -> str:
    """Sorts files by time: ticks have minutes, firings by hand also seconds."""
    return file_name.removesuffix("Z.json").ljust(len("2026-11-22T020000"), "0")


def _load_earlier(folder: Path, own: str) -> tuple[list[Record], list[str]]:
    """The latest records before `own`, oldest first, and a sentence for each file that cannot be read."""
    files = sorted((path.name for path in folder.glob("*Z.json")), key=_instant, reverse=True)
    records: list[Record] = []
    left_out: list[str] = []
    for name in (name for name in files if _instant(name) < _instant(own)):
        if len(records) == LATEST:
            break
        try:
            records.append(_record_from_json(load_document(folder / name, RECORD)))
        except FormatError as error:
            left_out.append(f"{name} in the schedule's folder was left out: {error}")
        except (InputError, OSError, ValueError):
            left_out.append(f"{name} in the schedule's folder is damaged and was left out; delete it")
    return records[::-1], left_out


def _record_from_json(found: HistoryRecord) -> Record:
    backbones = {name: Measured(one["subject"], dict(one["values"])) for name, one in found["backbones"].items()}
    return Record(found["occurrence"], found["hardware"], dict(found["packages"]), backbones)


def _row(record: Record, earlier: Sequence[Record], backbone_id: str, quantity: Quantity) -> HistoryRow:
    """One quantity of one backbone against the earlier runs that measured the same."""
    measured = record.backbones[backbone_id]
    value = measured.values.get(quantity.metric)
    alike: list[EarlierValue] = [
        {"tick": one.tick, "value": one.backbones[backbone_id].values[quantity.metric]}
        for one in earlier
        if _measures(one, backbone_id, measured.subject, quantity.metric)
        and (one.hardware == record.hardware or not quantity.of_hardware)
    ]
    band = prediction_band([one["value"] for one in alike])
    left: Literal["below", "above"] | None = None
    if value is not None and band is not None:
        left = "below" if value < band[0] else "above" if value > band[1] else None
    return {
        "backbone_id": backbone_id,
        "quantity": quantity.metric,
        "value": value,
        "earlier": alike,
        "band": None if band is None else list(band),
        "left": left,
        "worse": None if left is None else left == quantity.worse,
    }


def _measures(record: Record, backbone_id: str, subject: str, metric: str) -> bool:
    found = record.backbones.get(backbone_id)
    return found is not None and found.subject == subject and metric in found.values


def _changed_subjects(record: Record, earlier: Sequence[Record]) -> Iterator[str]:
    """What keeps earlier runs out of the comparison."""
    for backbone_id, measured in record.backbones.items():
        had = [one for one in earlier if backbone_id in one.backbones]
        other = sum(one.backbones[backbone_id].subject != measured.subject for one in had)
        if other:
            yield (
                f"{short_id(backbone_id)}: {other} of {len(had)} earlier runs measured something else (the backbone, "
                "recipe, data, placement, candidates or finished seeds changed), so they are not compared"
            )
    elsewhere = sorted({one.hardware for one in earlier if one.backbones and one.hardware != record.hardware})
    if record.backbones and elsewhere:
        yield f"speed and memory are compared only with runs on {record.hardware}, not with {', '.join(elsewhere)}"


def _moved(before: Record, now: Record) -> Iterator[PackageMove]:
    for name in sorted({*before.packages, *now.packages}):
        old, new = before.packages.get(name), now.packages.get(name)
        if old != new:
            yield {"name": name, "from": old, "to": new}


def _readings(rows: Sequence[HistoryRow]) -> Iterator[str]:
    judged = [row for row in rows if row["band"] is not None and row["value"] is not None]
    for row in (row for row in judged if row["left"]):
        quantity = next(one for one in QUANTITIES if one.metric == row["quantity"])
        low, high = map(quantity.written, row["band"] or ())
        found = f"{short_id(row['backbone_id'])}: {quantity.heading} is {quantity.written(row['value'])}"
        band = f"{row['left']} the band {low} to {high} of {len(row['earlier'])} earlier runs"
        yield f"{found}, {band} ({'worse' if row['worse'] else 'better'})"
    inside = sum(row["left"] is None for row in judged)
    if judged:
        yield f"{inside} of {len(judged)} quantities are inside their {percent(LEVEL, 0)} band of the earlier runs"
    if young := [len(row["earlier"]) for row in rows if row["band"] is None and row["earlier"]]:
        yield f"no band yet for {len(young)} of {len(rows)} quantities: {min(young)} earlier, {FEWEST} are needed"


def _movements(moved: Sequence[PackageMove], since: Record | None) -> Iterator[str]:
    if since is None:
        return
    changes = ", ".join(f"{one['name']} {one['from'] or 'absent'} to {one['to'] or 'absent'}" for one in moved)
    yield f"since {since.tick} moved: {changes}" if moved else f"no package version moved since {since.tick}"
