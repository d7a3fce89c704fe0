"""The end of a launch: MLflow runs finished, the kind's documents written, what is left said, an exit code."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.driver.kinds.kind import Conclusion
from jobs.driver.kinds.table import KINDS
from jobs.results.tuning import is_excused
from jobs.tracking.runs import Tracking
from orchestrator.planning.plan import Plan
from orchestrator.results import CellResult, CellStatus
from orchestrator.tracking.run import TrackedRun, without_password

UPLOAD_LIMIT_S = 120.0
UPLOAD_LIMIT_INTERRUPTED_S = 10.0
RUN_STATUS = {0: "FINISHED", 1: "FAILED"}  # of MLflow, by exit code; KILLED for those of signals


@dataclass(frozen=True)
class Outcome:
    """What a launch left behind."""

    document: Any
    report: Path
    exit_code: int


def conclude(
    plan: Plan,
    console: Console,
    results: list[CellResult],
    tracking: Tracking,
    interrupted: int | None,
    command: str,
) -> Outcome:
    """Finishes the MLflow runs and writes the documents, which name them. `interrupted`: by which signal."""
    for result in results:
        tracking.finish_child(result)
    limit_s = UPLOAD_LIMIT_INTERRUPTED_S if interrupted else UPLOAD_LIMIT_S
    run_ids = tracking.run_ids(limit_s)
    results = [replace(result, mlflow_run_id=run_ids[result.cell_id]) for result in results]
    conclusion = KINDS[plan.kind].conclude(plan, results, command)
    counted = [result for result in results if not is_excused(plan, results, result)]
    code = _exit_code(counted, interrupted)
    tracking.finish_parent(
        *(conclusion.summary, conclusion.verdict, results, conclusion.files, RUN_STATUS.get(code, "KILLED")),
        series=conclusion.series,
    )
    unsent = tracking.close(limit_s)
    _say_what_is_left(plan, console, counted, conclusion, unsent, tracking)
    console.print(f"report: {conclusion.files[0]}", highlight=False, markup=False, soft_wrap=True)
    return Outcome(conclusion.document, conclusion.files[0], code)


def _exit_code(results: list[CellResult], interrupted: int | None) -> int:
    if interrupted is not None and any(result.status is CellStatus.CANCELLED for result in results):
        return 128 + interrupted
    return 0 if all(result.status is CellStatus.SUCCEEDED for result in results) else 1


def _say_what_is_left(
    plan: Plan,
    console: Console,
    results: list[CellResult],
    conclusion: Conclusion,
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
    for sentence in filter(None, [conclusion.verdict, *conclusion.sentences]):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
