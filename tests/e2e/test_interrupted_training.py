"""A killed worker, a signal: the job resumes, and nobody can tell from its numbers."""

import os
import re
import shutil
import signal
from collections.abc import Callable

import pytest
from product import (
    CellFolder,
    Job,
    Launch,
    assert_every_step_once,
    histories,
    ray_processes_of,
    run_of,
    sqlite_uri,
    tracked_runs,
    wait_for,
    working_processes_of,
)

pytestmark = pytest.mark.e2e

STEPS = 60
Expected = Callable[[str], dict[str, list[tuple[int, float]]]]


def reach_the_middle(job: Job, launch: Launch, cell: CellFolder | None = None) -> CellFolder:
    """Waits until the cell has a checkpoint and a step that is not in it."""
    cell = cell or job.cell("tiny-llama2")
    kept = cell.wait_for_checkpoint(launch)
    cell.wait_for_step(kept + 2, launch)
    return cell


def assert_like_undisturbed(job: Job, cell: CellFolder, expected: Expected) -> None:
    cell_id = cell.path.name
    assert_every_step_once(sqlite_uri(job), cell_id, STEPS)
    assert histories(sqlite_uri(job), cell_id) == expected(cell_id)


def resumed_at(cell: CellFolder, attempt: int) -> int:
    (step,) = [phase["step"] for phase in cell.phases(attempt) if phase["phase"] == "resumed"]
    return step


@pytest.mark.chaos  # `make test` kills workers at random points, and holds them to the same numbers
def test_a_cell_whose_worker_is_killed_resumes_from_its_checkpoint_with_the_same_numbers(
    new_job: Callable[..., Job], expected: Expected
) -> None:
    job = new_job()
    launch = job.start("compare", "--no-certificate")
    cell = reach_the_middle(job, launch)
    os.kill(cell.worker_pid(rank=1), signal.SIGKILL)

    assert launch.wait() == 0, launch.output
    assert resumed_at(cell, attempt=2) > 0
    assert_like_undisturbed(job, cell, expected)
    run = run_of(sqlite_uri(job), cell.path.name)
    assert run.data.tags["attempt"] == "2"
    assert {run.info.status for run in tracked_runs(sqlite_uri(job))} == {"FINISHED"}
    (reported,) = job.report["cells"]
    assert reported["attempts"] == 2
    (why,) = reported["restarts"]
    assert re.match(r"WorkerDiedError on rank 1( at step \d+)?: rank 1 \(pid ", why)


def test_a_signal_keeps_a_checkpoint_and_the_same_command_finishes_the_job(
    new_job: Callable[..., Job], expected: Expected
) -> None:
    """Ctrl-C in a terminal, then in peace."""
    job = new_job()
    launch = job.start("compare", "--no-certificate")
    cell = reach_the_middle(job, launch)
    launch.interrupt_as_a_terminal()

    assert launch.wait() == 128 + signal.SIGINT, launch.output
    kept = cell.step
    assert cell.checkpoint_step == kept < STEPS
    assert {run.info.status for run in tracked_runs(sqlite_uri(job))} == {"KILLED"}
    assert not ray_processes_of(launch.process.pid)
    assert f"a checkpoint was kept at step {kept}" in launch.output

    again = job.run("compare", "--no-certificate")
    assert again.process.returncode == 0, again.output
    assert resumed_at(cell, attempt=2) == kept
    assert_like_undisturbed(job, cell, expected)
    assert {run.info.status for run in tracked_runs(sqlite_uri(job))} == {"FINISHED"}


def test_a_signal_before_anything_trains_ends_at_once_and_leaves_a_report(new_job: Callable[..., Job]) -> None:
    job = new_job()
    launch = job.start("compare", "--no-certificate")
    wait_for(lambda: "starting Ray" in launch.output, "the start of Ray", alive=launch.process)
    launch.process.send_signal(signal.SIGTERM)

    assert launch.wait(60) == 143, launch.output
    assert [cell["status"] for cell in job.report["cells"]] == ["CANCELLED"]
    wait_for(lambda: not ray_processes_of(launch.process.pid), "end of the Ray session", timeout_s=15)


def test_a_job_whose_worker_hangs_still_stops_when_told_to_twice(new_job: Callable[..., Job]) -> None:
    job = new_job()
    launch = job.start("compare", "--no-certificate")
    cell = reach_the_middle(job, launch)
    os.kill(cell.worker_pid(rank=1), signal.SIGSTOP)
    launch.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "interrupt again to stop at once" in launch.output, "an answer", alive=launch.process)
    launch.process.send_signal(signal.SIGTERM)

    assert launch.wait(10) == 143
    wait_for(lambda: not working_processes_of(launch.process.pid), "end of the workers", timeout_s=15)


def test_an_attempt_whose_workers_never_come_stops_in_bounded_time(new_job: Callable[..., Job]) -> None:
    job = new_job()
    launch = job.start("compare", "--no-certificate")

    def find_controller() -> list[int]:
        names = working_processes_of(launch.process.pid).items()
        return [pid for pid, name in names if name.startswith("ray::TrainContr")]

    (controller,) = wait_for(find_controller, "Ray Train's controller", alive=launch.process)
    os.kill(controller, signal.SIGSTOP)  # as if it waited for nodes
    assert not (job.cell().path / "workers").exists()
    launch.process.send_signal(signal.SIGTERM)

    assert launch.wait(90) == 143, launch.output
    (reported,) = job.report["cells"]
    assert (reported["status"], reported["attempts"]) == ("CANCELLED", 1)
    wait_for(lambda: not working_processes_of(launch.process.pid), "end of the workers", timeout_s=15)


def test_the_second_of_two_launches_of_one_spec_says_so_and_changes_nothing(new_job: Callable[..., Job]) -> None:
    job = new_job()
    first = job.start("compare", "--no-certificate")
    cell = job.cell("tiny-llama2")
    wait_for(lambda: cell.step >= 1, "the first step", alive=first.process)
    second = job.run("compare", "--no-certificate")

    assert second.process.returncode == 1
    assert f"{cell.path.name} is being trained by another process" in second.output
    assert first.wait() == 0, first.output
    assert_every_step_once(sqlite_uri(job), cell.path.name, STEPS)
    assert {entry["attempt"] for entry in cell.spool()} == {1}
    assert len(tracked_runs(sqlite_uri(job))) == 2


def test_a_failure_that_every_attempt_meets_stops_the_cell_and_names_rank_and_cause(
    new_job: Callable[..., Job],
) -> None:
    job = new_job()
    launch = job.start("compare", "--no-certificate")
    wait_for(lambda: (job.storage / "prepared").exists() and job.cells(), "a cell", alive=launch.process)
    preparation = wait_for(lambda: list(job.storage.glob("*/data/preparation.json")), "tokens", alive=launch.process)
    assert preparation
    for tokens in (job.storage / "prepared").glob("*"):
        shutil.rmtree(tokens)  # the workers open them a few seconds later

    assert launch.wait() == 1, launch.output
    (reported,) = job.report["cells"]
    assert (reported["status"], reported["attempts"]) == ("FAILED", 2)
    assert reported["failure"].startswith("the same failure twice in a row, so a third try would meet it too: ")
    assert "No such file" in reported["failure"]
    assert reported["restarts"][0].startswith("FileNotFoundError on rank ")
    assert {run.info.status for run in tracked_runs(sqlite_uri(job))} == {"FAILED"}
    assert "No such file" in run_of(sqlite_uri(job), reported["cell_id"]).data.tags["failure"]
