"""`BACKBONE_FAULT` as a person uses it: refused where it cannot be meant, and what a run makes of what it asks for."""

from collections.abc import Callable
from typing import Any

import pytest
from product import Job, assert_every_step_once, sqlite_uri

STEPS = 6
LIMIT_S = 900.0  # on a busy machine
SPEC: dict[str, Any] = {
    "recipe__precision": "fp32",
    "recipe__budget__amount": STEPS,
    "recipe__global_batch_size": 8,
    "recipe__micro_batch_size": 4,
    "recipe__evaluate": {"every": 1.0},
    "policy__max_failures": 0,
}


def test_a_fault_that_nobody_could_mean_is_refused_before_anything_starts(new_job: Callable[..., Job]) -> None:
    job = new_job()
    job.environment["BACKBONE_FAULT"] = "explode@rank1:step3"
    launch = job.run()
    assert launch.process.returncode == 2
    assert "BACKBONE_FAULT: 'explode@rank1:step3' is no fault. Write KIND@rankR:stepS" in " ".join(
        launch.output.split()
    )
    assert not job.storage.exists()


@pytest.mark.e2e
def test_a_micro_batch_that_does_not_fit_costs_one_attempt_and_no_failure(new_job: Callable[..., Job]) -> None:
    job = new_job(**SPEC)
    job.environment["BACKBONE_FAULT"] = "oom@rank1:step2"
    launch = job.start("compare", "--no-certificate")
    assert launch.wait(LIMIT_S) == 0, launch.output

    (cell,) = job.report["cells"]
    assert (cell["status"], cell["attempts"]) == ("SUCCEEDED", 2)
    assert (cell["contract"]["micro_batch_size"], cell["contract"]["accumulation_steps"]) == (2, 2)
    (why,) = cell["restarts"]
    assert why.startswith("OutOfMemoryError on rank 1 at step 2: rank 1 at step 2 ran out of memory: BACKBONE_FAULT")
    assert why.endswith("; it goes on with a micro-batch of 2")
    # That every split of a global batch has the same curve, test_sharded_training.py shows.
    assert_every_step_once(sqlite_uri(job), cell["cell_id"], STEPS)
