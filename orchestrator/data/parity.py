"""Which examples every candidate sees: the parity report, made before anything trains. NumPy only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.prepare import Prepared, TokenizedDataset, load_tokenized
from orchestrator.data.tune_split import TuneSplit
from orchestrator.errors import SpecError, SpecProblem


@dataclass(frozen=True)
class Parity:
    """What every candidate trains and is scored on: indices into the tokenized splits, and what was left out."""

    kept: dict[str, np.ndarray]  # backbone_id -> (examples,) int64 training examples
    scored: np.ndarray  # (items,) int64 held-out items, the same for every candidate
    dropped: dict[str, int]
    backbones: dict[str, dict[str, Any]]
    numbers: int = 0  # of a whole answer of several actions; 0 of any other


def compare_tokenizers(prepared: Sequence[Prepared], sequence_length: int, rule: str) -> Parity:
    """Counts what each tokenizer does to the data and applies `data.parity`.

    intersection: an example that any candidate would cut is dropped for all. per_backbone: each candidate keeps what
    it can learn from, cut at the end. Held-out items are never cut (long ones are scored in windows); an item whose
    text any tokenizer cannot give back is dropped for all.

    An example with images is never cut, nor an item with some parted: who cannot read it whole drops it. The same goes
    for chunks of actions, and those that an episode cuts short are as long as whole ones: else where answers do not fit
    only the ends of episodes would be left.
    """
    train = {one.backbone_id: load_tokenized(one.train_file) for one in prepared}
    validation = [load_tokenized(one.validation_file) for one in prepared]
    cut = {one.backbone_id: _lengths(one, train[one.backbone_id]) > sequence_length for one in prepared}
    empty = {backbone_id: _loses_every_target(data, sequence_length) for backbone_id, data in train.items()}
    cut_by_any = np.logical_or.reduce(list(cut.values()))
    empty_for_any = np.logical_or.reduce(list(empty.values()))
    if rule == "intersection":
        shared = np.flatnonzero(~(cut_by_any | empty_for_any))
        kept = dict.fromkeys(train, shared)
        too_long, no_target = int(cut_by_any.sum()), int((empty_for_any & ~cut_by_any).sum())
    else:
        uncut = {one.backbone_id: cut[one.backbone_id] & _is_never_cut(one, train[one.backbone_id]) for one in prepared}
        kept = {backbone_id: np.flatnonzero(~(nothing | uncut[backbone_id])) for backbone_id, nothing in empty.items()}
        uncut_by_any = np.logical_or.reduce(list(uncut.values()))
        too_long, no_target = int(uncut_by_any.sum()), int((empty_for_any & ~uncut_by_any).sum())
    readable = np.logical_and.reduce([data.round_trips for data in validation])
    whole = np.logical_and.reduce(
        [
            (_lengths(one, data) <= sequence_length) | (not _is_never_cut(one, data))
            for one, data in zip(prepared, validation, strict=True)
        ]
    )
    facts = {
        one.backbone_id: {
            "examples_cut": int(cut[one.backbone_id].sum()),
            "examples_without_target": int(empty[one.backbone_id].sum()),
            "tokens_per_byte": one.tokens_per_byte,
            "doubled_bos": one.doubled_bos,
            "missing_eos": one.missing_eos,
            "kept": len(kept[one.backbone_id]),
            **_tokens(train[one.backbone_id], kept[one.backbone_id], sequence_length),
        }
        for one in prepared
    }
    dropped = {"too_long": too_long, "no_target": no_target, "does_not_round_trip": int((~readable).sum())}
    if not whole.all():
        dropped["held_out_too_long"] = int((readable & ~whole).sum())
    learned = prepared[0].actions
    numbers = learned.numbers if learned is not None and learned.chunk > 1 else 0
    return Parity(kept, np.flatnonzero(readable & whole), dropped, facts, numbers)


def find_droppers(prepared: Sequence[Prepared], sequence_length: int, examples: np.ndarray) -> dict[str, int]:
    """How many of some training examples each candidate's tokenizer would cut or leave without a target, if any."""
    lost = {}
    for one in prepared:
        data = load_tokenized(one.train_file)
        lost[one.backbone_id] = (_lengths(one, data) > sequence_length) | _loses_every_target(data, sequence_length)
    counts = {backbone_id: int(one[examples].sum()) for backbone_id, one in lost.items()}
    return {backbone_id: count for backbone_id, count in counts.items() if count}


def check_parity(parity: Parity, file: str, sequence_length: int) -> None:
    """Raises SpecError when some candidate is left with nothing to train on or nothing to be scored on."""
    for backbone_id, kept in parity.kept.items():
        if not len(kept):
            remedy = "lower recipe.data.actions.chunk" if parity.numbers else "set recipe.data.parity to per_backbone"
            answers = f" with its answer of {parity.numbers} tokens" if parity.numbers else ""
            message = (
                f"no training example{answers} fits {backbone_id} at recipe.sequence_length {sequence_length}; raise "
                f"it, or {remedy}"
            )
            raise SpecError((SpecProblem(file, message, "recipe.sequence_length"),))
    if not len(parity.scored):
        message = (
            "no held-out item can be decoded back to its own text by every tokenizer; check recipe.data.validation"
            if not parity.dropped.get("held_out_too_long")
            else f"no held-out item fits recipe.sequence_length {sequence_length} whole, and none is parted; raise it"
        )
        raise SpecError((SpecProblem(file, message, "recipe.data.validation"),))


def parity_of_trials(parity: Parity, tune: TuneSplit, file: str) -> Parity:
    """The same for trials of tuning, which are scored on training examples that every candidate keeps and none learns.

    Raises SpecError when a candidate is left with nothing to learn, or nothing is left to score.
    """
    kept = {backbone_id: np.setdiff1d(one, tune.excluded) for backbone_id, one in parity.kept.items()}
    scored = tune.examples
    for one in parity.kept.values():
        scored = np.intersect1d(scored, one)
    if not len(scored) or not all(map(len, kept.values())):
        fewest = min(map(len, kept.values()))
        message = (
            f"of the training examples that are short enough, trials of 'tuning' would learn from {fewest} and be "
            f"scored on {len(scored)}; give more training data, raise recipe.sequence_length, or remove tuning"
        )
        raise SpecError((SpecProblem(file, message, "tuning"),))
    return replace(parity, kept=kept, scored=scored)


def save_selection(file: Path, parity: Parity, backbone_id: str) -> None:
    """Writes the two index arrays that a cell's workers need."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, kept=parity.kept[backbone_id], scored=parity.scored)


def load_selection(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Kept training examples and scored held-out items."""
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["kept"], arrays["scored"]


def _has_chunks(one: Prepared) -> bool:
    return one.actions is not None and one.actions.chunk > 1


def _is_never_cut(one: Prepared, data: TokenizedDataset) -> bool:
    return data.has_images or _has_chunks(one)


def _lengths(one: Prepared, data: TokenizedDataset) -> np.ndarray:
    """(examples,) int64 tokens, those included that a chunk would have if its episode went on."""
    if one.actions is None or not _has_chunks(one):
        return data.lengths
    lengths: np.ndarray = data.lengths + one.actions.numbers - data.learnable_bytes
    return lengths


def _loses_every_target(data: TokenizedDataset, sequence_length: int) -> np.ndarray:
    """(examples,) bool: nothing to learn is left after cutting at `sequence_length`."""
    return np.asarray(data.first_targets >= sequence_length)


def _tokens(data: TokenizedDataset, kept: np.ndarray, sequence_length: int) -> dict[str, int]:
    """Where a candidate's training tokens went; the three shares add up to all."""
    lengths = data.lengths[kept]
    cut = int(np.maximum(lengths - sequence_length, 0).sum())
    every, used = int(data.offsets[-1]), int(lengths.sum())
    return {"tokens": every, "tokens_kept": used - cut, "tokens_cut": cut, "tokens_dropped": every - used}
