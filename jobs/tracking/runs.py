"""What MLflow is told of a job: a parent run for the comparison or finetune, and a child run for each cell."""

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jobs.formats import flatten
from jobs.tracking.tables import ItemTables, table_tag
from orchestrator.cell_job import ExportRequest
from orchestrator.layout import CellFolder, Storage
from orchestrator.planning.plan import Cell, Plan
from orchestrator.results import CellResult, CellStatus, find_adoption, write_json
from orchestrator.spec_files.spec import Recipe
from orchestrator.tracking.run import Point, TrackedDataset, TrackedRun, describe
from orchestrator.tracking.spool import STREAMED_METRICS, Entry, EntryKind, read_spool
from orchestrator.tracking.writer import RunWriter

TRIAL = "trial"  # the role of a cell that only helps to find a learning rate


class Tracking:
    """The MLflow runs of one launch. Nothing is sent, and nothing of MLflow imported, before `start`.

    Of the plan's cells those in `children` have a run from the beginning, else all; others are taken on by `follow`.
    """

    def __init__(self, plan: Plan, command: str, export: ExportRequest | None, children: Collection[str] | None = None):
        self._synced = plan.files.synced
        self._writer = open_writer(plan.tracking_uri, plan.job.tracking.experiment, plan.storage)
        self._parent = _parent_run(plan, command)
        self._tables = ItemTables(plan.validation)
        self._export = export
        cells = [cell for cell in plan.cells if children is None or cell.cell_id in children]
        self._children = {cell.cell_id: _child_run(plan, cell, self._parent, export) for cell in cells}
        self._is_described = self._is_sending = False

    def start(self) -> None:
        """Starts to send in the background. A run keeps a terminal status that it was given before."""
        self._describe()
        if not self._is_sending:
            self._is_sending = True
            self._writer.start()

    def _describe(self) -> None:
        """Writes down what the runs are, and recalls what MLflow has of them."""
        if not self._is_described:
            self._is_described = True
            self._synced.unlink(missing_ok=True)
            for run in (self._parent, *self._children.values()):
                self._writer.track(run)

    def follow(self, plan: Plan, cells: Sequence[Cell], results: Mapping[str, CellResult]) -> None:
        """Takes on cells that the job has besides those of the beginning; what has a result ended when that did."""
        for cell in cells:
            if cell.cell_id not in self._children:
                self._children[cell.cell_id] = run = _child_run(plan, cell, self._parent, self._export)
                if cell.cell_id in results:
                    self.finish_child(results[cell.cell_id])
                if self._is_described:
                    self._writer.track(run)

    def begin_attempt(self, cell: Cell, attempt: int) -> None:
        """Notes on the cell's run which attempt is under way."""
        run = self._children[cell.cell_id]
        if run.tags["attempt"] != str(attempt):
            run.tags["attempt"] = str(attempt)
            describe(run)

    def finish_child(self, result: CellResult) -> None:
        """Gives a cell's run its outcome."""
        run = self._children[result.cell_id]
        if run.tags["role"] != TRIAL:  # those are scored on other data
            self._tables.write(result)
        take_result(run, result)
        self._writer.finish(run, result.status.mlflow_status)

    def report(self, cell: Cell, status: CellStatus, attempt: int) -> None:
        """A cell changed its status or began an attempt."""
        self.begin_attempt(cell, attempt)

    def finish_parent(
        self,
        summary: dict[str, float],
        verdict: str,
        results: list[CellResult],
        artifacts: tuple[Path, ...],
        status: str,
        series: Mapping[str, Sequence[Point]] | None = None,
    ) -> None:
        """Gives the job's run its figures, its verdict, the report, and what earlier jobs measured as lines."""
        run = self._parent
        run.series = {name: list(points) for name, points in (series or {}).items()}
        run.summary = summary
        run.summary_time_ms = max((_last_entry_ms(result) for result in results), default=0)
        run.tags["verdict"] = verdict
        run.artifacts = artifacts
        self._writer.finish(run, status)

    def abort(self, limit_s: float) -> None:
        """Marks what is open as failed: the launch itself broke down."""
        if self._is_sending:
            for run in (*self._children.values(), self._parent):
                if run.status == "RUNNING":
                    self._writer.finish(run, "FAILED")
            self._writer.close(limit_s)

    def close(self, limit_s: float) -> list[TrackedRun]:
        """Waits for MLflow's acknowledgement, at most `limit_s`; returns the runs that it does not have in full."""
        self.start()
        return self._writer.close(limit_s)

    def expedite(self) -> None:
        """Makes the waiting methods return at once."""
        self._writer.expedite()

    def run_ids(self, limit_s: float) -> dict[str, str | None]:
        """MLflow's run id by cell_id; waits for the server to give them, but not for one that does not answer.

        Where all are known nothing is sent yet: the parent, still open, would be reported as running once more.
        """
        self._describe()
        deadline = time.monotonic() + limit_s
        while any(run.sent.run_id is None and run.problem is None for run in self._children.values()):
            self.start()
            if time.monotonic() > deadline or self._writer.unreachable is not None or self._writer.is_hurried:
                break
            time.sleep(0.05)
        return {cell_id: run.sent.run_id for cell_id, run in self._children.items()}

    @property
    def problems(self) -> list[str]:
        """What MLflow refused for good."""
        return self._writer.problems

    @property
    def unreachable(self) -> str | None:
        """Why the server cannot be reached now, if so."""
        return self._writer.unreachable


def open_writer(uri: str, experiment: str, storage: Path) -> RunWriter:
    """A writer to the server; with SQLite instead of one, artifacts lie in the storage."""
    return RunWriter(uri, experiment, Storage(storage).mlflow_artifacts)


def take_result(run: TrackedRun, result: CellResult) -> None:
    """Makes a run say what its cell came to; giving it the status is left to the caller."""
    run.tags |= {"attempt": str(result.attempts), "cell_status": str(result.status)}
    if result.failure:
        run.tags["failure"] = result.failure[:4000]
    if (adoption := find_adoption(Path(result.folder))) is not None:
        run.tags["adopted_from"] = adoption.adopted_from
    entry, points = None, []
    for number, entry in enumerate(read_spool(CellFolder(Path(result.folder)).spool)):
        if number == 0:
            run.began_ms = entry.time_ms
        if entry.kind is EntryKind.ROLLOUTS:
            points.append(entry)
    if entry is not None:
        run.ended_ms = entry.time_ms
    if result.measurement is not None:
        sent = _last_played(points, result.measurement.data.get("rollouts"))
        metrics = ((name, float(v)) for name, v in result.measurement.metrics.items() if v is not None)
        run.summary = {name: v for name, v in metrics if name not in STREAMED_METRICS and v != sent.get(name)}
        run.summary_time_ms = run.ended_ms
        contract = CellFolder(Path(result.folder)).contract
        write_json(contract, result.measurement.contract)
        tables = [file for file in [CellFolder(Path(result.folder)).item_table] if file.exists()]
        run.artifacts = (contract, *tables)
        run.tags |= table_tag(*tables)


def _last_played(points: Sequence[Entry], digest: object) -> dict[str, float]:
    """The figures that are sent of the final episodes; what is kept may be another attempt's, if one died over them."""
    asked = [point for point in points if point.fields["digest"] == digest]
    return max(asked, key=lambda point: point.fields["step"]).metrics if asked else {}


def _parent_run(plan: Plan, command: str) -> TrackedRun:
    return TrackedRun(
        name=plan.job_id,
        state_file=plan.files.parent_run,
        tags={
            **_common_tags(plan, command),
            "role": plan.kind,
            "cell_id": "all",
            "backbone_id": ",".join(spec.backbone_id for spec in plan.backbones),
            "seed": ",".join(map(str, plan.job.seed_list)),
            "attempt": "1",
        },
        params={
            **_recipe(plan.job.recipe, plan),
            "train_digest": plan.train.digest,
            "validation_digest": plan.validation.digest,
        },
        datasets=_datasets(plan),
    )


def _child_run(plan: Plan, cell: Cell, parent: TrackedRun, export: ExportRequest | None) -> TrackedRun:
    facts = {"backbone_id": cell.backbone.backbone_id, "seed": str(cell.seed)}
    return TrackedRun(
        name=cell.cell_id,
        state_file=plan.files.child_run(cell.cell_id),
        tags={
            **_common_tags(plan, command=parent.tags["mlflow.source.name"]),
            "role": TRIAL if cell.is_trial else plan.job.cell_role,
            "cell_id": cell.cell_id,
        }
        | {**facts, "attempt": "1"},
        params={
            **_recipe(cell.recipe, plan),
            **facts,
            **_sight(cell),
            "micro_batch_size": str(cell.micro_batch_size),
        },
        datasets=() if cell.is_trial else _datasets(plan),
        spool_folder=CellFolder(plan.cell_folder(cell)).spool,
        parent=parent,
        registered_model=_registered_model(plan, export),
    )


def _registered_model(plan: Plan, export: ExportRequest | None) -> tuple[str, Path] | None:
    """Under which name the exported model is registered, where the spec asks for it."""
    asked = plan.job.exported_to
    if asked is None or asked.register_as is None or export is None:
        return None
    return asked.register_as, export.folder


def _datasets(plan: Plan) -> tuple[TrackedDataset, ...]:
    return tuple(
        TrackedDataset(
            *(use, data.reference, data.digest, data.count, data.learnable_bytes),
            images=0 if data.pictures is None else data.pictures.count,
        )
        for use, data in (("training", plan.train), ("validation", plan.validation))
    )


def _common_tags(plan: Plan, command: str) -> dict[str, str]:
    return {"comparison_id": plan.job_id, "mlflow.source.name": command, "mlflow.source.type": "JOB"}


def _sight(cell: Cell) -> dict[str, str]:
    """How a cell's backbone sees, and whether its towers learn; nothing where it reads text alone."""
    vision = cell.backbone.vision
    if vision is None:
        return {}
    sizes = {"image_size": str(vision.image_size), "tokens_per_image": str(vision.tokens_per_image)}
    return {f"vision.{name}": value for name, value in sizes.items()} | {"vision.towers": cell.recipe.adaptation.vision}


def _recipe(recipe: Recipe, plan: Plan) -> dict[str, str]:
    settings = {"recipe": recipe.model_dump(mode="json"), "placement": plan.job.placement.model_dump()}
    return {key: str(value) for key, value in flatten(settings).items()}


def _last_entry_ms(result: CellResult) -> int:
    """When the newest fact behind a result was recorded."""
    return max((entry.time_ms for entry in read_spool(CellFolder(Path(result.folder)).spool)), default=0)
