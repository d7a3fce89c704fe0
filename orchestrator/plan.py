"""From a spec file to fully resolved cells: pure, instant, no torch, ray or mlflow."""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backbones.registry import BackboneSpec, get_spec
from orchestrator.data.sources import Dataset, find_path, load_dataset, without_held_out
from orchestrator.errors import SpecError, SpecProblem
from orchestrator.flops import training_flops_per_token
from orchestrator.memory import MemoryPrediction, choose_micro_batch_size, find_device_gib, predict_memory
from orchestrator.spec import Comparison, Finetune, Job, Placement, Recipe
from orchestrator.yaml_source import SpecSource, read_spec, validate


@dataclass(frozen=True)
class Cell:
    """One backbone with one seed, fully resolved.

    `cell_id` hashes everything that decides what the cell measures; package versions are recorded, not hashed.
    """

    cell_id: str
    backbone: BackboneSpec
    seed: int
    recipe: Recipe
    placement: Placement
    micro_batch_size: int
    train_digest: str
    validation_digest: str
    occurrence: str | None = None

    @property
    def accumulation_steps(self) -> int:
        return self.recipe.global_batch_size // (self.placement.workers * self.micro_batch_size)


@dataclass(frozen=True)
class CellForecast:
    """What the plan predicts for a cell. `infeasible` says why it cannot run, or is None."""

    memory: MemoryPrediction
    device_gib: float | None
    flops_per_token: float
    infeasible: str | None


@dataclass(frozen=True)
class Plan:
    """A job ready to run: its cells in the order they are launched, its data, and where results go."""

    kind: str  # "comparison" or "finetune"
    job_id: str  # <name>-<hash>
    job: Job
    source: SpecSource
    cells: tuple[Cell, ...]
    forecasts: tuple[CellForecast, ...]
    train: Dataset
    validation: Dataset
    train_in_validation: int  # training examples removed because they are held out
    storage: Path
    tracking_uri: str

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        return self.storage / self.job_id

    def cell_folder(self, cell: Cell) -> Path:
        """Where a cell keeps its checkpoints, spool and result; shared by every comparison that has the cell."""
        return self.storage / "cells" / cell.cell_id

    @property
    def backbones(self) -> tuple[BackboneSpec, ...]:
        return tuple({cell.backbone.backbone_id: cell.backbone for cell in self.cells}.values())


def load_comparison(path: Path) -> Plan:
    """Reads and plans `compare.yaml`. Raises SpecError with everything that is wrong; nothing is started."""
    source = read_spec(path)
    if "backbone" in source.data and "backbones" not in source.data:
        problem = "has 'backbone', so it is a finetune; run `backbone finetune`, or write 'backbones' with a list"
        raise SpecError((source.problem("backbone", problem),))
    job = validate(source, Comparison)
    return _plan("comparison", source, job, job.backbones, job.seed_list)


def load_finetune(path: Path) -> Plan:
    """Reads and plans `finetune.yaml`. Raises SpecError with everything that is wrong; nothing is started."""
    source = read_spec(path)
    if "backbones" in source.data and "backbone" not in source.data:
        problem = "has 'backbones', so it is a comparison; run `backbone compare`, or write one 'backbone'"
        raise SpecError((source.problem("backbones", problem),))
    job = validate(source, Finetune)
    if job.export is not None:
        _check_export_folder(source, Path(job.export.folder))
    return _plan("finetune", source, job, (job.backbone,), (job.seed,))


def load_plan(path: Path) -> Plan:
    """Plans whichever kind of spec the file holds."""
    source = read_spec(path)
    return (
        load_finetune(path) if "backbone" in source.data and "backbones" not in source.data else load_comparison(path)
    )


def _plan(kind: str, source: SpecSource, job: Job, references: tuple[str, ...], seeds: tuple[int, ...]) -> Plan:
    problems = _batch_problems(source, job)
    specs = _resolve_backbones(source, kind, references, problems)
    storage = _resolve_storage(source, job, problems)
    if problems:
        raise SpecError(tuple(problems))
    train, validation, removed = _load_data(source, job)
    cells = _cells(job, specs, seeds, train, validation)
    forecasts = tuple(_forecast(cell) for cell in cells)
    uri = job.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage / 'mlflow.db'}"
    rule = job.verdict.model_dump() if isinstance(job, Comparison) else None
    job_id = f"{job.name}-{_hash([kind, [cell.cell_id for cell in cells], rule])[:10]}"
    return Plan(kind, job_id, job, source, cells, forecasts, train, validation, removed, storage, uri)


def _batch_problems(source: SpecSource, job: Job) -> list[SpecProblem]:
    recipe, workers = job.recipe, job.placement.workers
    if recipe.global_batch_size % workers:
        below = recipe.global_batch_size // workers * workers
        near = " or ".join(str(size) for size in (below, below + workers) if size)
        message = (
            f"'recipe.global_batch_size' is {recipe.global_batch_size}, which {workers} workers cannot share equally; "
            f"set it to {near}, or change placement.workers"
        )
        return [source.problem("recipe.global_batch_size", message)]
    share = recipe.global_batch_size // workers
    if recipe.micro_batch_size != "auto" and share % recipe.micro_batch_size:
        divisors = [str(size) for size in range(1, share + 1) if share % size == 0]
        message = (
            f"'recipe.micro_batch_size' is {recipe.micro_batch_size}, which does not divide a worker's share of "
            f"{share} rows; set it to auto or one of {', '.join(divisors[:12])}"
        )
        return [source.problem("recipe.micro_batch_size", message)]
    return []


def _resolve_backbones(
    source: SpecSource, kind: str, references: tuple[str, ...], problems: list[SpecProblem]
) -> list[BackboneSpec]:
    specs = []
    for index, reference in enumerate(references):
        path = f"backbones.{index}" if kind == "comparison" else "backbone"
        try:
            specs.append(_resolve_backbone(source, reference))
        except ValueError as error:  # the registry's input errors; a network failure is no input error and passes
            problems.append(source.problem(path, f"'{path}' is {reference!r}: {error}"))
    return specs


def _resolve_backbone(source: SpecSource, reference: str) -> BackboneSpec:
    """Looks a backbone up; a relative `hf:` folder may stand beside the spec file. The user's own words stay its id."""
    folder = reference.removeprefix("hf:")
    if reference.startswith("hf:.") and (found := find_path(source, folder)) is not None:
        return replace(get_spec(f"hf:{found}"), backbone_id=reference)
    return get_spec(reference)


def _resolve_storage(source: SpecSource, job: Job, problems: list[SpecProblem]) -> Path:
    text = job.storage or os.environ.get("BACKBONE_STORAGE")
    if text is None and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        message = (
            "no storage: inside a Ray job the working directory is a copy that Ray deletes; set 'storage' in the spec "
            "or BACKBONE_STORAGE on the cluster to a folder that every node shares"
        )
        problems.append(SpecProblem(source.file, message, "storage"))
        return Path()
    text = text or "runs"
    if re.match(r"^[a-z0-9]+://", text):
        message = (
            f"'storage' is {text!r}: object stores are not available in this version; give a folder that every node "
            "shares (NFS, EFS, Lustre, or a mounted bucket)"
        )
        problems.append(source.problem("storage", message))
        return Path()
    storage = Path(text).expanduser().absolute()
    existing = next(parent for parent in (storage, *storage.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        message = f"'storage' is {text!r}, but {existing} is not a folder this user can write; choose another"
        problems.append(source.problem("storage", message))
    return storage


def _load_data(source: SpecSource, job: Job) -> tuple[Dataset, Dataset, int]:
    data = job.recipe.data
    validation = load_dataset(source, "validation", data.validation, data.format)
    everything = load_dataset(source, "train", data.train, data.format)
    train, removed = without_held_out(everything, validation)
    if not train.examples:
        message = (
            f"'recipe.data.train' is {data.train!r}: every example is also held out in {data.validation!r}; "
            "give disjoint files"
        )
        raise SpecError((source.problem("recipe.data.train", message),))
    return train, validation, removed


def _cells(
    job: Job, specs: list[BackboneSpec], seeds: tuple[int, ...], train: Dataset, validation: Dataset
) -> tuple[Cell, ...]:
    """Seed by seed, so that an interrupted comparison has all backbones at equal seeds."""
    shared_fate = sorted(_identity(spec) for spec in specs) if job.recipe.data.parity == "intersection" else []
    return tuple(_cell(job, spec, seed, train, validation, shared_fate) for seed in seeds for spec in specs)


def _cell(job: Job, spec: BackboneSpec, seed: int, train: Dataset, validation: Dataset, shared_fate: list[str]) -> Cell:
    recipe, placement = job.recipe, job.placement
    micro = recipe.micro_batch_size
    rows = choose_micro_batch_size(spec, recipe, placement) if micro == "auto" else micro
    recipe_facts = recipe.model_dump(mode="json", exclude={"data": {"train", "validation"}, "checkpoint": True})
    digests = [train.digest, validation.digest]
    placed = placement.model_dump(mode="json")
    # With parity: intersection the other candidates decide which examples are dropped, so they are part of the cell.
    identity = _hash([_identity(spec), seed, recipe_facts, placed, rows, digests, shared_fate, None])
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", spec.backbone_id).strip("-.")[-48:]
    return Cell(f"{slug}-s{seed}-{identity[:10]}", spec, seed, recipe, placement, rows, train.digest, validation.digest)


def _identity(spec: BackboneSpec) -> str:
    """A backbone's content: for a folder the digest of its files, whatever the folder is called."""
    facts = {**asdict(spec), "weights_digest": spec.weights_digest}
    if spec.weights_digest is not None:
        facts |= {"backbone_id": "", "hf_hub_path": ""}
    return _hash(facts)


def _forecast(cell: Cell) -> CellForecast:
    memory = predict_memory(cell.backbone, cell.recipe, cell.placement, cell.micro_batch_size)
    device = find_device_gib(cell.placement)
    flops = training_flops_per_token(cell.backbone, cell.recipe.sequence_length)
    return CellForecast(memory, device, flops, _infeasible_reason(cell, memory, device))


def _infeasible_reason(cell: Cell, memory: MemoryPrediction, device: float | None) -> str | None:
    if cell.recipe.sequence_length > cell.backbone.context_length:
        return (
            f"{cell.backbone.backbone_id} has a context of {cell.backbone.context_length} tokens, but "
            f"recipe.sequence_length is {cell.recipe.sequence_length}. Lower it."
        )
    if device is None or memory.total <= device:
        return None
    return (
        f"{cell.backbone.backbone_id} needs about {memory.total:.0f} GiB per GPU, {memory.states:.0f} of them for "
        f"weights, gradients and AdamW state, but the plan gives it {device:.0f} GiB.\n  Raise placement.workers above "
        f"{cell.placement.workers}, or lower recipe.micro_batch_size or recipe.sequence_length."
    )


def _check_export_folder(source: SpecSource, folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        ours = folder / "training_manifest.json"
        if not ours.is_file():
            message = f"'export.folder' is {str(folder)!r}, which exists and is not one of our exports; choose another"
            raise SpecError((source.problem("export.folder", message),))


def _hash(document: Any) -> str:
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
