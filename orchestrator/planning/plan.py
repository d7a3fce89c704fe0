"""From a spec file to fully resolved cells: pure, instant, no torch, ray or mlflow.

Over 300 lines: what a plan is, and each way to make one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backbones.registry import BackboneSpec
from orchestrator.data.order import PACKED_ORDER
from orchestrator.data.sources.dataset import Dataset
from orchestrator.data.tune_split import TuneSplit
from orchestrator.errors import SpecError, SpecProblem
from orchestrator.identity import backbone_identity, backbone_slug, content_hash
from orchestrator.layout import JobFolder, Storage
from orchestrator.planning.modalities import check_actions, check_answers, check_images, check_vision, masked
from orchestrator.planning.occurrence import parse_occurrence
from orchestrator.planning.preflight import (
    check_accelerator,
    check_batch,
    check_export_folder,
    check_generation,
    check_ladder,
    check_rollouts,
    check_tasks,
    default_tracking_uri,
    find_tune_split,
    load_splits,
    resolve_backbones,
    resolve_storage,
)
from orchestrator.planning.sizes.flops import training_flops_per_token
from orchestrator.planning.sizes.memory import (
    MemoryPrediction,
    choose_micro_batch_size,
    find_device_gib,
    find_shortage,
    fits,
    predict_memory,
)
from orchestrator.planning.sizes.recomputation import resolve_activation_checkpointing
from orchestrator.planning.tuning import SEED, runs_of, trial_recipe, with_rate
from orchestrator.spec_files.source import SpecSource, read_spec
from orchestrator.spec_files.spec import Comparison, Finetune, Job, Ladder, Placement, Recipe
from orchestrator.spec_files.validation import check, is_within


@dataclass(frozen=True)
class Cell:
    """One backbone with one seed, fully resolved.

    `cell_id` hashes everything that decides what the cell measures; package versions are recorded, not hashed. `work`
    is the same without the other candidates: cells of one work that learned from the same examples measure the same.
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
    worlds: tuple[int, ...] = ()  # where it is elastic: how many workers it may have, the most first
    work: str = ""
    rung: int | None = None  # of a trial of tuning, from 0

    @property
    def is_trial(self) -> bool:
        """Whether it only helps to find a learning rate: it is scored on the plan's tune split, and not judged."""
        return self.rung is not None

    @property
    def learning_rate(self) -> float:
        return self.recipe.optimizer.learning_rate

    def on(self, workers: int) -> "Cell":
        """As an attempt with that many workers runs it: the same global batch, in micro-batches at most as large."""
        placement = self.placement.on(workers)
        share = placement.parallel.rows_of_a_rank(self.recipe.global_batch_size)
        rows = next(size for size in range(min(self.micro_batch_size, share), 0, -1) if share % size == 0)
        return replace(self, placement=placement, micro_batch_size=rows)

    @property
    def accumulation_steps(self) -> int:
        return self.placement.parallel.accumulation_steps(self.recipe.global_batch_size, self.micro_batch_size)


@dataclass(frozen=True)
class CellForecast:
    """What the plan predicts for the cells of a backbone. `infeasible` says why they cannot run, or is None."""

    memory: MemoryPrediction
    device_gib: float | None
    flops_per_token: float
    infeasible: SpecProblem | None


@dataclass(frozen=True)
class Plan:
    """A job ready to run: its cells in the order they are launched, its data, and where results go.

    Where learning rates are tuned, `cells` are all that may be needed: what trials come to says which are.
    """

    job_id: str  # <name>-<hash>
    job: Job
    source: SpecSource
    cells: tuple[Cell, ...]
    forecasts: tuple[CellForecast, ...]
    train: Dataset
    validation: Dataset
    train_in_validation: int  # training examples removed because they are held out
    tune: TuneSplit | None  # where learning rates are tuned
    storage: Path
    tracking_uri: str
    plugins: tuple[str, ...] = ()  # modules that register backbones, for the workers to import too
    occurrence: str | None = None  # the firing of a schedule that this is; None where a person runs it

    @property
    def kind(self) -> str:
        """comparison, finetune, benchmark or certificate."""
        return self.job.kind

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        return Storage(self.storage).job(self.job_id).path

    @property
    def files(self) -> JobFolder:
        """The names in that folder."""
        return JobFolder(self.folder)

    def cell_folder(self, cell: Cell) -> Path:
        """Where a cell keeps its checkpoints, spool and result; shared by every comparison that has the cell."""
        return Storage(self.storage).cell(cell.cell_id).path

    @property
    def backbones(self) -> tuple[BackboneSpec, ...]:
        return tuple({cell.backbone.backbone_id: cell.backbone for cell in self.cells}.values())

    @property
    def trials(self) -> frozenset[str]:
        """The ids of the cells that only help to find learning rates."""
        return frozenset(cell.cell_id for cell in self.cells if cell.is_trial)

    @property
    def infeasible(self) -> tuple[SpecProblem, ...]:
        """Why some cells cannot run, each reason once."""
        return tuple(dict.fromkeys(forecast.infeasible for forecast in self.forecasts if forecast.infeasible))


def load_comparison(path: Path, occurrence: str | None = None) -> Plan:
    """Reads and plans `compare.yaml`. Raises SpecError with everything that is wrong; nothing is started.

    With an `occurrence` (`<schedule>/<tick>`) the cells are those of that firing: new ones, measured anew.
    """
    source = read_spec(path)
    if "backbone" in source.data and "backbones" not in source.data:
        message = "has 'backbone', so it is a finetune; run `backbone finetune`, or write 'backbones' with a list"
        raise SpecError((source.problem("backbone", message),))
    return _plan(source, Comparison, occurrence)


def load_finetune(path: Path, occurrence: str | None = None) -> Plan:
    """Reads and plans `finetune.yaml`. Raises SpecError with everything that is wrong; nothing is started."""
    source = read_spec(path)
    if "backbones" in source.data and "backbone" not in source.data:
        message = "has 'backbones', so it is a comparison; run `backbone compare`, or write one 'backbone'"
        raise SpecError((source.problem("backbones", message),))
    return _plan(source, Finetune, occurrence)


def load_plan(path: Path, occurrence: str | None = None) -> Plan:
    """Plans whichever kind of spec the file holds."""
    source = read_spec(path)
    return _plan(source, _model_of(source), occurrence)


def check_spec(path: Path) -> None:
    """Raises SpecError with what is wrong in the file itself; what it refers to may exist only on a cluster."""
    source = read_spec(path)
    model = _model_of(source)
    _, problems = check(source, model, model.stand_ins)
    if problems:
        raise SpecError(tuple(problems))


def _model_of(source: SpecSource) -> type[Comparison] | type[Finetune]:
    return Finetune if "backbone" in source.data and "backbones" not in source.data else Comparison


def _plan(source: SpecSource, model: type[Comparison] | type[Finetune], occurrence: str | None) -> Plan:
    """Every stage adds its problems and skips what the schema already found wrong; one SpecError names them all."""
    if occurrence is not None:
        parse_occurrence(occurrence)  # it names files: refused here, whoever passes it
    job, found = check(source, model, model.stand_ins)
    if job is None:
        raise SpecError(found)
    problems = list(found)

    def sound(*keys: str) -> bool:
        return not any(is_within(wrong.path, key) or is_within(key, wrong.path) for wrong in found for key in keys)

    if sound("recipe.global_batch_size", "recipe.micro_batch_size", "placement"):
        check_batch(source, job, problems)
        check_accelerator(source, job, problems)
    if sound("recipe.budget", "tuning"):
        check_ladder(source, job, problems)
    if sound("recipe.evaluate"):
        check_tasks(source, job, problems)
        check_rollouts(source, job, problems)
        check_generation(source, job, problems)
    if job.exported_to is not None:
        check_export_folder(source, job.exported_to.folder, problems)
    storage = resolve_storage(source, job, problems) if sound("storage") else Path()
    specs = resolve_backbones(source, job.references, problems)
    if sound("recipe.data", "recipe.adaptation"):
        check_actions(source, job, specs, problems)
        check_vision(source, job, specs, problems)
    splits = load_splits(source, job, problems) if sound("recipe.data") else None
    if splits is not None:
        train, validation, removed = splits
        check_images(source, job, specs, train, validation, problems)
        check_answers(source, job, specs, train, problems)
        splits = masked(source, job, train, validation, problems), validation, removed
    tune = None if splits is None else find_tune_split(source, job, splits, problems)
    if problems or splits is None:
        raise SpecError(tuple(problems))
    train, validation, removed = splits
    if tune is not None and tune.actions is not None and train.actions is not None:
        tune = replace(tune, actions=replace(tune.actions, mask=train.actions.mask))
    decided = resolve_activation_checkpointing(job.recipe, placed(job), specs)
    recipe = job.recipe.model_copy(update={"activation_checkpointing": decided})
    job = job.model_copy(update={"recipe": recipe})
    if isinstance(job, Comparison) and recipe.budget.ladder is not None:
        job = Ladder(**dict(job))
    forecasts = {spec.backbone_id: _forecast(source, job, spec) for spec in specs}
    cells = _cells(job, specs, train, validation, tune, occurrence)
    uri = job.tracking.uri or default_tracking_uri(storage)
    return Plan(
        job_id=_job_id(job, cells),
        job=job,
        source=source,
        cells=cells,
        forecasts=tuple(forecasts[cell.backbone.backbone_id] for cell in cells),
        train=replace(train, items=None),
        validation=validation,
        train_in_validation=removed,
        tune=tune,
        storage=storage,
        tracking_uri=uri,
        occurrence=occurrence,
    )


def _job_id(job: Job, cells: Sequence[Cell]) -> str:
    rule = None if job.rule is None else job.rule.model_dump()
    return f"{job.name}-{content_hash([job.kind, [cell.cell_id for cell in cells], rule])[:10]}"


def _forecast(source: SpecSource, job: Job, spec: BackboneSpec) -> CellForecast:
    recipe, placement = job.recipe, placed(job)
    memory = predict_memory(spec, recipe, placement, choose_micro_batch_size(spec, recipe, placement))
    flops = training_flops_per_token(spec, recipe.sequence_length, recipe.adaptation.kind)
    problem = None
    if recipe.sequence_length > spec.context_length:
        message = (
            f"'recipe.sequence_length' is {recipe.sequence_length}, but {spec.backbone_id} has a context of "
            f"{spec.context_length} tokens; lower it to that"
        )
        problem = source.problem("recipe.sequence_length", message)
    elif shortage := find_shortage(spec, recipe, placement):
        problem = source.problem("placement", shortage)
    return CellForecast(memory, find_device_gib(placement), flops, problem)


def placed(job: Job) -> Placement:
    """The placement of a job's cells, with the most workers where it is elastic."""
    worlds = job.placement.worlds(job.recipe.global_batch_size)
    return job.placement.on(worlds[0]) if job.placement.is_elastic else job.placement


def ids_without_occurrence(plan: Plan) -> dict[str, str]:
    """By cell id, what the cell would be called if a person ran it: the same for firings that measure the same.

    Of all cells of the job, also those that a narrowed plan has not.
    """
    of_firing, plain = (
        _cells(plan.job, list(plan.backbones), plan.train, plan.validation, plan.tune, occurrence)
        for occurrence in (plan.occurrence, None)
    )
    return {cell.cell_id: other.cell_id for cell, other in zip(of_firing, plain, strict=True)}


def with_job(plan: Plan, job: Job) -> Plan:
    """The same data and backbones under a job that has other seeds; `job_id` is left to the caller."""
    forecasts = dict(zip((cell.backbone.backbone_id for cell in plan.cells), plan.forecasts, strict=True))
    cells = _cells(job, list(plan.backbones), plan.train, plan.validation, plan.tune, plan.occurrence)
    return replace(plan, job=job, cells=cells, forecasts=tuple(forecasts[c.backbone.backbone_id] for c in cells))


def by_budget(plan: Plan) -> list[Plan]:
    """The comparisons of a ladder, the smallest budget first, as specs of their own would be planned; else the plan."""
    if not isinstance(plan.job, Ladder):
        return [plan]
    return [
        replace(one, job_id=_job_id(one.job, one.cells)) for one in (with_job(plan, job) for job in _each(plan.job))
    ]


def _each(job: Job) -> list[Job]:
    """A job for each budget of a ladder."""
    if not isinstance(job, Ladder):
        return [job]
    recipes = [job.recipe.model_copy(update={"budget": budget}) for budget in job.recipe.budget.each]
    return [Comparison(**{**dict(job), "recipe": recipe}) for recipe in recipes]


def untuned(plan: Plan) -> Plan:
    """The same at the recipe's learning rate; `job_id` is left to the caller."""
    if plan.job.tuned_by is None:
        return plan
    return with_job(plan, plan.job.model_copy(update={"tuning": None}))


def expected(plan: Plan) -> Plan:
    """The plan with as many cells as will run: where learning rates are tuned, the smallest stand for any."""
    tuning = plan.job.tuned_by
    if tuning is None:
        return plan
    rates = [{*tuning.rates[:size]} for size in tuning.rung_sizes]
    once = {tuning.rates[0]}  # of the runs that are judged
    chosen = [cell for cell in plan.cells if cell.learning_rate in (once if cell.rung is None else rates[cell.rung])]
    return narrow(plan, {cell.cell_id for cell in chosen})


def narrow(plan: Plan, cell_ids: Collection[str]) -> Plan:
    """The same job with these of its cells."""
    kept = [pair for pair in zip(plan.cells, plan.forecasts, strict=True) if pair[0].cell_id in cell_ids]
    return replace(plan, cells=tuple(cell for cell, _ in kept), forecasts=tuple(forecast for _, forecast in kept))


def comparison_identity(plan: Plan) -> str:
    """The hash of a comparison but for its name, its seeds and its tuning."""
    return content_hash([cell.cell_id for cell in _cells_of_one_seed(plan)])


def subjects(plan: Plan) -> list[str]:
    """A hash for each candidate of a comparison: how it is trained and on what, but for the seed and its rivals."""
    return [cell.work for cell in _cells_of_one_seed(plan)]


def _cells_of_one_seed(plan: Plan) -> tuple[Cell, ...]:
    """Those of seed 0 at the recipe's learning rate, whether they are among the job's or not."""
    return with_job(plan, plan.job.model_copy(update={"seeds": (0,), "tuning": None})).cells


def _cells(
    job: Job,
    specs: list[BackboneSpec],
    train: Dataset,
    validation: Dataset,
    tune: TuneSplit | None,
    occurrence: str | None,
) -> tuple[Cell, ...]:
    """Seed by seed, so that an interrupted comparison has all backbones at equal seeds; trials go before them."""
    if isinstance(job, Ladder):
        return tuple(cell for one in _each(job) for cell in _cells(one, specs, train, validation, tune, occurrence))
    # With parity: intersection the other candidates decide which examples are dropped, so they are part of the cell.
    shared_fate = sorted(backbone_identity(spec) for spec in specs) if job.recipe.data.parity == "intersection" else []

    def cell(spec: BackboneSpec, seed: int, recipe: Recipe, scored_on: str, rung: int | None = None) -> Cell:
        return _cell(job, spec, seed, recipe, (train.digest, scored_on), shared_fate, occurrence, rung)

    tuning, recipe = job.tuned_by, job.recipe
    if tuning is None:
        return tuple(cell(spec, seed, recipe, validation.digest) for seed in job.seed_list for spec in specs)
    assert tune is not None, "a job that is tuned is planned with a tune split"
    return (
        *(
            cell(spec, SEED, trial_recipe(recipe, tuning, rung, rate), tune.digest, rung)
            for rung, rate in runs_of(tuning)
            for spec in specs
        ),
        *(
            cell(spec, seed, with_rate(recipe, rate), validation.digest)
            for seed in job.seed_list
            for spec in specs
            for rate in tuning.rates
        ),
    )


def _cell(
    job: Job,
    spec: BackboneSpec,
    seed: int,
    recipe: Recipe,
    digests: tuple[str, str],
    shared_fate: list[str],
    occurrence: str | None,
    rung: int | None,
) -> Cell:
    placement = placed(job)
    rows = choose_micro_batch_size(spec, recipe, placement)
    recipe_facts = recipe.model_dump(mode="json", exclude={"data": {"train", "validation"}, "checkpoint": True})
    recipe_facts["evaluate"] |= {"tasks": []}  # nothing is trained anew for another task
    for name in ("include_path", "rollouts", "generation"):
        recipe_facts["evaluate"].pop(name, None)
    written = job.placement.model_dump(mode="json")
    first = [backbone_identity(spec), seed, recipe_facts, written, rows, list(digests)]
    last = [occurrence, *([PACKED_ORDER] if recipe.packing else [])]
    which = f"s{seed}" if rung is None else f"trial-lr{recipe.optimizer.learning_rate:g}"
    cell_id = f"{backbone_slug(spec)}-{which}-{content_hash([*first, shared_fate, *last])[:10]}"
    cell = Cell(cell_id, spec, seed, recipe, placement, rows, *digests, occurrence, rung=rung)
    return replace(cell, worlds=_worlds(job, cell), work=content_hash([*first, *last]))


def _worlds(job: Job, cell: Cell) -> tuple[int, ...]:
    """How many workers an elastic cell may have: those whose shards fit the device."""
    if not job.placement.is_elastic:
        return ()
    smaller = [cell.on(workers) for workers in job.placement.worlds(cell.recipe.global_batch_size)[1:]]
    fitting = [
        one for one in smaller if fits(one.backbone, one.recipe, one.placement, one.micro_batch_size) is not False
    ]
    return (cell.placement.most, *(one.placement.most for one in fitting))
