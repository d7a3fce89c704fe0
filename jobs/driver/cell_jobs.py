"""A plan's cells: which are finished, which are open, and the job that each attempt's workers get."""

import os
import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from jobs.driver.attempts import find_final_result, infeasible_result
from jobs.driver.preparation import Preparation
from orchestrator.cell_job import (
    CellJob,
    CertificateRequest,
    ExportRequest,
    RolloutRequest,
    TaskRequest,
    find_export,
    generation_digest,
)
from orchestrator.data.parity import load_selection
from orchestrator.data.prepare import load_tokenized
from orchestrator.data.sources.load import find_path
from orchestrator.environments.registry import code_of
from orchestrator.faults import Fault
from orchestrator.identity import content_hash
from orchestrator.layout import Storage
from orchestrator.planning.plan import Cell, Plan
from orchestrator.planning.preflight import IN_RAY_JOB
from orchestrator.planning.sizes.flops import training_flops_per_image
from orchestrator.planning.sizes.memory import find_device_gib
from orchestrator.results import CellResult, CellStatus

DEFINING = (".yaml", ".yml", ".py")  # files that say what a task is


@dataclass(frozen=True)
class CellJobs:
    """What a runner asks of a launch: where a cell is, whether it is finished, and the job of an attempt."""

    plan: Plan
    preparation: Preparation
    certify: bool  # whether a cell trains only under its backbone's certificate
    faults: tuple[Fault, ...] = ()  # what somebody asked to happen to every cell
    launch_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def folder(self, cell: Cell) -> Path:
        """Where a cell keeps everything."""
        return self.plan.cell_folder(cell)

    def find_finished(self, cell: Cell) -> CellResult | None:
        """The stored result of a cell with nothing left to do."""
        return find_finished(self.plan, cell)

    def make(self, cell: Cell, attempt: int, left_s: float) -> CellJob:
        """The job of an attempt; `left_s` is what is left of policy.timeout."""
        plan = self.plan
        return CellJob(
            cell=cell,
            attempt=attempt,
            folder=plan.cell_folder(cell),
            prepared=self.preparation.prepared_for(cell),
            selection_file=self.preparation.selection_file(cell),
            flops_per_token=self._flops_per_token(cell),
            deadline=time.time() + left_s,
            export=export_request(plan),
            certificate=self._certificate(cell) if self.certify else None,
            tasks=None if cell.is_trial else task_request(plan),
            rollouts=None if cell.is_trial else rollout_request(plan),
            plugins=plan.plugins,
            hang_timeout_s=plan.job.policy.hang_timeout_s,
            faults=self.faults,
        )

    def _flops_per_token(self, cell: Cell) -> float:
        """As planned; the cell may have another micro-batch by now. Of images, as many as its training data has."""
        planned = [one.cell_id for one in self.plan.cells].index(cell.cell_id)
        flops = self.plan.forecasts[planned].flops_per_token
        if cell.backbone.vision is None:
            return flops
        adaptation = cell.recipe.adaptation
        an_image = training_flops_per_image(cell.backbone, adaptation.kind, adaptation.vision)
        return flops + an_image * self._images_per_token(cell)

    def _images_per_token(self, cell: Cell) -> float:
        """Of the examples that the cell trains on."""
        data = load_tokenized(self.preparation.prepared_for(cell).train_file)
        kept, _ = load_selection(self.preparation.selection_file(cell))
        if data.image_offsets is None:
            return 0.0
        return float(np.diff(data.image_offsets)[kept].sum() / data.lengths[kept].sum())

    def _certificate(self, cell: Cell) -> CertificateRequest:
        return CertificateRequest(
            backbone=cell.backbone,
            recipe=cell.recipe,
            replicas=cell.placement.replicas,
            folder=Storage(self.plan.storage).certificates,
            launch=self.launch_id,
            plugins=self.plan.plugins,
            device_gib=find_device_gib(cell.placement),
        )


def find_infeasible(plan: Plan) -> dict[str, CellResult]:
    """By cell, the results of those that the plan refuses."""
    return {
        cell.cell_id: infeasible_result(cell, plan.cell_folder(cell), forecast.infeasible.message)
        for cell, forecast in zip(plan.cells, plan.forecasts, strict=True)
        if forecast.infeasible is not None
    }


def find_finished(plan: Plan, cell: Cell) -> CellResult | None:
    """The stored result of a cell with nothing left to do: trained and, where asked, exported and tried."""
    result = find_final_result(plan.cell_folder(cell))
    request = export_request(plan)
    if result is None:
        return None
    if result.status is CellStatus.SUCCEEDED and request is not None and find_export(request.folder) != cell.cell_id:
        return None
    stored = None if result.measurement is None else result.measurement.data
    if stored is not None and any(stored.get(name) != digest for name, digest in _asked(plan, cell).items()):
        return None
    return replace(result, folder=str(plan.cell_folder(cell)))


def _asked(plan: Plan, cell: Cell) -> dict[str, str]:
    """What a trained cell is asked beside its score, by its name in a measurement: a digest of each."""
    if cell.is_trial:
        return {}
    requests = {"tasks": task_request(plan), "rollouts": rollout_request(plan)}
    asked = {name: request.digest for name, request in requests.items() if request is not None}
    generation = cell.recipe.evaluate.generation
    return asked if generation is None else asked | {"generation": generation_digest(generation)}


def export_request(plan: Plan) -> ExportRequest | None:
    """Where a job exports to; inside a Ray job a relative folder is one of the storage, which outlives the job."""
    export = plan.job.exported_to
    if export is None:
        return None
    base = plan.folder if IN_RAY_JOB in os.environ else Path.cwd()
    spec = plan.job.model_dump(mode="json", by_alias=True)
    return ExportRequest((base / Path(export.folder).expanduser()).resolve(), spec)


def task_request(plan: Plan) -> TaskRequest | None:
    """Which tasks a job's cells are asked; what defines its own ones is part of the digest."""
    asked = plan.job.recipe.evaluate
    if not asked.tasks:
        return None
    folder = None if asked.include_path is None else find_path(plan.source, asked.include_path)
    files = [] if folder is None else sorted(file for file in folder.rglob("*") if file.suffix in DEFINING)
    contents = [[str(file.relative_to(folder or "/")), file.read_text("utf-8", "replace")] for file in files]
    return TaskRequest(asked.tasks, folder, content_hash([asked.tasks, contents]))


def rollout_request(plan: Plan) -> RolloutRequest | None:
    """Which episodes a job's cells play."""
    asked = plan.job.recipe.evaluate.rollouts
    if asked is None:
        return None
    return RolloutRequest(
        asked.environment,
        asked.episodes,
        asked.seed,
        asked.max_steps,
        None if asked.execute == plan.job.recipe.data.chunk else asked.execute,  # which is all of them
        asked.every,
        code_of(asked.environment),
    )


def find_finished_export(plan: Plan) -> Path | None:
    """The export folder once it holds this plan's model."""
    request = export_request(plan)
    return request.folder if request is not None and find_export(request.folder) == plan.cells[0].cell_id else None
