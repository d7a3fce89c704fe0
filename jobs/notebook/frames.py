"""The documents of a finished job as pandas data frames: a row a cell, an item, a point of a curve, a pair."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd

from jobs.results.benchmark_documents import MeasuredCell
from jobs.results.documents import Pair, RankedBackbone, TrainedCell
from jobs.results.held_out.items import read_labels
from orchestrator.errors import InputError
from orchestrator.layout import CellFolder, JobFolder, Storage
from orchestrator.training.measurement import load_item_scores

Frame: TypeAlias = pd.DataFrame

LABELS = ("backbone_id", "seed", "cell_id")
OUTCOME = (*LABELS, "status", "attempts", "failure", "mlflow_run_id", "folder")
SPENT: tuple[Literal["device_hours", "cost"], ...] = ("device_hours", "cost")
POINT = ("step", "progress", "bytes_seen", "tokens_seen", "train_time_s", "val_bits_per_byte", "val_loss")
PAIR = (
    *("a", "b", "difference", "relative", "low", "high", "standard_error", "degrees_of_freedom"),
    *("p_value", "p_value_holm", "equivalent"),
)


def cells_frame(cells: Sequence[TrainedCell]) -> Frame:
    """What became of each cell, and what it measured."""
    return pd.DataFrame([{**_picked(cell, OUTCOME), **cell["metrics"], **_spent(cell)} for cell in cells])


def curves_frame(cells: Sequence[TrainedCell]) -> Frame:
    """A row for each step of a cell at which something is known: held-out scores, or the training loss in nats."""
    parts = []
    for cell in cells:
        scored = pd.DataFrame(cell["evaluations"], columns=list(POINT))
        losses = pd.DataFrame(cell["loss_curve"], columns=["step", "train_loss"])
        curve = scored.merge(losses, on="step", how="outer", sort=True)
        parts.append(curve.assign(**_picked(cell, LABELS))[[*LABELS, *curve.columns]])
    return _joined(parts, (*LABELS, *POINT, "train_loss"))


def items_frame(cells: Sequence[TrainedCell], job_folder: Path) -> Frame:
    """A row for each held-out item of each finished cell, with its hash, its group and the data's columns.

    Reports of earlier versions know only its place. Raises InputError where a cell's scores are not there.
    """
    parts = []
    for cell in cells:
        if cell["status"] != "SUCCEEDED":
            continue
        scores = load_item_scores(_cell_folder(cell, job_folder))
        counted = {"item": scores.items, "nats": scores.nats, "tokens": scores.tokens, "bytes": scores.bytes}
        frame = pd.DataFrame({**_picked(cell, LABELS), **counted})
        frame["bits_per_byte"] = scores.each_bits_per_byte
        parts.append(frame)
    frame = _joined(parts, (*LABELS, "item", "nats", "tokens", "bytes", "bits_per_byte"))
    file = JobFolder(job_folder).items
    return frame.merge(pd.DataFrame(read_labels(file)), on="item", how="left") if file.is_file() else frame


def pairs_frame(pairs: Sequence[Pair]) -> Frame:
    """Every two backbones; differences are bits per byte of b minus those of a, `low` to `high` their interval."""
    rows = [{**pair, "low": pair["interval"][0], "high": pair["interval"][1]} for pair in pairs]
    return pd.DataFrame(rows, columns=list(PAIR))


def ranking_frame(ranking: Sequence[RankedBackbone]) -> Frame:
    """Best first; `score` is of the verdict's metric, and stands as `val_bits_per_byte` too where it is that."""
    old = ("val_bits_per_byte",) if any("val_bits_per_byte" in row for row in ranking) else ()
    names = ("rank", "backbone_id", "score", *old, "seed_std", "difference_to_best", "worse_than_best")
    return pd.DataFrame(ranking, columns=list(names))


def figures_frame(cells: Sequence[MeasuredCell], metrics: Mapping[str, Mapping[str, float]]) -> Frame:
    """What became of each cell of a benchmark, and its backbone's figures as single numbers."""
    return pd.DataFrame([{**_picked(cell, OUTCOME), **metrics.get(cell["backbone_id"], {})} for cell in cells])


def planned_frame(cells: Sequence[Mapping[str, Any]]) -> Frame:
    """A row for each planned cell."""
    return pd.DataFrame(cells)


def _cell_folder(cell: TrainedCell, job_folder: Path) -> Path:
    """Where the document says, or beside the job's folder, as in a storage that was copied."""
    candidates = (Path(cell["folder"]), Storage(job_folder.parent).cell(cell["cell_id"]).path)
    for folder in candidates:
        if CellFolder(folder).items.is_file() or CellFolder(folder).earlier_items.is_file():
            return folder
    raise InputError(
        f"the scores of {cell['cell_id']} are neither in {candidates[0]} nor in {candidates[1]}; load the report from "
        "the storage that the job wrote, or copy its cells/ beside the job's folder"
    )


def _spent(cell: TrainedCell) -> dict[str, float | None]:
    """Nothing of a report that an earlier version wrote."""
    return {name: cell["spent"][name] for name in SPENT} if "spent" in cell else {}


def _picked(cell: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: cell[name] for name in names}


def _joined(parts: Sequence[Frame], columns: Sequence[str]) -> Frame:
    """With these columns also where no cell has a row."""
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))
