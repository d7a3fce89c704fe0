"""What a run produces: `StepMetrics` for one step, `Measurement` for a finished cell, `CellResult` for the report.

Everything here is plain data that goes to JSON and back; no torch, ray or mlflow.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.errors import FormatError
from orchestrator.layout import CellFolder

FORMAT = 1  # of every document that a job or a cell leaves behind, but reports; one without a number is of format 1


class CellStatus(StrEnum):
    """Where a cell stands. Every planned cell ends in the report exactly once, with a terminal status."""

    QUEUED = "QUEUED"  # waits for resources
    RUNNING = "RUNNING"  # an attempt is under way
    PREEMPTED = "PREEMPTED"  # gave its resources back at a checkpoint; will continue
    SUCCEEDED = "SUCCEEDED"  # trained its whole budget and was evaluated
    OUT_OF_MEMORY = "OUT_OF_MEMORY"  # a device or the host ran out of memory
    DIVERGED = "DIVERGED"  # loss or gradient norm became NaN or infinite
    FAILED = "FAILED"  # more failures than policy.max_failures
    TIMED_OUT = "TIMED_OUT"  # longer than policy.timeout
    INFEASIBLE = "INFEASIBLE"  # the plan already shows that it cannot fit; never started
    UNCERTIFIED = "UNCERTIFIED"  # a proof of the backbone's certificate failed; not trained
    CANCELLED = "CANCELLED"  # stopped by a person or a signal; resumable

    @property
    def is_terminal(self) -> bool:
        return self not in (CellStatus.QUEUED, CellStatus.RUNNING, CellStatus.PREEMPTED)

    @property
    def mlflow_status(self) -> str:
        """The MLflow `RunStatus` name that says the same."""
        if not self.is_terminal:
            return "RUNNING"
        if self is CellStatus.SUCCEEDED:
            return "FINISHED"
        return "KILLED" if self is CellStatus.CANCELLED else "FAILED"


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step, measured on rank 0 over the global batch.

    `step` counts from 1. Times are seconds, `bytes_seen` UTF-8 bytes of learnable text up to and including this
    step, `train_bits_per_byte` the step's training loss per learnable byte (target tokens include EOS).
    """

    step: int
    loss: float  # nats per target token of the global batch
    grad_norm: float  # before clipping
    learning_rate: float
    train_bits_per_byte: float
    examples_seen: int
    tokens_seen: int  # input tokens without padding
    bytes_seen: int
    progress: float  # share of the budget used after this step, 0..1
    step_time_s: float
    tokens_per_second_per_device: float
    peak_memory_gib: float


@dataclass(frozen=True)
class EvaluationPoint:
    """Held-out bits per byte after `step` optimizer steps (0: before training)."""

    step: int
    progress: float
    bytes_seen: int
    tokens_seen: int
    train_time_s: float  # time spent in steps so far, without evaluation and checkpoints
    val_bits_per_byte: float
    val_loss: float  # nats per scored token


@dataclass(frozen=True)
class RolloutPoint:
    """What the trained policy's episodes came to after `step` optimizer steps (0: before training): their means."""

    step: int
    progress: float
    bytes_seen: int
    tokens_seen: int
    train_time_s: float  # as of an `EvaluationPoint`
    success: float  # share of the episodes
    total_reward: float
    length: float  # steps of an episode
    digest: str  # of the request: which episodes


@dataclass(frozen=True)
class Measurement:
    """What a finished cell measured. `metrics` is what `report.json` shows for it."""

    metrics: dict[str, float | None]
    evaluations: list[EvaluationPoint]
    contract: dict[str, Any]  # dtypes, kernel, decay groups, tokenizer rows, versions: found, not asked for
    data: dict[str, Any]  # examples kept and dropped, tokens per byte, ...
    items_file: str  # per-item scores, relative to the cell's folder


@dataclass(frozen=True)
class CellResult:
    """A cell with its status and either a measurement or the reason why there is none."""

    cell_id: str
    backbone_id: str
    seed: int
    status: CellStatus
    attempts: int = 0
    mlflow_run_id: str | None = None
    measurement: Measurement | None = None
    failure: str | None = None
    folder: str = ""
    restarts: list[str] = field(default_factory=list)  # why each attempt but the last ended


@dataclass(frozen=True)
class Adoption:
    """Whose result a cell took over instead of training, and in what its comparison would have trained it otherwise."""

    adopted_from: str  # the cell that was trained
    learned_more: int = 0  # training examples that it learned from, and the comparison drops
    learned_fewer: int = 0  # those that the comparison keeps, and it did not learn from
    scored_more: int = 0  # held-out items that it was scored on, and the comparison drops

    @property
    def is_marked(self) -> bool:
        """Whether it learned from other examples."""
        return bool(self.learned_more or self.learned_fewer)


def measurement_from_json(document: dict[str, Any]) -> Measurement:
    """The inverse of `dataclasses.asdict` for a `Measurement`."""
    points = [EvaluationPoint(**point) for point in document["evaluations"]]
    return Measurement(**{**_without_format(document), "evaluations": points})


def cell_result_from_json(document: dict[str, Any]) -> CellResult:
    """The inverse of `dataclasses.asdict` for a `CellResult`."""
    measured = document["measurement"]
    return CellResult(
        **{
            **_without_format(document),
            "status": CellStatus(document["status"]),
            "measurement": None if measured is None else measurement_from_json(measured),
        }
    )


def _without_format(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "format"}


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file so that a reader sees the old or the new content, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=2, ensure_ascii=False, allow_nan=False, default=str)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def load_json(path: Path, newest: int = FORMAT) -> Any:
    """Reads a document of a finished job or cell. Raises FormatError where a later version wrote it."""
    document = read_json(path)
    found = document.get("format", FORMAT) if isinstance(document, dict) else FORMAT
    if found not in range(1, newest + 1):
        raise FormatError(
            f"{path} has format {found}, and this version reads format {newest}. Upgrade backbone-orchestrator to the "
            f"version that wrote it, or move {path.parent} away to run it anew; nothing was changed"
        )
    return document


def find_cell_result(folder: Path) -> CellResult | None:
    """The stored result of a cell, or None while it has none."""
    path = CellFolder(folder).result
    return cell_result_from_json(load_json(path)) if path.exists() else None


def find_adoption(folder: Path) -> Adoption | None:
    """Whose result a finished cell took over; None of one that was trained."""
    path = CellFolder(folder).adoption
    return Adoption(**_without_format(load_json(path))) if path.exists() else None


def save_adoption(folder: Path, adoption: Adoption) -> None:
    """Notes that a cell takes a result over. Until the result stands beside it, nothing in the folder is whole."""
    write_json(CellFolder(folder).adoption, {"format": FORMAT, **asdict(adoption)})


def save_cell_result(folder: Path, result: CellResult) -> None:
    """Stores a cell's result beside its checkpoints."""
    write_json(CellFolder(folder).result, asdict(result))
