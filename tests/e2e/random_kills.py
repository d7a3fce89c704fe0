"""Runs that are killed at random points, and what must be left of it in their results: nothing.

A blow is drawn from a seed: whom it strikes, and when. Where it strikes at a moment in the clock's time and not at a
point of the code, a slow rank keeps the cell from ending before.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from product import (
    CellFolder,
    Job,
    Launch,
    assert_every_step_once,
    histories,
    ray_processes_of,
    sqlite_uri,
    tracked_runs,
    wait_for,
    working_processes_of,
)

from orchestrator.layout import checkpoint_folders
from orchestrator.results import read_json
from orchestrator.training.measurement import load_item_scores

STEPS = 30
BOTH = [0, 1]  # the seeds of the two cells
# What the product is asked for: one or both cells, one after the other on one gang, a checkpoint every third step.
SPEC = {
    "recipe__budget__amount": STEPS,
    "recipe__precision": "fp32",
    "recipe__global_batch_size": 4,
    "recipe__evaluate": {"every": 0.5},
    "recipe__checkpoint": {"every": 0.1},
    "recipe__sequence_length": 64,
}
AT_A_POINT = ("step", "batch", "save", "manifest")  # a rank kills itself, in the first attempt at each cell
KINDS = (*AT_A_POINT, "worker", "driver", "starting driver", "between cells")
LAUNCHES = 4
LAUNCH_LIMIT_S = 900.0  # on a busy machine
AT_ONCE = 2  # runs: most of one is waiting for processes that start
Point = tuple[int, float]


@dataclass(frozen=True)
class Blow:
    """What strikes a run. `step` and `delay_s` say when, as its kind has it."""

    kind: str
    cells: int
    rank: int
    step: int
    delay_s: float

    @classmethod
    def draw(cls, kind: str, rng: random.Random) -> "Blow":
        """When and whom."""
        cells = 2 if kind == "between cells" else rng.choice((1, 1, 1, 2))
        longest_s = 15.0 if kind == "starting driver" else 1.5
        return cls(kind, cells, rng.randrange(2), rng.randint(1, STEPS - 2), rng.uniform(0.0, longest_s))

    @property
    def fault(self) -> str | None:
        """What the product is asked to do to itself."""
        if self.kind in AT_A_POINT:
            return f"kill@rank{self.rank}:step{self.step}:{self.kind}"
        return f"slow@rank0:step{self.step}" if self.kind in ("worker", "driver") else None

    def strike(self, job: Job, launch: Launch) -> None:
        """Waits for the moment, and kills. Kinds of a point need no help."""
        if self.kind == "starting driver":
            wait_for(lambda: "starting Ray" in launch.output, "the start of Ray", alive=launch.process)
            time.sleep(self.delay_s)  # the moment itself is what was drawn
            launch.process.kill()
        elif self.kind in ("worker", "driver"):
            cell = job.cell()
            cell.wait_for_step(self.step, launch)
            time.sleep(self.delay_s)
            os.kill(cell.worker_pid(self.rank), signal.SIGKILL) if self.kind == "worker" else launch.process.kill()
        elif self.kind == "between cells":
            first = wait_for(lambda: finished(job), "the end of the first cell", alive=launch.process)[0]
            os.kill(first.worker_pid(self.rank), signal.SIGKILL)


def finished(job: Job) -> list[CellFolder]:
    return [cell for cell in job.cells() if (cell.path / "result.json").exists()]


def run_through(job: Job, blow: Blow | None) -> list[int]:
    """Runs a job until it is done; the exit codes of its launches. Only the first launch is struck."""
    codes: list[int] = []
    job.environment |= {"BACKBONE_FAULT": blow.fault} if blow is not None and blow.fault else {}
    while not codes or codes[-1] != 0:
        assert len(codes) < LAUNCHES, f"{codes}: {Path(job.folder, f'output-{len(codes) - 1}.txt').read_text()}"
        launch = job.start("compare", "--no-certificate")
        if blow is not None and not codes:
            blow.strike(job, launch)
        codes.append(launch.wait(LAUNCH_LIMIT_S))
        wait_for(lambda pid=launch.process.pid: not working_processes_of(pid), "end of the workers", timeout_s=60)
        job.environment.pop("BACKBONE_FAULT", None)
    return codes


@dataclass(frozen=True)
class Facts:
    """What a cell leaves that does not measure the machine."""

    histories: dict[str, list[Point]]  # of MLflow: (step, value) by metric
    weights: dict[str, Any]  # size and digest of each file of the last checkpoint: weights and optimizer state
    scores: dict[str, list[float]]  # per held-out item

    @classmethod
    def of(cls, job: Job, cell: CellFolder) -> "Facts":
        manifest = read_json(checkpoint_folders(cell.path / "checkpoints")[0] / "manifest.json")
        assert manifest["step"] == STEPS
        scores = {name: column.tolist() for name, column in vars(load_item_scores(cell.path)).items()}
        # DCP's index of the files carries a random id.
        weights = {name: digest for name, digest in manifest["files"].items() if name != ".metadata"}
        return cls(histories(sqlite_uri(job), cell.path.name), weights, scores)


def facts_of(job: Job) -> dict[str, Facts]:
    """By cell."""
    return {cell.path.name: Facts.of(job, cell) for cell in job.cells()}


def assert_as_if_nothing_had_been(job: Job, cells: int, undisturbed: dict[str, Facts]) -> None:
    """The oracle: weights, scores and metrics bit for bit, every step in MLflow once, one result, no process left."""
    found = facts_of(job)
    assert len(found) == cells
    for cell_id, facts in found.items():
        assert_every_step_once(sqlite_uri(job), cell_id, STEPS)
        assert facts.histories == undisturbed[cell_id].histories
        assert facts.weights == undisturbed[cell_id].weights
        assert facts.scores == undisturbed[cell_id].scores
    assert [cell["status"] for cell in job.report["cells"]] == ["SUCCEEDED"] * cells
    assert {run.info.status for run in tracked_runs(sqlite_uri(job))} == {"FINISHED"}
    assert len(tracked_runs(sqlite_uri(job))) == 1 + cells
    for process in job.processes:
        wait_for(lambda pid=process.pid: not ray_processes_of(pid), "end of a killed driver's Ray", timeout_s=120)


def strike_and_compare(
    new_job: Callable[..., Job], name: str, blow: Blow, undisturbed: dict[str, Facts]
) -> dict[str, Any]:
    """One run under a blow; what happened. Raises AssertionError where it shows in the results."""
    began, load = time.monotonic(), os.getloadavg()[0]
    job = new_job(name, seeds=BOTH[: blow.cells], **SPEC)
    codes = run_through(job, blow)
    assert_as_if_nothing_had_been(job, blow.cells, undisturbed)
    restarts = [why for cell in job.report["cells"] for why in cell["restarts"]]
    assert restarts or len(codes) > 1 or blow.kind == "between cells", "the blow struck nobody"
    return {
        "blow": asdict(blow),
        "exit_codes": codes,
        "restarts": [why.splitlines()[0] for why in restarts],
        "attempts": [cell["attempts"] for cell in job.report["cells"]],
        "bitwise_equal": True,
        "seconds": round(time.monotonic() - began, 1),
        "load_average": round(load, 1),
    }
