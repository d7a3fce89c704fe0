"""Each budget that counts work ends a run in the step that uses it up. That of time: test_resumption.py."""

from pathlib import Path

import pytest
import torch
from gang import run_ranks
from small_jobs import curve, make_job

from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob
from orchestrator.training.measurement import find_measurement

AMOUNTS = {"steps": 3.0, "bytes": 2500.0, "tokens": 2500.0, "flops": 1e10}
ACHIEVED = {"steps": "steps", "bytes": "bytes_seen", "tokens": "tokens_seen", "flops": "training_flops"}


def train_all(jobs: list[CellJob]) -> None:
    for job in jobs:
        run_cell(job, torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CellJob]:
    folder = tmp_path_factory.mktemp("budgets")
    jobs = {
        kind: make_job(folder / kind, budget={"kind": kind, "amount": amount}, evaluate={"every": 0.5})
        for kind, amount in AMOUNTS.items()
    }
    run_ranks(1, train_all, list(jobs.values()))
    return jobs


@pytest.mark.parametrize("kind", AMOUNTS)
def test_a_run_ends_in_the_step_that_uses_its_budget_up(finished: dict[str, CellJob], kind: str) -> None:
    job = finished[kind]
    measurement = find_measurement(Path(job.folder))
    assert measurement is not None
    shares, rates = curve(job, "progress"), curve(job, "learning_rate")
    assert len(shares) > 1
    assert shares[-1] == 1.0 > shares[-2]
    assert min(rates) > 0

    achieved = measurement.metrics[ACHIEVED[kind]]
    assert achieved is not None and achieved >= AMOUNTS[kind]
    assert [measurement.evaluations[0].progress, measurement.evaluations[-1].progress] == [0.0, 1.0]
