"""The held-out items of a cell as a table that MLflow shows, and compares between runs."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jobs.results.held_out.facts import shown_text
from orchestrator.data.sources.dataset import DataChangedError, Dataset
from orchestrator.layout import CellFolder
from orchestrator.results import CellResult, CellStatus, write_json
from orchestrator.training.measurement import load_item_scores

MOST_ITEMS = 250  # the first ones, the same for every run: a page shows hundreds at most; all are in items.parquet
COLUMNS = ("item", "group", "text", "bytes", "tokens", "nats", "bits_per_byte")
LOGGED_TABLES = "mlflow.loggedArtifacts"  # the tag by which MLflow's page finds tables


class ItemTables:
    """Writes the tables of cells that are scored on this held-out data, each once."""

    def __init__(self, held_out: Dataset):
        self._held_out = held_out

    def write(self, result: CellResult) -> None:
        """The table of a cell that finished, beside its scores."""
        folder = CellFolder(Path(result.folder)) if result.folder else None
        if folder is None or result.status is not CellStatus.SUCCEEDED:
            return
        if folder.item_table.exists() or not (folder.items.exists() or folder.earlier_items.exists()):
            return
        items = self._held_out.items
        assert items is not None, "held-out data is planned with its items"
        scores = load_item_scores(folder.path)
        rows = np.flatnonzero(scores.items < MOST_ITEMS)
        places = scores.items[rows]
        counted = (scores.bytes, scores.tokens, scores.nats, scores.each_bits_per_byte)
        columns = zip(
            places.tolist(),
            items.groups_of(places),
            [self._texts.get(place) for place in places.tolist()],
            *(column[rows].tolist() for column in counted),
            strict=True,
        )
        write_json(folder.item_table, {"columns": COLUMNS, "data": [list(row) for row in columns]})

    @cached_property
    def _texts(self) -> Mapping[int, str]:
        """The beginning of what is scored, by place; nothing of data that cannot be read again."""
        data = self._held_out
        places = range(min(len(data), MOST_ITEMS))
        try:
            return {place: shown_text(example) for place, example in enumerate(data.take(places).read())}
        except (DataChangedError, OSError):
            return {}


def table_tag(*files: Path) -> dict[str, str]:
    """The tag that makes MLflow's page show these artifacts as tables."""
    tables: list[dict[str, Any]] = [{"path": file.name, "type": "table"} for file in files]
    return {LOGGED_TABLES: json.dumps(tables)} if tables else {}
