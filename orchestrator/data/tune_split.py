"""The tune split: the part of the training data on which trials of a tuning are scored. Pure.

Trials learn from the training data without it, so the verdict's held-out data has no part in the choice of learning
rates. The runs that are judged learn from all of the training data, as untuned ones do.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from orchestrator.data.actions import ActionStatistics, count_statistics
from orchestrator.data.sources.dataset import Items, occur_in
from orchestrator.identity import content_hash

SHARE = 0.1  # of the training data, in learnable bytes, and at most as much as is held out for the verdict
ROOM = 1.5  # how many times that share the whole groups may be
DRAW = 2026  # where single examples are drawn


@dataclass(frozen=True)
class TuneSplit:
    """Training examples on which trials are scored. Places in the training data rise."""

    examples: np.ndarray  # (examples,) int64 places
    excluded: np.ndarray  # (more,) int64 places of these and of their copies elsewhere: no trial learns from them
    learnable_bytes: int
    groups: int  # source groups that are wholly in it; 0 where examples were drawn, since one group is too large
    actions: ActionStatistics | None = None  # of a robot's steps that trials learn from

    @property
    def digest(self) -> str:
        """Of which examples they are, and of trials that code actions by statistics of their own."""
        places = hashlib.sha256(self.examples.astype("<i8").tobytes()).hexdigest()
        return content_hash(["tune", places, *(["actions"] if self.actions is not None else [])])[:32]


def choose_tune_split(items: Items, held_out_bytes: int) -> TuneSplit | None:
    """Whole source groups of the training data, else single examples, drawn by their names; None of too few.

    The same data gives the same split, whatever the candidates are.
    """
    target = min(SHARE * float(items.learnable_bytes.sum()), float(held_out_bytes))
    sizes = np.bincount(items.group_numbers, weights=items.learnable_bytes, minlength=len(items.groups))
    groups = _drawn([_number(name) for name in items.groups], sizes, target)
    examples = np.flatnonzero(np.isin(items.group_numbers, groups))
    if not len(examples):
        draws = np.random.Generator(np.random.PCG64(DRAW)).permutation(len(items.learnable_bytes))
        examples = np.sort(_drawn(draws.tolist(), items.learnable_bytes.astype(float), target))
    excluded = np.flatnonzero(occur_in(items.digests, np.sort(items.digests[examples])))
    if not 0 < len(examples) <= len(excluded) < len(items.learnable_bytes):
        return None
    size = int(items.learnable_bytes[examples].sum())
    return TuneSplit(examples, excluded, size, len(groups), _actions_without(items, excluded))


def _actions_without(items: Items, excluded: np.ndarray) -> ActionStatistics | None:
    if items.actions is None:
        return None
    episodes = np.unique(np.delete(items.group_numbers, excluded))
    return count_statistics(np.delete(items.actions, excluded, axis=0), len(episodes))


def _drawn(draws: list[int], sizes: np.ndarray, target: float) -> np.ndarray:
    """In the order of their draws, until the target is reached; what would pass it by too much is passed over."""
    chosen, size = [], 0.0
    for place in sorted(range(len(draws)), key=draws.__getitem__):
        if size >= target:
            break
        if size + sizes[place] <= ROOM * target:
            chosen.append(place)
            size += float(sizes[place])
    return np.array(chosen, np.int64)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
