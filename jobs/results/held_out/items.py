"""Which held-out items were scored, what the data says of each, and what every backbone came to on each."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from jobs.results.judging.metrics import at_items, common_items
from orchestrator.data.sources.containers import read_columns, write_columns
from orchestrator.data.sources.dataset import Dataset
from orchestrator.training.measurement import ItemScores

Array = np.ndarray[Any, np.dtype[Any]]
COLUMN = "data."  # how columns of the data are called in a table of items


@dataclass(frozen=True)
class ScoredItems:
    """The items that every backbone was scored on. Nats are means over seeds."""

    data: Dataset
    places: Array  # (items,) int64, rising, in the held-out data
    bytes: Array  # (items,) int64
    nats: dict[str, Array]  # backbone -> (items,) float64
    columns: dict[str, list[str | None]]  # of the data, a value or None for each item

    @property
    def groups(self) -> list[str]:
        """The source group of each item."""
        assert self.data.items is not None
        return self.data.items.groups_of(self.places)

    @property
    def hashes(self) -> list[str]:
        """Of each item's content, 32 hex digits."""
        assert self.data.items is not None
        return [digest.ljust(16, b"\0").hex() for digest in self.data.items.digests[self.places].tolist()]

    def bits_per_byte(self, backbone_id: str) -> Array:
        """Of each item by itself, (items,) float64."""
        bits: Array = self.nats[backbone_id] / log(2) / np.maximum(self.bytes, 1)
        return bits


def scored_items(data: Dataset, scores: Sequence[tuple[str, ItemScores]]) -> ScoredItems:
    """From the scores of finished cells by backbone, at least one. Raises DataChangedError and OSError."""
    common = common_items([one for _, one in scores])
    nats: dict[str, list[Array]] = {}
    for backbone_id, one in scores:
        nats.setdefault(backbone_id, []).append(at_items(one, common).nats)
    sizes = at_items(scores[0][1], common).bytes
    means = {backbone_id: np.mean(seeds, axis=0) for backbone_id, seeds in nats.items()}
    return ScoredItems(data, common, sizes, means, _columns(data, set(common.tolist())))


def _columns(data: Dataset, places: set[int]) -> dict[str, list[str | None]]:
    """The columns that some of the items have, in the order in which they first occur."""
    rows = [dict(example.columns) for place, example in enumerate(data.read()) if place in places]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def write_items(file: Path, items: ScoredItems) -> None:
    """A row an item: its place, hash, group and bytes, `data.<column>`, and `bits_per_byte/<backbone>`."""
    columns: dict[str, Any] = {"item": items.places, "hash": items.hashes, "group": items.groups, "bytes": items.bytes}
    columns |= {f"{COLUMN}{name}": values for name, values in items.columns.items()}
    columns |= {f"bits_per_byte/{name}": items.bits_per_byte(name) for name in items.nats}
    write_columns(file, columns)


def read_labels(file: Path) -> dict[str, Array]:
    """What `write_items` wrote of the data: `item`, `hash`, `group` and the data's columns."""
    return read_columns(file, lambda name: name in ("item", "hash", "group") or name.startswith(COLUMN))
