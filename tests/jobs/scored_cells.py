"""A planned comparison whose cells left scores in the storage, without training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from product import Job, write_job

from orchestrator.planning.plan import Cell, Plan
from orchestrator.results import CellResult, CellStatus
from orchestrator.training.measurement import ItemScores, save_item_scores


def grouped_job(folder: Path, **changes: Any) -> Job:
    """A small comparison whose held-out examples come from eight sources."""
    job = write_job(folder, **changes)
    file = folder / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | {"group": f"g{n % 8}"}) + "\n" for n, row in enumerate(rows)))
    return job


def trained(plan: Plan, cells: Sequence[Cell], means: dict[str, float], noise: float = 0.01) -> list[CellResult]:
    """What cells with these bits per byte leave in the storage: scores by item, the noise by seed and backbone."""
    items = plan.validation.items
    assert items is not None
    sizes = items.learnable_bytes[np.arange(len(plan.validation))]
    results = []
    for cell in cells:
        backbone_id = cell.backbone.backbone_id
        rng = np.random.default_rng([cell.seed, *backbone_id.encode()])
        rate = means[backbone_id] + noise * rng.normal()
        folder = plan.cell_folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        scores = ItemScores(np.arange(len(sizes)), rate * np.log(2) * sizes, np.ones(len(sizes), int), sizes)
        save_item_scores(folder, scores)
        results.append(
            CellResult(cell.cell_id, backbone_id, cell.seed, CellStatus.SUCCEEDED, attempts=1, folder=str(folder))
        )
    return results
