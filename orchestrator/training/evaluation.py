"""Held-out bits per byte: per-item negative log-likelihood over the same bytes for every tokenizer.

The rule for a token that straddles the edge of the scored text (a leading space that belongs to the prompt, say): its
bits count whole, its bytes only as far as they are of the text. Nothing is computed for that: the denominator is the
bytes of the original text, whatever tokens cover them, and the rule is thereby the same for every tokenizer.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backbones.inputs import Example, Inputs
from orchestrator.data.prepare import TokenizedDataset
from orchestrator.parallel import Mesh
from orchestrator.training.measurement import ItemScores

Scorer = Callable[[Inputs], torch.Tensor]  # nats at each position (B, T), 0 where the label is ignored


@dataclass(frozen=True)
class Window:
    """Part of an item that fits the model: `input_ids` predict the tokens after them where `is_scored`."""

    item: int  # position in `ItemScores.items`
    input_ids: np.ndarray  # (T,) int32, at most `sequence_length`
    is_scored: np.ndarray  # (T,) bool


def windows(data: TokenizedDataset, items: np.ndarray, sequence_length: int) -> Iterator[Window]:
    """Cuts each item into rolling windows, every scored token in exactly one of them.

    An item that fits is one window. A longer one is cut as lm-evaluation-harness does: each window predicts the next
    `sequence_length - 1` tokens given the one before them, and the last keeps as much context as fits.
    """
    span = sequence_length - 1
    for position, index in enumerate(items):
        ids, _, is_scored = data.example(int(index))
        targets = len(ids) - 1
        for first in range(0, max(targets, 1), span):
            last = min(first + span, targets)
            start = max(last - span, 0) if first else 0
            scored = is_scored[start : last + 1].copy()
            scored[: first - start + 1] = False
            yield Window(position, ids[start : last + 1], scored)


def _batches(ordered: Sequence[Window], tokens: int) -> Iterator[list[Window]]:
    """Windows by rising length, in batches of at most so many tokens once all are as long as the longest."""
    batch: list[Window] = []
    for window in ordered:
        if batch and (len(batch) + 1) * len(window.input_ids) > tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def evaluate(
    score: Scorer,
    data: TokenizedDataset,
    items: np.ndarray,
    *,
    sequence_length: int,
    rows: int,
    collate: Callable[[Sequence[Sequence[Example]]], Inputs],
    mesh: Mesh,
) -> ItemScores:
    """Scores the items over all ranks, as many windows at a time as `rows` of `sequence_length` hold, padding counted.

    Every rank returns the whole result.

    Every rank scores the same number of batches (FSDP gathers parameters in each), so ranks with fewer windows repeat
    one and throw the result away.
    """
    ordered = sorted(windows(data, items, sequence_length), key=lambda window: len(window.input_ids))
    rank, world = mesh.dp_rank, mesh.dp_size
    batches = list(_batches(ordered, rows * sequence_length))
    nats = torch.zeros(len(items), dtype=torch.float64)
    tokens = torch.zeros(len(items), dtype=torch.int64)
    for turn in range(math.ceil(len(batches) / world)):
        number = turn * world + rank
        group = batches[min(number, len(batches) - 1)]
        scores = score(collate([[(window.input_ids, window.is_scored)] for window in group])).double().sum(dim=1).cpu()
        if number < len(batches):
            places = torch.tensor([window.item for window in group])
            nats.index_add_(0, places, scores)
            tokens.index_add_(0, places, torch.tensor([int(window.is_scored[1:].sum()) for window in group]))
    totals = [tensor.to(mesh.device) for tensor in (nats, tokens)]
    for tensor in totals:
        mesh.sum_over_data(tensor)
    return ItemScores(items, totals[0].cpu().numpy(), totals[1].cpu().numpy(), data.learnable_bytes[items])
