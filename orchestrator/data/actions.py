"""A robot's actions between its own units and [-1, 1], by the percentiles of the training data. NumPy only."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from backbones.actions import ActionTokens


def question_about(instruction: str) -> str:
    """OpenVLA's question about an instruction, whose answer is an action."""
    return f"What action should the robot take to {instruction.strip().lower()}?"


@dataclass(frozen=True)
class ActionStatistics:
    """What training data says of each dimension of an action, under the names that OpenVLA gives it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    max: tuple[float, ...]
    min: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    num_transitions: int
    num_trajectories: int

    @property
    def dimensions(self) -> int:
        """Numbers of an action."""
        return len(self.q01)

    def normalise(self, actions: np.ndarray) -> np.ndarray:
        """(..., dimensions) in [-1, 1]: q01 becomes -1, q99 becomes 1, what is beyond them is cut off.

        0 in a dimension that never changes. Source: openvla/openvla, prismatic/vla/datasets/rlds/utils/data_utils.py,
        NormalizationType.BOUNDS_Q99.
        """
        low, high = np.array(self.q01), np.array(self.q99)
        scaled = np.clip(2 * (actions - low) / (high - low + 1e-8) - 1, -1, 1)
        return np.where(np.array(self.min) == np.array(self.max), 0.0, scaled)

    def restore(self, normalised: np.ndarray) -> np.ndarray:
        """Actions in the robot's own units, as OpenVLA's `predict_action` restores them."""
        low, high = np.array(self.q01), np.array(self.q99)
        return np.asarray(0.5 * (normalised + 1) * (high - low) + low)

    def as_openvla(self, dataset_name: str) -> dict[str, Any]:
        """The content of a `dataset_statistics.json`; `mask`: every dimension is normalised."""
        facts = asdict(self)
        counts = {key: facts.pop(key) for key in ("num_transitions", "num_trajectories")}
        return {dataset_name: {"action": {**facts, "mask": [True] * self.dimensions}, **counts}}


@dataclass(frozen=True)
class ActionCoding:
    """How a tokenizer's action ids are read: which they are, and what they stand for."""

    end: int  # one more than the largest of them
    statistics: ActionStatistics

    @property
    def tokens(self) -> ActionTokens:
        """The ids."""
        return ActionTokens(self.end)


def count_statistics(actions: np.ndarray, episodes: int) -> ActionStatistics:
    """Of (steps, dimensions) actions, at least one step. Quantiles are interpolated, as NumPy does and OpenVLA."""
    return ActionStatistics(
        mean=tuple(actions.mean(axis=0).tolist()),
        std=tuple(actions.std(axis=0).tolist()),
        max=tuple(actions.max(axis=0).tolist()),
        min=tuple(actions.min(axis=0).tolist()),
        q01=tuple(np.quantile(actions, 0.01, axis=0).tolist()),
        q99=tuple(np.quantile(actions, 0.99, axis=0).tolist()),
        num_transitions=len(actions),
        num_trajectories=episodes,
    )


def statistics_from_json(document: dict[str, Any]) -> ActionStatistics:
    """The inverse of `dataclasses.asdict`."""
    facts: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in document.items()}
    return ActionStatistics(**facts)
