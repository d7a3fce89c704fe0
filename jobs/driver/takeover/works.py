"""What cells learned from, by their `work`: how a comparison finds what others have trained already.

A cell is noted before it trains, since what it learns from is known then; whether it finished, its own folder says.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jobs.driver.preparation import Preparation
from orchestrator.data.parity import load_selection
from orchestrator.errors import FormatError
from orchestrator.layout import Storage
from orchestrator.planning.plan import Cell, Plan
from orchestrator.results import FORMAT, CellResult, CellStatus, find_adoption, load_json, write_json


@dataclass(frozen=True)
class Learned:
    """The training examples that a cell learns from, as indices in rising order."""

    kept: np.ndarray  # (examples,) int64

    @cached_property
    def digest(self) -> str:
        """SHA-256, 64 hex digits."""
        return hashlib.sha256(np.ascontiguousarray(self.kept, "<i8").tobytes()).hexdigest()


def note_work(storage: Storage, cell: Cell, learned: Learned) -> None:
    """Says of a cell what it learns from."""
    _save(storage.learned(learned.digest), learned)
    write_json(storage.work(cell.work, cell.cell_id), {"format": FORMAT, "learned": learned.digest})


def note_finished(plan: Plan, preparation: Preparation, results: Iterable[CellResult]) -> None:
    """Notes the finished cells that an earlier version trained, which noted none.

    As far as their tokenizers are still those of the preparation.
    """
    storage, cells = Storage(plan.storage), {cell.cell_id: cell for cell in plan.cells}
    found: dict[str, Learned] = {}
    for result in results:
        cell = cells[result.cell_id]
        if result.status is not CellStatus.SUCCEEDED or storage.work(cell.work, cell.cell_id).exists():
            continue
        if result.measurement is None or find_adoption(storage.cell(cell.cell_id).path) is not None:
            continue
        file = preparation.selection_file(cell)
        if result.measurement.contract.get("prompt_hash") == prompt_hash(preparation, cell) and Path(file).exists():
            note_work(storage, cell, found.setdefault(file, Learned(load_selection(file)[0])))


def prompt_hash(preparation: Preparation, cell: Cell) -> str:
    """Of the tokenizer and the prompt format that a cell trains with, as its contract has it."""
    return preparation.prepared[cell.backbone.backbone_id].fingerprint[:16]


def find_works(storage: Storage, work: str) -> dict[str, str]:
    """By cell of that work, the digest of the examples that it learned from."""
    noted = {cell_id: _read(file) for cell_id, file in storage.works(work).items()}
    return {cell_id: digest for cell_id, digest in noted.items() if digest is not None}


def find_learned(storage: Storage, digest: str) -> Learned | None:
    """The examples of that digest; None where they are not there, or damaged."""
    try:
        bits = np.load(storage.learned(digest), allow_pickle=False)
        learned = Learned(np.flatnonzero(np.unpackbits(bits)))
    except (OSError, ValueError, TypeError, EOFError):
        return None
    return learned if learned.digest == digest else None


def _read(file: Path) -> str | None:
    try:
        return str(load_json(file)["learned"])
    except (OSError, ValueError, LookupError, TypeError, FormatError):
        return None


def _save(file: Path, learned: Learned) -> None:
    """One bit an example."""
    if file.exists():
        return
    chosen = np.zeros(int(learned.kept.max(initial=-1)) + 1, np.uint8)
    chosen[learned.kept] = 1
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with open(partial, "wb") as stream:
        np.save(stream, np.packbits(chosen))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
