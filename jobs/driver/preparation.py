"""Tokenizes a job's data on the cluster, in parallel, and decides what every candidate sees, before anything trains.

One task looks for what is missing and makes what is small; parts of what is large are tasks of their own, and another
joins them. The arrays are the same however many tasks made them.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from backbones.prompting.codec import Codec
from backbones.registry import BackboneSpec
from jobs.results.documents import PreparedFacts
from orchestrator.data.parity import Parity, check_parity, compare_tokenizers, parity_of_trials, save_selection
from orchestrator.data.prepare import (
    Prepared,
    Split,
    Work,
    is_prepared,
    join,
    make_here,
    make_part,
    parts_folder,
    prepared_from_json,
    prepared_of,
    splits_of,
)
from orchestrator.errors import OrchestratorError
from orchestrator.layout import Storage
from orchestrator.planning.plan import Cell, Plan
from orchestrator.results import read_json, write_json

SAID_EVERY_S = 10.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Preparation:
    """Where each backbone's token arrays and selection are, and the parity facts for the report."""

    prepared: dict[str, Prepared]
    selection_files: dict[str, str]
    facts: PreparedFacts
    trial_selection_files: dict[str, str] = field(default_factory=dict)

    def prepared_for(self, cell: Cell) -> Prepared:
        """The arrays of a cell's backbone. A trial is scored on some of its training examples."""
        one = self.prepared[cell.backbone.backbone_id]
        return one.of_trials if cell.is_trial else one

    def selection_file(self, cell: Cell) -> str:
        """Which examples of those arrays a cell learns from, and on which it is scored."""
        files = self.trial_selection_files if cell.is_trial else self.selection_files
        return files[cell.backbone.backbone_id]


def find_preparation(plan: Plan) -> Preparation | None:
    """What an earlier launch of the same job prepared, or None."""
    file = plan.files.preparation
    if not file.exists():
        return None
    document = read_json(file)
    prepared = {backbone_id: prepared_from_json(one) for backbone_id, one in document["prepared"].items()}
    arrays = [file for one in prepared.values() for file in (one.train_file, one.validation_file, one.trial_file)]
    if not all(is_prepared(Path(file)) for file in arrays if file is not None):
        return None  # of an earlier version, or deleted
    files = document["selection_files"], document.get("trial_selection_files", {})
    return Preparation(prepared, files[0], document["facts"], files[1])


def prepare_data(plan: Plan, say: Say = print) -> Preparation:
    """Tokenizes with every candidate's tokenizer in Ray tasks and applies the parity rule."""
    prepared = _tokenized(plan, say)
    sequence_length = plan.job.recipe.sequence_length
    parity = compare_tokenizers(prepared, sequence_length, plan.job.recipe.data.parity)
    check_parity(parity, plan.source.file, sequence_length)
    trials = None if plan.tune is None else parity_of_trials(parity, plan.tune, plan.source.file)
    files = _save_selections(parity, plan.files.selection)
    trial_files = {} if trials is None else _save_selections(trials, plan.files.trial_selection)
    facts: PreparedFacts = {
        "rows_read": {"train": len(plan.train) + plan.train_in_validation, "validation": len(plan.validation)},
        "kept": min(len(kept) for kept in parity.kept.values()),
        "scored": len(parity.scored),
        "dropped": {**parity.dropped, "in_validation": plan.train_in_validation},
        "backbones": parity.backbones,
    }
    preparation = Preparation({one.backbone_id: one for one in prepared}, files, facts, trial_files)
    write_json(plan.files.preparation, asdict(preparation))
    return preparation


def _save_selections(parity: Parity, file_of: Callable[[int], Path]) -> dict[str, str]:
    """By backbone, where they are."""
    files = {backbone_id: file_of(number) for number, backbone_id in enumerate(parity.kept)}
    for backbone_id, file in files.items():
        save_selection(file, parity, backbone_id)
    return {backbone_id: str(file) for backbone_id, file in files.items()}


def _tokenized(plan: Plan, say: Say) -> list[Prepared]:
    """One task, and where the data is large as many more as it has parts; then what was found of each backbone."""
    import ray

    shared = ray.put(plan)
    ((missing, found),) = _gather(_make_small, [(shared,)], say)
    for backbone_id, works in missing.items():
        spec = next(spec for spec in plan.backbones if spec.backbone_id == backbone_id)
        folders = [parts_folder(work) for work in works]
        try:
            calls = [
                (shared, spec, work, number, folder)
                for work, folder in zip(works, folders, strict=True)
                for number in range(len(work.parts))
            ]
            parts = iter(_gather(_make_part, calls, say, f"tokenizing for {backbone_id}"))
            _gather(join, [(work, [next(parts) for _ in work.parts]) for work in works], say)
        finally:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
    if missing:
        (found,) = _gather(_find_prepared, [(shared,)], say)
    prepared: list[Prepared] = found
    return prepared


def _gather(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], say: Say, title: str = "") -> list[Any]:
    """The results of some tasks, in order. The first error ends all; a file that a node lacks is read on this one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=1, max_retries=1)(function)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    waiting = {task.remote(*call): number for number, call in enumerate(calls)}
    results: dict[int, Any] = {}
    came_back: set[int] = set()
    said = time.monotonic()
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=SAID_EVERY_S)
            for reference in ready:
                number = waiting.pop(reference)
                try:
                    results[number] = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if not isinstance(error.cause, FileNotFoundError) or number in came_back:
                        _raise_designed(error)
                    came_back.add(number)
                    waiting[task.options(num_cpus=0, scheduling_strategy=here).remote(*calls[number])] = number
            if title and time.monotonic() - said > SAID_EVERY_S:
                said = time.monotonic()
                say(f"{title}: {len(results)} of {len(calls)} parts")
    finally:
        for reference in waiting:
            with suppress(Exception):  # an interrupted launch leaves no work behind; what cannot be stopped ends
                ray.cancel(reference)
    return [results[number] for number in range(len(calls))]


def _raise_designed(error: Any) -> None:
    if isinstance(error.cause, OrchestratorError):
        raise error.cause from None  # designed for the user; Ray's wrapping shows its own traceback instead
    raise error


def _codecs(plan: Plan) -> Iterator[tuple[BackboneSpec, Codec, tuple[Split, ...]]]:
    """On a node that has the model cache and, for gated ids, HF_TOKEN: each tokenizer, and what it has to make."""
    for spec in plan.backbones:
        codec = _codec(plan, spec)
        folder = Storage(plan.storage).prepared
        yield spec, codec, splits_of(codec, plan.train, plan.validation, folder, spec.vision, plan.tune)


def _codec(plan: Plan, spec: BackboneSpec) -> Codec:
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from backbones import registry

    for module in plan.plugins:
        registry.load_plugin(module)
    return _load_codec(spec, plan.job.recipe.sequence_length)


@lru_cache(maxsize=1)
def _load_codec(spec: BackboneSpec, max_length: int) -> Codec:
    """Kept in its process from one part to the next: a tokenizer takes up to a second to load."""
    from backbones import registry

    return registry.load_codec(spec, max_length=max_length)


def _make_small(plan: Plan) -> tuple[dict[str, list[Work]], list[Prepared]]:
    """Makes what is missing, if that is small. Returns what is missing still, by backbone; else what is there."""
    found = list(_codecs(plan))
    missing: dict[str, list[Work]] = {}
    codecs: dict[str, Codec] = {}
    seen: set[Path] = set()  # candidates with one tokenizer share their arrays, and those of one size their pixels
    for spec, codec, splits in found:
        # Held-out rows take longest: a part of them must not be the last to begin.
        for work in (work for split in reversed(splits) for work in split.works):
            if not work.is_ready and work.folder not in seen:
                seen.add(work.folder)
                codecs[spec.backbone_id] = codec
                missing.setdefault(spec.backbone_id, []).append(work)
    if any(len(work.parts) > 1 for works in missing.values() for work in works):
        return missing, []
    for backbone_id, works in missing.items():
        for work in works:
            make_here(codecs[backbone_id], work)
    return {}, [prepared_of(spec.backbone_id, codec, *splits) for spec, codec, splits in found]


def _make_part(plan: Plan, spec: BackboneSpec, work: Work, number: int, folder: Path) -> Path:
    return make_part(_codec(plan, spec), work, number, folder)


def _find_prepared(plan: Plan) -> list[Prepared]:
    return [prepared_of(spec.backbone_id, codec, *splits) for spec, codec, splits in _codecs(plan)]
