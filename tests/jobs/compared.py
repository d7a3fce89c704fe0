"""Planned comparisons of one storage, prepared in the test's process, and cells that are finished without training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from product import Job
from scored_cells import grouped_job

from backbones.registry import load_codec
from jobs.driver import preparation
from jobs.driver.preparation import Preparation, prepare_data
from jobs.driver.takeover.adoption import Adopter
from orchestrator.data.parity import load_selection
from orchestrator.data.prepare import Prepared, prepare
from orchestrator.layout import CellFolder, Storage
from orchestrator.planning.plan import Cell, Plan, load_comparison
from orchestrator.results import CellResult, CellStatus, EvaluationPoint, StepMetrics, save_cell_result, write_json
from orchestrator.tracking.spool import SpoolWriter
from orchestrator.training.measurement import ItemScores, measure, save_item_scores, write_measurement

LLAMA, MISTRAL, QWEN = "tiny-llama2", "tiny-mistral", "tiny-qwen"
STEPS = 3
ALL_FIT, MISTRAL_CUTS = 128, 114  # a byte is a token to MISTRAL: some of its examples have more than 114


@dataclass
class Compared:
    """A planned comparison, prepared in this process."""

    plan: Plan
    preparation: Preparation
    said: list[str] = field(default_factory=list)

    def adopt(self, keep_finished: bool = False, certify: bool = False, is_shared: bool = False) -> list[CellResult]:
        adopter = Adopter(self.plan, self.preparation, certify, keep_finished, self.said.append, is_shared)
        return adopter.adopt(self.plan.cells)

    def cells(self, *names: str) -> list[Cell]:
        return [cell for cell in self.plan.cells if cell.backbone.backbone_id in names]

    def folder(self, cell: Cell) -> CellFolder:
        return CellFolder(self.plan.cell_folder(cell))


class Compare(Protocol):
    """Plans a comparison of the one storage, and prepares its data without Ray."""

    def __call__(self, *backbones: str, length: int = ALL_FIT, seeds: int = 2, **changes: Any) -> Compared: ...


def comparing_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """All of them below one folder."""

    def tokenized(plan: Plan, say: object) -> list[Prepared]:
        length, arrays = plan.job.recipe.sequence_length, Storage(plan.storage).prepared
        arrays.mkdir(parents=True, exist_ok=True)
        return [
            prepare(one.backbone_id, load_codec(one, max_length=length), plan.train, plan.validation, arrays)
            for one in plan.backbones
        ]

    monkeypatch.setattr(preparation, "_tokenized", tokenized)

    def compare(*backbones: str, length: int = ALL_FIT, seeds: int = 2, **changes: Any) -> Compared:
        plan = load_comparison(spec_of(folder, backbones, length, seeds, **changes).spec)
        return Compared(plan, prepare_data(plan))

    return compare


def spec_of(folder: Path, backbones: Sequence[str], length: int, seeds: int, **changes: Any) -> Job:
    settled = {"recipe__data__parity": "intersection", "recipe__sequence_length": length, "recipe__packing": False}
    return grouped_job(folder, backbones=[*backbones], seeds=seeds, **(settled | changes))


def finish(one: Compared, cells: Sequence[Cell] | None = None) -> None:
    """What trained cells leave in the storage, each with numbers of its own."""
    for cell in one.plan.cells if cells is None else cells:
        folder, backbone_id = one.folder(cell), cell.backbone.backbone_id
        selected = load_selection(one.preparation.selection_files[backbone_id])
        items = one.plan.validation.items
        assert items is not None
        sizes = items.learnable_bytes[selected[1]]
        noise = np.random.default_rng([cell.seed, *backbone_id.encode()]).normal(scale=0.01)
        scores = ItemScores(selected[1], (2 + noise) * np.log(2) * sizes, np.ones(len(sizes), int), sizes)
        spool = SpoolWriter(folder.spool, 1)
        spool.evaluation(EvaluationPoint(0, 0.0, 0, 0, 0.0, 8.0, 8.0))
        for step in range(1, STEPS + 1):
            seen = (step, 9 * step, 40 * step)
            spool.step(StepMetrics(step, 1 / step + noise, 0.5, 1e-3, 2.0, *seen, 0.5, 0.1, 90.0, 1.0))
        spool.evaluation(EvaluationPoint(STEPS, 1.0, 120, 27, 0.3, scores.bits_per_byte, scores.loss))
        spool.close()
        checkpoint = folder.checkpoints / "step-00000003-attempt-001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "__0_0.distcp").write_text("weights")
        (checkpoint / "manifest.json").write_text("{}")
        save_item_scores(folder.path, scores)
        write_json(folder.attempts, {"count": 1, "reasons": ["it finished"]})
        contract = {"parameters": 1, "prompt_hash": one.preparation.prepared[backbone_id].fingerprint[:16]}
        measurement = measure(
            *(folder.path, folder.spool),
            workers=1,
            device="CPU",
            on_gpu=False,
            flops_per_token=1.0,
            peak_memory_gib=0.0,
            peak_host_memory_gib=1.0,
            load_time_s=1.0,
            checkpoint_stall_s=0.0,
            contract=contract,
            extra={},
            facts={},
        )
        write_measurement(folder.path, measurement)
        result = CellResult(cell.cell_id, backbone_id, cell.seed, CellStatus.SUCCEEDED, 1, measurement=measurement)
        save_cell_result(folder.path, result)


def trained(one: Compared) -> Compared:
    """After its launch: its cells were noted, and finished."""
    one.adopt()
    finish(one)
    return one


def ids(cells: Sequence[Cell] | Sequence[CellResult]) -> list[str]:
    return [cell.cell_id for cell in cells]
