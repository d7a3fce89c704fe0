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

from backbones.inputs import Example, Inputs, PlacedInputs
from backbones.labelled import nats_of
from orchestrator.data.actions import ActionCoding
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

    An item that fits is one window, as every item with images does. A longer one is cut as lm-evaluation-harness does:
    each window predicts the next `sequence_length - 1` tokens given the one before them, and the last keeps as much
    context as fits.
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


def _shares(
    data: TokenizedDataset, items: np.ndarray, sequence_length: int, tokens: int, mesh: Mesh
) -> Iterator[tuple[list[Window], bool]]:
    """This rank's batches of at most so many tokens, as many as every other's, and whether each counts."""
    ordered = sorted(windows(data, items, sequence_length), key=lambda window: len(window.input_ids))
    batches = list(_batches(ordered, tokens))
    for turn in range(math.ceil(len(batches) / mesh.dp_size)):
        number = turn * mesh.dp_size + mesh.dp_rank
        yield batches[min(number, len(batches) - 1)], number < len(batches)


def _rows(group: Sequence[Window], data: TokenizedDataset, items: np.ndarray) -> list[list[Example]]:
    return [[Example(one.input_ids, one.is_scored, data.images(int(items[one.item])))] for one in group]


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
    nats = torch.zeros(len(items), dtype=torch.float64)
    tokens = torch.zeros(len(items), dtype=torch.int64)
    for group, counts in _shares(data, items, sequence_length, rows * sequence_length, mesh):
        scores = score(collate(_rows(group, data, items))).double().sum(dim=1).cpu()
        if counts:
            places = torch.tensor([window.item for window in group])
            nats.index_add_(0, places, scores)
            tokens.index_add_(0, places, torch.tensor([int(window.is_scored[1:].sum()) for window in group]))
    totals = [tensor.to(mesh.device) for tensor in (nats, tokens)]
    for tensor in totals:
        mesh.sum_over_data(tensor)
    return ItemScores(items, totals[0].cpu().numpy(), totals[1].cpu().numpy(), data.learnable_bytes[items])


def evaluate_actions(
    logits: Callable[[PlacedInputs], torch.Tensor],
    place: Callable[[Inputs], PlacedInputs],
    data: TokenizedDataset,
    items: np.ndarray,
    *,
    coding: ActionCoding,
    sequence_length: int,
    most_tokens: int,
    collate: Callable[[Sequence[Sequence[Example]]], Inputs],
    mesh: Mesh,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """What a robot would do with the right numbers before each one: measures of the items over all ranks, by name.

    Then the same of the actions of a chunk that are 0, 1, ... steps ahead, as far as the items have some.

    `logits` are of all positions, (positions, vocabulary), of `most_tokens` at a time. Accuracy and distance are
    upstream's: the likeliest id of the whole vocabulary, and in [-1, 1] how far what it stands for is from the centre
    of the right bin. Bits are those of the softmax over the bins alone, where 8 are those of a guess.
    """
    tokens, size = coding.tokens, coding.statistics.dimensions
    sums = np.zeros((coding.chunk, 4))  # nats, hits, distances, numbers of each step ahead
    for group, counts in _shares(data, items, sequence_length, most_tokens, mesh):
        placed = place(collate(_rows(group, data, items)))
        logits_NV = logits(placed)[placed.positions_N].float()
        if not counts:
            continue
        nats_N = nats_of(logits_NV[:, tokens.begin : tokens.end], placed.targets_N - tokens.begin)
        chosen, right = (ids.cpu().numpy() for ids in (logits_NV.argmax(dim=1), placed.targets_N))
        distance = np.abs(tokens.decode(chosen) - tokens.decode(right))
        found = np.stack([nats_N.double().cpu().numpy(), chosen == right, distance, np.ones(len(right))], axis=1)
        ahead = np.concatenate([np.arange(int(window.is_scored[1:].sum())) // size for window in group])
        np.add.at(sums, ahead, found)
    total = torch.from_numpy(sums).to(mesh.device)
    mesh.sum_over_data(total)
    sums = total.cpu().numpy()
    return _action_measures(sums.sum(axis=0)), [_action_measures(one) for one in sums if one[3]]


def _action_measures(sums: np.ndarray) -> dict[str, float]:
    nats, hits, distances, count = sums.tolist()
    return {
        "val_bits_per_action_dimension": nats / math.log(2) / count,
        "val_action_accuracy": hits / count,
        "val_action_l1": distances / count,
    }
