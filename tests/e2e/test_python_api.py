"""A job that a Python program started: it outlives the program, and the same call comes back to it."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from product import ROOT, Job, Launch, clean_environment, wait_for

from jobs.api import JobResult, load_report

pytestmark = pytest.mark.e2e
PROGRAM = """
import sys
from jobs.api import compare
result = compare(sys.argv[1], storage=sys.argv[2])
print("WINS", result.ranking["backbone_id"][0], len(result.items), flush=True)
"""


def start_program(job: Job) -> Launch:
    output = job.folder / f"program-{len(job.processes)}.txt"
    with open(output, "w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(job.spec), str(job.storage)],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    job.processes.append(process)
    return Launch(process, output)


def test_ctrl_c_leaves_the_job_running_and_the_same_call_comes_back_to_it(new_job: Callable[..., Job]) -> None:
    job = new_job(name="api")
    first = start_program(job)
    cell = job.cell("tiny-llama2")
    cell.wait_for_step(1, first)
    with cell.held():
        first.interrupt_as_a_terminal()
        assert first.wait() != 0
        assert "goes on" in first.output
        assert "make the same call again" in first.output
        second = start_program(job)
        wait_for(lambda: "runs already on this machine" in second.output, "the second program", alive=second.process)
    assert second.wait() == 0, second.output
    assert "WINS tiny-llama2 24" in second.output

    (report,) = job.storage.glob("*/report.json")
    result = load_report(report)
    assert isinstance(result, JobResult)
    assert list(result.cells["attempts"]) == [1]
    steps = [entry["fields"]["step"] for entry in cell.entries("step")]
    assert steps == list(range(1, 61))
