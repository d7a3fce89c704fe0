"""A driver of a job's first cell, as `launch` is one, but without training: it tracks and spools until it is killed."""

import sys
from pathlib import Path

from jobs.tracking.runs import Tracking
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Plan, load_plan
from orchestrator.results import StepMetrics
from orchestrator.tracking.sender import driver_of
from orchestrator.tracking.spool import SpoolWriter


def drive(spec: Path, steps: int) -> None:
    """Says `ready` when MLflow knows the runs, and goes on until it is killed."""
    plan = load_plan(spec)
    with driver_of(plan.folder):
        tracking = Tracking(plan, "backbone compare", None)
        tracking.start()
        tracking.begin_attempt(plan.cells[0], 1)
        spool_steps(plan, 1, steps)
        tracking.run_ids(60)
        print("ready", flush=True)
        sys.stdin.read()


def spool_steps(plan: Plan, first: int, last: int) -> None:
    """Steps of the first cell, as its worker spools them."""
    writer = SpoolWriter(CellFolder(plan.cell_folder(plan.cells[0])).spool, attempt=1)
    for step in range(first, last + 1):
        writer.step(StepMetrics(step, 1 / step, 0.5, 1e-3, 2.0, step, 9 * step, 40 * step, 0.5, 0.1, 90.0, 1.0))
    writer.close()


if __name__ == "__main__":
    drive(Path(sys.argv[1]), int(sys.argv[2]))
