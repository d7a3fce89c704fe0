"""What a verdict judges: per held-out item, what a backbone came to and how much the item counts.

A metric is the sum of the items' totals over the sum of their weights. Weights are of the item, the same for every
backbone, so that differences are paired. Lower is better for every metric that there is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from orchestrator.training.measurement import ItemScores

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Metric:
    """`totals` of a cell's scores and `weights` of the items' bytes are both (items,) float64."""

    unit: str  # as sentences say it
    totals: Callable[[ItemScores], Array]
    weights: Callable[[Array], Array]


def _bits(scores: ItemScores) -> Array:
    return np.asarray(scores.nats / log(2))


# The names are those of `verdict.metric`.
METRICS = {
    "bits_per_byte": Metric("bits per byte", _bits, lambda sizes: sizes),
    # Every item counts alike, however long it is: what a short answer costs is not drowned by a long one.
    "item_bits_per_byte": Metric(
        "bits per byte in the mean of the items", lambda scores: _bits(scores) / scores.bytes, np.ones_like
    ),
}
