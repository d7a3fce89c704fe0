"""What a valid spec refers to, looked up before anything starts: backbones, storage, data, the export folder.

Each function adds its problems to a list, so that a user sees all of them at once. No torch, ray, mlflow.
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from backbones.registry import BackboneSpec, get_spec
from backbones.vision.reference import is_fused, resolve_fused
from orchestrator.data.sources.dataset import NOTHING, Dataset
from orchestrator.data.sources.load import Loaded, Split, find_path, load_split
from orchestrator.data.tune_split import SHARE, TuneSplit, choose_tune_split
from orchestrator.environments.registry import find_problem
from orchestrator.errors import SpecError, SpecProblem
from orchestrator.layout import EXPORT_MANIFEST, EXPORT_UNFINISHED, Storage
from orchestrator.planning.sizes.memory import DEVICE_GIB
from orchestrator.spec_files.source import SpecSource
from orchestrator.spec_files.spec import Data, Job

IN_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
SHARED_FOLDER = "a folder that every node shares (NFS, EFS, Lustre, or a mounted bucket)"

Problems = list[SpecProblem]


def check_batch(source: SpecSource, job: Job, problems: Problems) -> None:
    """The global batch must be whole micro-batches on every worker."""
    recipe, placement = job.recipe, job.placement
    if placement.is_elastic:
        if not placement.worlds(recipe.global_batch_size):
            message = (
                f"'placement.workers' is {placement.fewest} to {placement.most}, and no number of them shares "
                f"'recipe.global_batch_size', {recipe.global_batch_size}, equally"
                + (f" in groups of {placement.replicas}" if placement.replicas > 1 else "")
                + "; widen the bounds, or change the batch"
            )
            problems.append(source.problem("placement.workers", message))
            return
        placement = placement.on(placement.worlds(recipe.global_batch_size)[0])
    workers = placement.parallel.data
    share, rest = divmod(recipe.global_batch_size, workers)
    if rest:
        near = " or ".join(str(size) for size in (share * workers, (share + 1) * workers) if size)
        message = (
            f"'recipe.global_batch_size' is {recipe.global_batch_size}, which {workers} workers cannot share equally; "
            f"set it to {near}, or change placement.workers"
        )
        problems.append(source.problem("recipe.global_batch_size", message))
    elif recipe.micro_batch_size != "auto" and share % recipe.micro_batch_size:
        divisors = [str(size) for size in range(1, share + 1) if share % size == 0]
        message = (
            f"'recipe.micro_batch_size' is {recipe.micro_batch_size}, which does not divide a worker's share of "
            f"{share} rows; set it to auto or one of {', '.join(divisors[-12:])}"
        )
        problems.append(source.problem("recipe.micro_batch_size", message))


def check_accelerator(source: SpecSource, job: Job, problems: Problems) -> None:
    """A misspelled accelerator is one that no node has: Ray would wait for it forever."""
    name = job.placement.accelerator
    if name is None or name in DEVICE_GIB:
        return
    near = difflib.get_close_matches(name.upper(), DEVICE_GIB, n=1)
    if near:  # others may exist: Ray takes any name, and the plan then says nothing about memory
        message = f"'placement.accelerator' is '{name}'; did you mean {near[0]}? Known: {', '.join(DEVICE_GIB)}"
        problems.append(source.problem("placement.accelerator", message))


def check_ladder(source: SpecSource, job: Job, problems: Problems) -> None:
    """Several budgets are of comparisons at one learning rate."""
    if job.recipe.budget.ladder is None:
        return
    if job.rule is None:
        message = "'recipe.budget.ladder' is of comparisons; write the one amount that this model is trained for"
        problems.append(source.problem("recipe.budget.ladder", message))
    if job.tuned_by is not None:
        message = (
            "'recipe.budget.ladder' and 'tuning' do not go together, as each budget would need trials of its own; run "
            "a comparison with tuning for each amount, and give their reports to `backbone predict`"
        )
        problems.append(source.problem("recipe.budget.ladder", message))


def check_generation(source: SpecSource, job: Job, problems: Problems) -> None:
    """Only instructions have answers."""
    data_format = job.recipe.data.format
    if job.recipe.evaluate.generation is not None and data_format in ("text", "actions"):
        message = (
            f"'recipe.evaluate.generation' is of instructions, and recipe.data.format is {data_format}, which has "
            "none; remove it"
        )
        problems.append(source.problem("recipe.evaluate.generation", message))


def check_tasks(source: SpecSource, job: Job, problems: Problems) -> None:
    """The folder of a job's own tasks must be there. Which tasks there are only lm-evaluation-harness knows."""
    text = job.recipe.evaluate.include_path
    if text is None:
        return
    folder = find_path(source, text)
    if folder is None or not folder.is_dir() or not any(folder.rglob("*.yaml")):
        message = f"'recipe.evaluate.include_path' is '{text}', which is no folder with *.yaml files; correct it"
        problems.append(source.problem("recipe.evaluate.include_path", message))


def check_rollouts(source: SpecSource, job: Job, problems: Problems) -> None:
    """What acts must have learned actions. Which environments there are within a kind only their simulator knows."""
    asked = job.recipe.evaluate.rollouts
    if asked is None:
        if job.rule is not None and job.rule.metric == "rollout_success":
            message = "'verdict.metric' is rollout_success, but there are no rollouts; add recipe.evaluate.rollouts"
            problems.append(source.problem("verdict.metric", message))
        return
    if problem := find_problem(asked.environment):
        message = f"'recipe.evaluate.rollouts.environment': {problem}"
        problems.append(source.problem("recipe.evaluate.rollouts.environment", message))
    if job.recipe.data.format != "actions":
        message = (
            f"'recipe.evaluate.rollouts' is there, but 'recipe.data.format' is {job.recipe.data.format}: only what "
            "learned actions can act; set it to actions, or remove the rollouts"
        )
        problems.append(source.problem("recipe.evaluate.rollouts", message))
    elif asked.execute is not None and asked.execute > (chunk := job.recipe.data.chunk):
        message = (
            f"'recipe.evaluate.rollouts.execute' is {asked.execute}, but the model answers with "
            f"{'one action' if chunk == 1 else f'{chunk} actions'}; lower it, or raise recipe.data.actions.chunk"
        )
        problems.append(source.problem("recipe.evaluate.rollouts.execute", message))


def resolve_backbones(source: SpecSource, references: Sequence[str], problems: Problems) -> list[BackboneSpec]:
    """The specs of registered ids and of `hf:` references. Raises HubError when the hub cannot be read."""
    specs: list[BackboneSpec] = []
    listed = source.data.get("backbones")
    for reference in references:
        path = f"backbones.{listed.index(reference)}" if isinstance(listed, list) else "backbone"
        try:
            spec = _resolve_backbone(source, reference)
        except ValueError as error:  # the registry's input errors; a network failure is no input error and passes
            reason = str(error).removeprefix(f"{reference}: ")
            problems.append(source.problem(path, f"'{path}' is '{reference}': {reason}"))
            continue
        twin = next((other.backbone_id for other in specs if _same_content(other, spec)), None)
        if twin is not None:
            message = f"'{path}' is '{reference}', which has the same content as '{twin}'; list each model once"
            problems.append(source.problem(path, message))
        specs.append(spec)
    return specs


def default_tracking_uri(storage: Path) -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in the storage folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Storage(storage).mlflow_database}"


def resolve_storage(source: SpecSource, job: Job, problems: Problems) -> Path:
    """The spec's storage, else BACKBONE_STORAGE, else ./runs; inside a Ray job there is no such default."""
    text = job.storage or os.environ.get("BACKBONE_STORAGE") or None
    place = "'storage'" if job.storage else "BACKBONE_STORAGE"
    if text is not None and "://" in text:
        message = f"{place} is '{text}': object stores are not available in this version; give {SHARED_FOLDER}"
        problems.append(source.problem("storage", message))
        return Path()
    if IN_RAY_JOB in os.environ and (text is None or not Path(text).expanduser().is_absolute()):
        found = "'storage' is not set" if text is None else f"{place} is the relative path '{text}'"
        message = (
            f"{found}, but inside a Ray job the working directory is a copy that Ray deletes; set 'storage', or "
            f"BACKBONE_STORAGE on the cluster, to the absolute path of {SHARED_FOLDER}"
        )
        problems.append(source.problem("storage", message))
        return Path()
    storage = Path(text or "runs").expanduser().absolute()
    if fault := _find_write_fault(storage):
        found = f"{place} is '{text}'" if text else f"'storage' is not set, so results go to {storage}"
        problems.append(source.problem("storage", f"{found}, but {fault}; choose another folder"))
    return storage


def check_export_folder(source: SpecSource, text: str, problems: Problems) -> None:
    """An export goes to a new or empty folder, or replaces one of ours."""
    folder = Path(text).expanduser()
    if IN_RAY_JOB in os.environ and not folder.is_absolute():
        return  # a folder of this job's own storage
    if os.path.exists(folder) and not _is_export(folder):
        message = f"'export.folder' is '{text}', which exists and is not one of our exports; choose a new folder"
        problems.append(source.problem("export.folder", message))
    elif fault := _find_write_fault(folder.absolute()):
        problems.append(source.problem("export.folder", f"'export.folder' is '{text}', but {fault}; choose another"))


def load_splits(source: SpecSource, job: Job, problems: Problems) -> tuple[Dataset, Dataset, int] | None:
    """Training data, held-out data, and how many training examples were removed because they are held out."""
    data = job.recipe.data
    found: Problems = []
    validation = _load_split(source, "validation", data, NOTHING, found)
    held_out = NOTHING if validation is None else validation.digests
    train = _load_split(source, "train", data, held_out, problems, with_items=job.tuned_by is not None)
    problems += [problem for problem in found if problem not in problems]
    if train is None or validation is None:
        return None
    if not len(train.dataset):
        message = (
            f"'recipe.data.train' is '{data.train}', and every example of it is also held out in '{data.validation}'; "
            "train on examples that recipe.data.validation does not have"
        )
        problems.append(source.problem("recipe.data.train", message))
        return None
    if train.dataset.actions is not None and validation.dataset.actions is not None:
        ours, theirs = train.dataset.actions.dimensions, validation.dataset.actions.dimensions
        if ours != theirs:
            message = (
                f"'recipe.data.validation' is '{data.validation}', whose actions have {theirs} numbers, but those of "
                f"'{data.train}' have {ours}; hold out steps of the same robot"
            )
            problems.append(source.problem("recipe.data.validation", message))
            return None
    return train.dataset, validation.dataset, train.removed


def find_tune_split(
    source: SpecSource, job: Job, splits: tuple[Dataset, Dataset, int], problems: Problems
) -> TuneSplit | None:
    """The part of the training data on which trials are scored, where learning rates are tuned."""
    if job.tuned_by is None:
        return None
    train, validation, _ = splits
    tuning, budget = job.tuned_by, job.recipe.budget
    amounts = [tuning.budget(budget, rung).amount for rung in range(len(tuning.rung_sizes))]
    if len(set(amounts)) < len(amounts):  # of steps, which are whole
        message = (
            f"'tuning' has {len(amounts)} rungs of {', '.join(f'{one:g}' for one in amounts)} steps, which do not "
            "double; use fewer tuning.rungs, a larger tuning.budget_fraction or more steps"
        )
        problems.append(source.problem("tuning", message))
    assert train.items is not None, "training data of a job that is tuned is loaded with its items"
    if (found := choose_tune_split(train.items, validation.learnable_bytes)) is None:
        message = (
            f"'recipe.data.train' is '{job.recipe.data.train}', whose {len(train)} examples are too few or too unequal "
            f"to keep {SHARE:.0%} of them from the trials of 'tuning'; give more of them, or remove tuning"
        )
        problems.append(source.problem("tuning", message))
    return found


def _load_split(
    source: SpecSource, split: Split, data: Data, held_out: np.ndarray, problems: Problems, with_items: bool = False
) -> Loaded | None:
    try:
        return load_split(source, split, data, held_out, with_items)
    except SpecError as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return None


def _resolve_backbone(source: SpecSource, reference: str) -> BackboneSpec:
    """Looks a backbone up; a relative `hf:` folder may stand beside the spec file. The user's own words stay its id."""
    if is_fused(reference):
        return resolve_fused(reference, lambda language: _resolve_backbone(source, language))
    folder = reference.removeprefix("hf:")
    if reference.startswith("hf:.") and (found := find_path(source, folder)) is not None:
        try:
            return replace(get_spec(f"hf:{found}"), backbone_id=reference)
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f"hf:{found}: ")) from error
    return get_spec(reference)


def _same_content(one: BackboneSpec, other: BackboneSpec) -> bool:
    """Whether two references lead to copies of one model folder."""
    are_folders = one.is_reference and other.is_reference and one.folder
    return bool(are_folders) and one.weights_digest == other.weights_digest


def _is_export(folder: Path) -> bool:
    """Whether a folder is empty, an export of ours, or one that was interrupted."""
    if not folder.is_dir():
        return False
    manifests = (folder / EXPORT_MANIFEST, folder / EXPORT_UNFINISHED / EXPORT_MANIFEST)
    return any(path.is_file() for path in manifests) or {path.name for path in folder.iterdir()} <= {EXPORT_UNFINISHED}


def _find_write_fault(folder: Path) -> str | None:
    """Why a folder that may not exist yet cannot be written, found without creating anything; None when it can."""
    existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    if not existing.is_dir():
        return f"{existing} is a file"
    return None if os.access(existing, os.W_OK | os.X_OK) else f"{existing} is not writable for this user"
