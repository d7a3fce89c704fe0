"""One job from its plan to its report: connect, prepare, run the cells, judge, write, track."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from jobs.cells import CellRunner, find_final_result, infeasible_result, lock_cells
from jobs.cluster import IN_RAY_JOB, connect
from jobs.document import build_document
from jobs.preparation import Preparation, find_preparation, prepare_data
from jobs.progress import Progress
from jobs.report.html import render_report
from orchestrator.cell_job import CellJob, ExportRequest, find_export, spool_folder
from orchestrator.errors import SpecError, SpecProblem
from orchestrator.plan import Cell, Plan
from orchestrator.results import CellResult, CellStatus, write_json
from orchestrator.spec import Finetune
from orchestrator.tracking.mlflow_writer import MlflowWriter, TrackedRun, flatten

UPLOAD_LIMIT_S = 120.0
UPLOAD_LIMIT_INTERRUPTED_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """What a launch left behind."""

    document: dict[str, Any]
    report: Path
    exit_code: int


def launch(plan: Plan, console: Console, *, skip_infeasible: bool = False) -> Outcome:
    """Runs whatever of the plan is not finished yet, and writes the report. Blocks until all cells are terminal.

    Raises SpecError for infeasible cells (unless skipped), AlreadyRunningError, ResourcesError.
    """
    infeasible = _infeasible(plan, skip_infeasible)
    finished = {cell.cell_id: result for cell in plan.cells if (result := _find_finished(plan, cell)) is not None}
    open_cells = [c for c in plan.cells if c.cell_id not in finished and c.cell_id not in infeasible]
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / "spec.yaml").write_text(plan.source.text, encoding="utf-8")
    _announce(plan, console, finished, open_cells)
    locks = lock_cells([plan.cell_folder(cell) for cell in open_cells])
    writer = MlflowWriter(plan.tracking_uri, plan.job.tracking.experiment, plan.storage / "mlartifacts")
    parent, children = _tracked_runs(plan)
    writer.start()
    for run in (parent, *children.values()):
        writer.track(run)
    try:
        results, interrupted = _run(plan, console, open_cells, children)
    except BaseException:
        for run in (*children.values(), parent):
            writer.finish(run, "FAILED")
        writer.close(UPLOAD_LIMIT_INTERRUPTED_S)
        raise
    finally:
        for lock in locks:
            lock.release()
    everything = {**finished, **infeasible, **{result.cell_id: result for result in results}}
    ordered = [everything[cell.cell_id] for cell in plan.cells]
    return _conclude(plan, console, ordered, writer, parent, children, interrupted)


def command_line() -> str:
    """The command that repeats this launch."""
    program = Path(sys.argv[0])
    words = [f"python -m jobs.{program.stem}" if program.suffix == ".py" else program.name, *sys.argv[1:]]
    return " ".join([words[0], *map(shlex.quote, words[1:])])


def _infeasible(plan: Plan, skip: bool) -> dict[str, CellResult]:
    refused = {
        cell.cell_id: infeasible_result(cell, plan.cell_folder(cell), forecast.infeasible)
        for cell, forecast in zip(plan.cells, plan.forecasts, strict=True)
        if forecast.infeasible is not None
    }
    if refused and not skip:
        reasons = dict.fromkeys(result.failure or "" for result in refused.values())
        hint = "\n  Or run the others with --skip-infeasible."
        raise SpecError(tuple(SpecProblem(plan.source.file, reason + hint, "placement") for reason in reasons))
    return refused


def _find_finished(plan: Plan, cell: Cell) -> CellResult | None:
    """The stored result of a cell with nothing left to do: trained and, where asked, exported."""
    result = find_final_result(plan.cell_folder(cell))
    request = export_request(plan)
    if result is None or (request is not None and find_export(request.folder) != cell.cell_id):
        return None
    return replace(result, folder=str(plan.cell_folder(cell)))


def export_request(plan: Plan) -> ExportRequest | None:
    """Where a finetune exports to; inside a Ray job a relative folder is one of the storage, which outlives the job."""
    if not isinstance(plan.job, Finetune) or plan.job.export is None:
        return None
    base = plan.folder if IN_RAY_JOB in os.environ else Path.cwd()
    facts = {"spec": plan.job.model_dump(mode="json", by_alias=True), "train_hash": plan.train.digest}
    return ExportRequest(base / Path(plan.job.export.folder).expanduser(), facts)


def _announce(plan: Plan, console: Console, finished: dict[str, CellResult], open_cells: list[Cell]) -> None:
    done = f", {len(finished)} already finished" if finished else ""
    console.print(
        f"{plan.job_id}: {len(plan.cells)} cells{done}; results in {plan.folder}", highlight=False, soft_wrap=True
    )
    if not open_cells:
        console.print("nothing to run: every cell is finished (delete its folder under cells/ to run it anew)")


def _run(
    plan: Plan, console: Console, cells: list[Cell], children: dict[str, TrackedRun]
) -> tuple[list[CellResult], int | None]:
    """Runs the open cells; returns their results and the signal that interrupted them, if one did."""
    if not cells and find_preparation(plan) is not None:
        return [], None
    console.print("starting Ray" if "RAY_ADDRESS" not in os.environ else "connecting to Ray")
    connect(plan.job.placement)
    import ray

    try:
        console.print(f"tokenizing {len(plan.train.examples)} training examples for {len(plan.backbones)} backbones")
        preparation = prepare_data(plan)
        progress = Progress(console, [(cell, plan.cell_folder(cell)) for cell in cells])

        def report(cell: Cell, status: CellStatus, attempt: int) -> None:
            children[cell.cell_id].tags["attempt"] = str(attempt)
            progress.report(cell, status, attempt)

        deadline = time.time() + plan.job.policy.timeout_s
        runner = CellRunner(_job_maker(plan, preparation, deadline), plan.job.policy.max_failures, report)
        with _stop_on_signal(runner, console) as received, progress.running():
            results = runner.run(cells)
        return results, received[0] if received else None
    finally:
        ray.shutdown()


def _job_maker(plan: Plan, preparation: Preparation, deadline: float) -> Any:
    flops = {cell.cell_id: forecast.flops_per_token for cell, forecast in zip(plan.cells, plan.forecasts, strict=True)}

    def make_job(cell: Cell, attempt: int) -> CellJob:
        backbone_id = cell.backbone.backbone_id
        return CellJob(
            cell=cell,
            attempt=attempt,
            folder=plan.cell_folder(cell),
            prepared=preparation.prepared[backbone_id],
            selection_file=preparation.selection_files[backbone_id],
            flops_per_token=flops[cell.cell_id],
            deadline=deadline,
            export=export_request(plan),
        )

    return make_job


@contextmanager
def _stop_on_signal(runner: CellRunner, console: Console) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM stops the cells at a checkpoint; a second one ends the process at once."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        console.print("stopping at the next checkpoint; interrupt again to stop at once")
        runner.stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _tracked_runs(plan: Plan) -> tuple[TrackedRun, dict[str, TrackedRun]]:
    """The MLflow parent of the job and a child for each cell."""
    state = plan.folder / "tracking"
    recipe = flatten({"recipe": plan.job.recipe.model_dump(mode="json"), "placement": plan.job.placement.model_dump()})
    common = {"comparison_id": plan.job_id, "mlflow.source.name": command_line(), "mlflow.source.type": "JOB"}
    parent = TrackedRun(
        name=plan.job_id,
        state_file=state / "parent.json",
        tags={
            **common,
            "role": plan.kind,
            "cell_id": "all",
            "backbone_id": ",".join(spec.backbone_id for spec in plan.backbones),
            "seed": ",".join(dict.fromkeys(str(cell.seed) for cell in plan.cells)),
            "attempt": "1",
        },
        params={**recipe, "train_digest": plan.train.digest, "validation_digest": plan.validation.digest},
    )
    children = {}
    for cell in plan.cells:
        facts = {"backbone_id": cell.backbone.backbone_id, "seed": str(cell.seed)}
        children[cell.cell_id] = TrackedRun(
            name=cell.cell_id,
            state_file=state / f"{cell.cell_id}.json",
            tags={**common, "role": "cell", "cell_id": cell.cell_id, **facts, "attempt": "1"},
            params={**recipe, **facts, "micro_batch_size": str(cell.micro_batch_size)},
            spool_folder=spool_folder(plan.cell_folder(cell)),
            parent=parent,
        )
    return parent, children


def _conclude(
    plan: Plan,
    console: Console,
    results: list[CellResult],
    writer: MlflowWriter,
    parent: TrackedRun,
    children: dict[str, TrackedRun],
    interrupted: int | None,
) -> Outcome:
    """Finishes the MLflow runs and writes the report, which names them."""
    for result in results:
        _finish_child(plan, writer, children[result.cell_id], result)
    limit = UPLOAD_LIMIT_INTERRUPTED_S if interrupted else UPLOAD_LIMIT_S
    _wait_for_run_ids(writer, children, limit)
    results = [replace(result, mlflow_run_id=children[result.cell_id].sent.run_id) for result in results]
    document = build_document(plan, results, _parity_facts(plan), command_line())
    html, facts = plan.folder / "report.html", plan.folder / "report.json"
    write_json(facts, document)
    html.write_text(render_report(document), encoding="utf-8")
    code = _exit_code(results, interrupted)
    parent.summary = {
        f"val_bits_per_byte/{entry['backbone_id'].replace(':', '_').replace('@', '_')}": entry["val_bits_per_byte"]
        for entry in document["ranking"]
    }
    parent.tags["verdict"] = str(document["verdict"].get("sentence", ""))
    parent.artifacts = (html, facts)
    writer.finish(parent, "KILLED" if interrupted else "FINISHED" if code == 0 else "FAILED")
    unsent = writer.close(limit)
    _say_what_is_left(plan, console, results, document, unsent, writer)
    return Outcome(document, html, code)


def _finish_child(plan: Plan, writer: MlflowWriter, run: TrackedRun, result: CellResult) -> None:
    run.tags["attempt"], run.tags["cell_status"] = str(result.attempts), str(result.status)
    if result.failure:
        run.tags["failure"] = result.failure[:4000]
    if result.measurement is not None:
        streamed = {"val_bits_per_byte", "val_loss", "peak_memory_gib", "tokens_per_second_per_device", "step_time_s"}
        metrics = result.measurement.metrics.items()
        run.summary = {key: float(value) for key, value in metrics if value is not None and key not in streamed}
        contract = Path(result.folder) / "contract.json"
        write_json(contract, result.measurement.contract)
        run.artifacts = (contract,)
        if isinstance(plan.job, Finetune) and plan.job.export is not None and plan.job.export.register_as is not None:
            request = export_request(plan)
            assert request is not None
            run.registered_model = (plan.job.export.register_as, request.folder)
    writer.finish(run, result.status.mlflow_status)


def _wait_for_run_ids(writer: MlflowWriter, children: dict[str, TrackedRun], limit_s: float) -> None:
    """The report names MLflow's run ids, which exist once the server was reached."""
    deadline = time.monotonic() + limit_s
    while any(run.sent.run_id is None and run.problem is None for run in children.values()):
        if time.monotonic() > deadline or writer.unreachable is not None:
            return
        time.sleep(0.05)


def _parity_facts(plan: Plan) -> dict[str, Any]:
    """The parity facts of the plan's data, for the report."""
    preparation = find_preparation(plan)
    return {} if preparation is None else preparation.facts


def _exit_code(results: list[CellResult], interrupted: int | None) -> int:
    if interrupted is not None:
        return 128 + interrupted
    return 0 if all(result.status is CellStatus.SUCCEEDED for result in results) else 1


def _say_what_is_left(
    plan: Plan,
    console: Console,
    results: list[CellResult],
    document: dict[str, Any],
    unsent: list[TrackedRun],
    writer: MlflowWriter,
) -> None:
    for result in results:
        if result.status is not CellStatus.SUCCEEDED:
            first = (result.failure or "").splitlines()[0] if result.failure else ""
            console.print(f"{result.cell_id}: {result.status}: {first}", highlight=False, markup=False, soft_wrap=True)
    for problem in writer.problems:
        console.print(f"MLflow refused {problem}", highlight=False, markup=False, soft_wrap=True)
    if unsent:
        why = f" ({writer.unreachable})" if writer.unreachable else ""
        console.print(
            f"MLflow at {plan.tracking_uri} does not have everything of {len(unsent)} runs yet{why}; nothing is lost: "
            "run the same command again once it answers",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    sentence = document["verdict"].get("sentence")
    if sentence:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {plan.folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
