"""One job from its plan to its report: connect, prepare, run the cells, judge, write, track."""

import os
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.cluster.ray_cluster import is_remote
from jobs.driver.cells import CellRunner, cancelled_result, find_final_result, infeasible_result, locked_cells
from jobs.driver.interruption import Interruption, interrupt, interruption
from jobs.driver.kinds.benchmark import KIND as BENCHMARK
from jobs.driver.leases import Leases, hold_leases, job_request
from jobs.driver.preparation import Preparation, find_preparation, prepare_data
from jobs.driver.progress import Progress
from jobs.results.benchmark import write_benchmark
from jobs.results.finished import write_report
from jobs.tracking.runs import Tracking
from orchestrator.cell_job import CellJob, CertificateRequest, ExportRequest, find_export
from orchestrator.layout import Storage
from orchestrator.planning.memory import find_device_gib
from orchestrator.planning.plan import Cell, Plan
from orchestrator.planning.preflight import IN_RAY_JOB
from orchestrator.results import CellResult, CellStatus
from orchestrator.spec_files.spec import Finetune
from orchestrator.tracking.run import TrackedRun, without_password
from orchestrator.tracking.sender import driver_of

UPLOAD_LIMIT_S = 120.0
UPLOAD_LIMIT_INTERRUPTED_S = 10.0
STOPPING = "stopping at the next checkpoint; interrupt again to stop at once"


@dataclass(frozen=True)
class Outcome:
    """What a launch left behind."""

    document: Any
    report: Path
    exit_code: int


def launch(plan: Plan, console: Console, certify: bool) -> Outcome:
    """Runs whatever of the plan is not finished yet, and writes the report. Blocks until all cells are terminal.

    With `certify`, a cell trains only under its backbone's certificate, which its own workers make where none is kept.
    Infeasible cells are reported, not run. Raises AlreadyRunningError, ResourcesError.
    """
    infeasible = _infeasible(plan)
    with ExitStack() as held, interruption(console) as received:
        held.enter_context(driver_of(plan.folder))
        if not is_remote():
            held.enter_context(_locked(plan))
        finished = _find_all_finished(plan)
        cells = open_cells(plan)
        plan.files.spec.write_text(plan.source.text, encoding="utf-8")
        _announce(plan, console, finished, cells)
        tracking = Tracking(plan, command_line(), export_request(plan))
        for result in (*finished.values(), *infeasible.values()):
            tracking.finish_child(result)
        try:
            results, leases = [], None
            if cells or find_preparation(plan) is None:
                console.print("connecting to Ray" if is_remote() else "starting Ray")
                leases = held.enter_context(hold_leases(plan.job.placement, job_request(plan, cells)))
                if is_remote() and not leases.counterpart.is_shared:
                    held.enter_context(_locked(plan))
                tracking.start()
                results = _run(plan, console, cells, leases, tracking, received, certify)
        except BaseException:
            tracking.abort(UPLOAD_LIMIT_INTERRUPTED_S)
            raise
        everything = {**finished, **infeasible, **{result.cell_id: result for result in results}}
        ordered = [everything[cell.cell_id] for cell in plan.cells]
        with received.answered_by(tracking.expedite, "leaving the upload to the next launch", also_earlier=False):
            outcome = _conclude(plan, console, ordered, tracking, received.number)
        if leases is not None:
            leases.finish(outcome.exit_code)
        return outcome


def command_line() -> str:
    """The command that repeats this launch."""
    program = Path(sys.argv[0])
    words = [f"python -m jobs.{program.stem}" if program.suffix == ".py" else program.name, *sys.argv[1:]]
    return " ".join([words[0], *map(shlex.quote, words[1:])])


def _infeasible(plan: Plan) -> dict[str, CellResult]:
    return {
        cell.cell_id: infeasible_result(cell, plan.cell_folder(cell), forecast.infeasible.message)
        for cell, forecast in zip(plan.cells, plan.forecasts, strict=True)
        if forecast.infeasible is not None
    }


def open_cells(plan: Plan) -> list[Cell]:
    """The cells that still have to run, in the plan's order."""
    finished = _find_all_finished(plan)
    forecasts = zip(plan.cells, plan.forecasts, strict=True)
    return [cell for cell, forecast in forecasts if cell.cell_id not in finished and forecast.infeasible is None]


@contextmanager
def _locked(plan: Plan) -> Iterator[None]:
    """Holds the locks of the cells that may have to run. Which of them finished meanwhile is looked up afterwards."""
    with locked_cells(plan.cell_folder(cell) for cell in open_cells(plan)):
        yield


def _find_all_finished(plan: Plan) -> dict[str, CellResult]:
    return {cell.cell_id: result for cell in plan.cells if (result := _find_finished(plan, cell)) is not None}


def _find_finished(plan: Plan, cell: Cell) -> CellResult | None:
    """The stored result of a cell with nothing left to do: trained and, where asked, exported."""
    result = find_final_result(plan.cell_folder(cell))
    request = export_request(plan)
    if result is None:
        return None
    if result.status is CellStatus.SUCCEEDED and request is not None and find_export(request.folder) != cell.cell_id:
        return None
    return replace(result, folder=str(plan.cell_folder(cell)))


def export_request(plan: Plan) -> ExportRequest | None:
    """Where a finetune exports to; inside a Ray job a relative folder is one of the storage, which outlives the job."""
    if not isinstance(plan.job, Finetune) or plan.job.export is None:
        return None
    base = plan.folder if IN_RAY_JOB in os.environ else Path.cwd()
    spec = plan.job.model_dump(mode="json", by_alias=True)
    return ExportRequest((base / Path(plan.job.export.folder).expanduser()).resolve(), spec)


def _finished_export(plan: Plan) -> Path | None:
    """The export folder once it holds this plan's model."""
    request = export_request(plan)
    return request.folder if request is not None and find_export(request.folder) == plan.cells[0].cell_id else None


def _announce(plan: Plan, console: Console, finished: dict[str, CellResult], open_cells: list[Cell]) -> None:
    done = f", {len(finished)} already finished" if finished else ""
    cells = "1 cell" if len(plan.cells) == 1 else f"{len(plan.cells)} cells"
    console.print(f"{plan.job_id}: {cells}{done}; results in {plan.folder}", highlight=False, soft_wrap=True)
    if not open_cells:
        hint = "delete its folder under cells/ to run it anew"
        console.print(f"nothing to run: every cell is finished ({hint})", highlight=False, soft_wrap=True)


def _run(
    plan: Plan,
    console: Console,
    cells: list[Cell],
    leases: Leases,
    tracking: Tracking,
    received: Interruption,
    certify: bool,
) -> list[CellResult]:
    """Runs the open cells and returns their results."""
    try:
        with received.answered_by(interrupt, "stopping"):
            backbones = "1 backbone" if len(plan.backbones) == 1 else f"{len(plan.backbones)} backbones"
            console.print(f"tokenizing {len(plan.train.examples)} training examples for {backbones}")
            preparation = prepare_data(plan)
    except KeyboardInterrupt:  # a signal before anything trained
        return [cancelled_result(cell, plan.cell_folder(cell)) for cell in cells]
    progress = Progress(console, [(cell, plan.cell_folder(cell)) for cell in cells])

    def report(cell: Cell, status: CellStatus, attempt: int) -> None:
        tracking.begin_attempt(cell, attempt)
        progress.report(cell, status, attempt)

    runner = CellRunner(
        make_job=_job_maker(plan, preparation, certify),
        find_finished=lambda cell: _find_finished(plan, cell),
        folder=plan.cell_folder,
        policy=plan.job.policy,
        report=report,
        notice=progress.say,
        leases=leases,
    )
    with received.answered_by(runner.stop, STOPPING), progress.running():
        return runner.run(cells)


def _job_maker(plan: Plan, preparation: Preparation, certify: bool) -> Callable[[Cell, int, float], CellJob]:
    launch_id = uuid.uuid4().hex
    flops = {cell.cell_id: forecast.flops_per_token for cell, forecast in zip(plan.cells, plan.forecasts, strict=True)}

    def make_job(cell: Cell, attempt: int, left_s: float) -> CellJob:
        backbone_id = cell.backbone.backbone_id
        return CellJob(
            cell=cell,
            attempt=attempt,
            folder=plan.cell_folder(cell),
            prepared=preparation.prepared[backbone_id],
            selection_file=preparation.selection_files[backbone_id],
            flops_per_token=flops[cell.cell_id],
            deadline=time.time() + left_s,
            export=export_request(plan),
            certificate=_certificate_request(plan, cell, launch_id) if certify else None,
            plugins=plan.plugins,
        )

    return make_job


def _certificate_request(plan: Plan, cell: Cell, launch_id: str) -> CertificateRequest:
    return CertificateRequest(
        backbone=cell.backbone,
        recipe=cell.recipe,
        replicas=cell.placement.replicas,
        folder=Storage(plan.storage).certificates,
        launch=launch_id,
        plugins=plan.plugins,
        device_gib=find_device_gib(cell.placement),
    )


def _conclude(
    plan: Plan, console: Console, results: list[CellResult], tracking: Tracking, interrupted: int | None
) -> Outcome:
    """Finishes the MLflow runs and writes the report, which names them."""
    for result in results:
        tracking.finish_child(result)
    tracking.start()
    limit = UPLOAD_LIMIT_INTERRUPTED_S if interrupted else UPLOAD_LIMIT_S
    run_ids = tracking.run_ids(limit)
    results = [replace(result, mlflow_run_id=run_ids[result.cell_id]) for result in results]
    document: Any
    if plan.kind == BENCHMARK:
        document, files = write_benchmark(plan, results, command_line())
    else:
        document, files = write_report(plan, results, command_line(), _finished_export(plan))
    code = _exit_code(results, interrupted)
    status = "FINISHED" if code == 0 else "FAILED" if code == 1 else "KILLED"
    tracking.finish_parent(document, results, files, status)
    unsent = tracking.close(limit)
    _say_what_is_left(plan, console, results, document, unsent, tracking)
    console.print(f"report: {files[0]}", highlight=False, markup=False, soft_wrap=True)
    return Outcome(document, files[0], code)


def _exit_code(results: list[CellResult], interrupted: int | None) -> int:
    if interrupted is not None and any(result.status is CellStatus.CANCELLED for result in results):
        return 128 + interrupted
    return 0 if all(result.status is CellStatus.SUCCEEDED for result in results) else 1


def _say_what_is_left(
    plan: Plan,
    console: Console,
    results: list[CellResult],
    document: dict[str, Any],
    unsent: list[TrackedRun],
    tracking: Tracking,
) -> None:
    for result in results:
        if result.status is not CellStatus.SUCCEEDED:
            first = (result.failure or "").splitlines()[0] if result.failure else ""
            console.print(f"{result.cell_id}: {result.status}: {first}", highlight=False, markup=False, soft_wrap=True)
    for problem in tracking.problems:
        console.print(f"MLflow refused {problem}", highlight=False, markup=False, soft_wrap=True)
    if unsent:
        why = f" ({tracking.unreachable})" if tracking.unreachable else ""
        console.print(
            f"MLflow at {without_password(plan.tracking_uri)} does not have everything of {len(unsent)} runs yet{why}; "
            "nothing is lost: run the same command again once it answers",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    history = (document["history"] or {}).get("sentences", [])
    for sentence in filter(None, [document["verdict"].get("sentence"), *history]):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
