"""A finished cell's folder as something to copy: whether it is whole, the copy, and its removal when it was cut off."""

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np

from orchestrator.layout import MANIFEST, SPOOL_FILE, CellFolder, checkpoint_folders
from orchestrator.results import CellResult, CellStatus, Measurement, find_cell_result
from orchestrator.tracking.spool import EntryKind, read_spool
from orchestrator.training.measurement import ItemScores, find_measurement, load_item_scores

ROUNDING = 1e-3  # relative: scores of an attempt that only exported may differ so from those in the spool


class UnsoundError(Exception):
    """What a finished cell left behind is damaged, or is not what is asked for; says why."""


def find_sound_result(folder: CellFolder) -> tuple[CellResult, ItemScores] | None:
    """What a cell came to, with its scores; None unless it succeeded. Raises UnsoundError for what is not whole."""
    try:
        result = find_cell_result(folder.path)
    except Exception as error:  # damage takes many shapes
        raise UnsoundError(f"{folder.result.name} cannot be read ({error!r})") from error
    if result is None or result.status is not CellStatus.SUCCEEDED:
        return None
    measurement, scores = read_sound(folder)
    if result.measurement != measurement:
        raise UnsoundError(f"{folder.result.name} and {folder.measurement.name} differ")
    return result, scores


def read_sound(folder: CellFolder) -> tuple[Measurement, ItemScores]:
    """What a cell measured. Raises UnsoundError unless the scores and every step behind it are there."""
    try:
        measurement, scores = find_measurement(folder.path), load_item_scores(folder.path)
        entries = list(read_spool(folder.spool))
        steps = [entry.fields["step"] for entry in entries if entry.kind is EntryKind.STEP]
        scored = [entry.fields["step"] for entry in entries if entry.kind is EntryKind.EVALUATION]
        fault = "there is no measurement" if measurement is None else _find_fault(measurement, scores, steps, scored)
    except Exception as error:  # damage takes many shapes
        raise UnsoundError(f"it cannot be read ({error!r})") from error
    if measurement is None or fault:
        raise UnsoundError(fault)
    return measurement, scores


def _find_fault(measurement: Measurement, scores: ItemScores, steps: list[int], scored: list[int]) -> str:
    """What does not fit together, in words; empty where all does."""
    last, found = int(measurement.metrics["steps"] or 0), measurement.metrics["val_bits_per_byte"]
    columns = (scores.items, scores.nats, scores.tokens, scores.bytes)
    if len({len(column) for column in columns}) > 1 or not len(scores.items) or np.any(np.diff(scores.items) <= 0):
        return "its scores are incomplete"
    if found is None or not math.isclose(scores.bits_per_byte, found, rel_tol=ROUNDING):
        return f"its scores give {scores.bits_per_byte:.6f} bits per byte, and its measurement says {found}"
    if sorted(steps) != list(range(1, last + 1)) or last not in scored:
        return f"its record of {last} steps has gaps"
    return ""


def copy_outcome(source: CellFolder, target: CellFolder) -> None:
    """Copies what a report, a tracker and a further attempt need of a finished cell, but its result. Raises OSError.

    Checkpoints, which are never written over, are the same files under a second name.
    """
    target.spool.mkdir(parents=True, exist_ok=True)
    _copy(source.spool / SPOOL_FILE, target.spool / SPOOL_FILE)
    for old, new in zip(_facts(source), _facts(target), strict=True):
        if old.exists():
            _copy(old, new)
    try:
        _link_checkpoints(source.checkpoints, target.checkpoints)
    except OSError:  # a file system without links; only an export would need them, and trains without
        shutil.rmtree(target.checkpoints, ignore_errors=True)
    _copy(source.measurement, target.measurement)


def discard_outcome(folder: CellFolder) -> None:
    """Removes what attempts left behind, the result first."""
    for path in folder.outcome:
        with suppress(FileNotFoundError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def discard_half_adopted(folder: CellFolder) -> None:
    """Removes what a launch left that was killed while it took a result over."""
    if folder.adoption.exists() and not folder.result.exists():
        forget_tracked(folder)
        discard_outcome(folder)
        folder.adoption.unlink()


def forget_tracked(folder: CellFolder) -> None:
    """The cell's spool becomes another one: what MLflow was sent of it belongs to runs that are not gone on with."""
    if folder.spool.exists():
        for job in folder.storage.tracked_jobs():
            job.child_run(folder.path.name).unlink(missing_ok=True)


def _facts(folder: CellFolder) -> tuple[Path, ...]:
    asked = (*folder.tasks, folder.rollouts, *folder.films)
    return folder.items, folder.earlier_items, folder.contract, folder.certificate, folder.attempts, *asked


def _copy(source: Path, target: Path) -> None:
    """A reader sees the whole copy, or what was there before."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with open(source, "rb") as old, open(partial, "wb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())
    os.replace(partial, target)


def _link_checkpoints(source: Path, target: Path) -> None:
    for folder in checkpoint_folders(source):
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name == MANIFEST)
        for file in files:  # the manifest last: it says that the others are there
            linked = target / file.relative_to(source)
            linked.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, linked)
