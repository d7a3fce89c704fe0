"""What a driver makes of failed attempts, through its cells under leases; a stand-in has the workers' failures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cells import BareJobs, Shared

from jobs.driver.attempts import History
from jobs.driver.cells import CellRunner
from jobs.driver.leases import Leases
from jobs.driver.requests import job_request
from orchestrator.attempt.failure import Failure, account_of
from orchestrator.attempt.taxonomy import Cause
from orchestrator.cell_job import CellJob
from orchestrator.errors import CheckpointError, DivergedError, HangError
from orchestrator.planning.plan import Plan, load_comparison
from orchestrator.results import CellResult, CellStatus


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """One cell of 24 rows a step on two workers, 12 in a micro-batch; one failure is allowed."""
    data = {"train": "builtin:stdlib", "validation": "builtin:stdlib"}
    recipe = {"data": data, "sequence_length": 64, "budget": {"kind": "steps", "amount": 1}}
    spec = {
        "name": "tries",
        "backbones": ["tiny-llama2"],
        "seeds": 1,
        "storage": str(tmp_path / "storage"),
        "recipe": recipe | {"global_batch_size": 24, "micro_batch_size": 12},
        "placement": {"workers": 2},
        "policy": {"max_failures": 1},
    }
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump(spec))
    return load_comparison(file)


def run(plan: Plan, fail: Callable[[CellJob], Failure | None]) -> tuple[CellResult, list[CellJob]]:
    """The cell's result, and the job of every attempt; `fail` says what became of one."""
    shared, jobs = Shared(), []
    leases = Leases(shared, job_request(plan, plan.cells), "driver")

    def run_attempt(job: CellJob, placement: Any, nodes: Any) -> Failure | None:
        jobs.append(job)
        return fail(job)

    runner = CellRunner(BareJobs(plan), plan.job.policy, (), lambda text: None, leases, run_attempt)
    leases.start()
    (result,) = runner.run(list(plan.cells))
    leases.finish(0)
    return result, jobs


def out_of_memory(step: int | None) -> Failure:
    return account_of(1, MemoryError("no room"), step)


def rows(jobs: list[CellJob]) -> list[int]:
    return [job.cell.micro_batch_size for job in jobs]


def test_a_micro_batch_that_does_not_fit_is_halved_until_it_does_and_nobody_is_charged(plan: Plan) -> None:
    result, jobs = run(plan, lambda job: out_of_memory(2) if job.cell.micro_batch_size > 3 else None)
    assert result.status is CellStatus.SUCCEEDED
    assert rows(jobs) == [12, 6, 3]
    assert {job.cell.cell_id for job in jobs} == {plan.cells[0].cell_id}
    assert [why.partition("; ")[2] for why in result.restarts] == [
        "it goes on with a micro-batch of 6",
        "it goes on with a micro-batch of 3",
    ]
    assert result.restarts[0].startswith("OutOfMemoryError on rank 1 at step 2: rank 1 at step 2 ran out of memory")


def test_a_single_row_that_does_not_fit_is_final_with_the_remedy(plan: Plan) -> None:
    result, jobs = run(plan, lambda job: out_of_memory(1))
    assert (result.status, rows(jobs)) == (CellStatus.OUT_OF_MEMORY, [12, 6, 3, 1])
    assert result.failure is not None
    assert "raise placement.workers, set recipe.activation_checkpointing to true" in result.failure


def test_a_model_that_could_not_be_loaded_is_not_helped_by_a_smaller_micro_batch(plan: Plan) -> None:
    result, jobs = run(plan, lambda job: out_of_memory(None))
    assert (result.status, rows(jobs)) == (CellStatus.OUT_OF_MEMORY, [12])


def test_the_next_launch_knows_the_micro_batch_that_fits(plan: Plan) -> None:
    history = History(plan.cell_folder(plan.cells[0]))
    history.begin()
    history.end("out of memory")
    history.shrink(4)
    result, jobs = run(plan, lambda job: None)
    assert (rows(jobs), result.attempts) == ([4], 2)


@pytest.mark.parametrize(
    ("error", "status", "attempts"),
    [
        (DivergedError("NaN"), CellStatus.DIVERGED, 1),
        (HangError("no progress"), CellStatus.FAILED, 2),
        (CheckpointError("cannot write"), CellStatus.FAILED, 2),
        (ConnectionResetError("hub"), CellStatus.FAILED, 2),
        (ZeroDivisionError(), CellStatus.FAILED, 2),
    ],
)
def test_what_every_attempt_meets_ends_the_cell_after_as_many_as_its_row_allows(
    error: Exception, status: CellStatus, attempts: int, plan: Plan
) -> None:
    result, jobs = run(plan, lambda job: account_of(1, error, 3))
    assert (result.status, len(jobs)) == (status, attempts)
    if attempts > 1:
        assert result.failure is not None
        assert f": {type(error).__name__} on rank 1 at step 3: " in result.failure.splitlines()[0]


def test_nodes_that_are_taken_away_again_and_again_cost_nothing(plan: Plan) -> None:
    taken = Failure("PreemptedError", "reclaimed", 0, 0.0, retriable=True, cause=Cause.PREEMPTED)
    result, jobs = run(plan, lambda job: taken if job.attempt < 6 else None)
    assert (result.status, len(jobs)) == (CellStatus.SUCCEEDED, 6)
