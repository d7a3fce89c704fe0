"""A robot's actions between its own units and [-1, 1], by the percentiles of the training data. NumPy only."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from backbones.actions import ActionTokens

CHUNK = "action_chunk"  # in a `dataset_statistics.json`


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
    mask: tuple[bool, ...] | None = None  # whether each dimension is scaled; None: all are

    @property
    def dimensions(self) -> int:
        """Numbers of an action."""
        return len(self.q01)

    def normalise(self, actions: np.ndarray) -> np.ndarray:
        """(..., dimensions) in [-1, 1]: q01 becomes -1, q99 becomes 1, what is beyond them is cut off.

        Dimensions that the mask leaves out stay as they are; 0 in those that never change. Source: openvla/openvla,
        prismatic/vla/datasets/rlds/utils/data_utils.py, NormalizationType.BOUNDS_Q99.
        """
        low, high = np.array(self.q01), np.array(self.q99)
        scaled = np.where(self._is_scaled, np.clip(2 * (actions - low) / (high - low + 1e-8) - 1, -1, 1), actions)
        return np.where(np.array(self.min) == np.array(self.max), 0.0, scaled)

    def restore(self, normalised: np.ndarray) -> np.ndarray:
        """Actions in the robot's own units, as OpenVLA's `predict_action` restores them."""
        low, high = np.array(self.q01), np.array(self.q99)
        return np.where(self._is_scaled, 0.5 * (normalised + 1) * (high - low) + low, normalised)

    @property
    def _is_scaled(self) -> np.ndarray:
        return np.ones(self.dimensions, np.bool_) if self.mask is None else np.array(self.mask)

    def beyond_bins(self) -> list[int]:
        """The dimensions that the mask leaves out and bins cannot hold, since they leave [-1, 1]."""
        low, high = np.array(self.min), np.array(self.max)
        return np.flatnonzero(~self._is_scaled & ((low < -1) | (high > 1))).tolist()

    def as_openvla(self, dataset_name: str) -> dict[str, Any]:
        """The content of a `dataset_statistics.json`."""
        facts = asdict(self) | {"mask": self._is_scaled.tolist()}
        counts = {key: facts.pop(key) for key in ("num_transitions", "num_trajectories")}
        return {dataset_name: {"action": facts, **counts}}


@dataclass(frozen=True)
class ActionCoding:
    """How a tokenizer's action ids are read: which they are, and what they stand for."""

    end: int  # one more than the largest of them
    statistics: ActionStatistics
    chunk: int = 1  # actions of an answer: those of a step and of the ones that follow it

    @property
    def numbers(self) -> int:
        """Ids of an answer that its episode does not cut short."""
        return self.chunk * self.statistics.dimensions

    def encode(self, actions: np.ndarray) -> list[int]:
        """The ids of (steps, dimensions) actions in the robot's own units, a step after the other."""
        ids: list[int] = self.tokens.encode(self.statistics.normalise(actions)).ravel().tolist()
        return ids

    @property
    def tokens(self) -> ActionTokens:
        """The ids."""
        return ActionTokens(self.end)

    @property
    def facts(self) -> dict[str, Any]:
        """What arrays depend on. Without a mask, and of single actions, it is what it was before there were any."""
        facts = asdict(self)
        if self.statistics.mask is None:
            del facts["statistics"]["mask"]
        if self.chunk == 1:
            del facts["chunk"]
        return facts

    def as_openvla(self, dataset_name: str) -> dict[str, Any]:
        """The content of a `dataset_statistics.json`; OpenVLA's code passes over the length of chunks in it."""
        [(name, facts)] = self.statistics.as_openvla(dataset_name).items()
        return {name: facts | ({} if self.chunk == 1 else {CHUNK: self.chunk})}


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


def coding_from_json(document: dict[str, Any]) -> ActionCoding:
    """The inverse of `dataclasses.asdict`; documents of earlier versions know nothing of chunks."""
    return ActionCoding(document["end"], statistics_from_json(document["statistics"]), document.get("chunk", 1))


def statistics_from_json(document: dict[str, Any]) -> ActionStatistics:
    """The inverse of `dataclasses.asdict`."""
    facts: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in document.items()}
    return ActionStatistics(**facts)


def statistics_from_openvla(document: dict[str, Any]) -> ActionStatistics:
    """From what a `dataset_statistics.json` has under the name of a data set."""
    counts = {key: document[key] for key in ("num_transitions", "num_trajectories")}
    return statistics_from_json({**document["action"], **counts})
