"""The product as a Ray job on a cluster with token authentication, by the script that users are shown."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from product import ROOT, Job, assert_every_step_once, clean_environment, ray_processes_of, sqlite_uri, wait_for

pytestmark = pytest.mark.e2e
SCRIPT = ROOT / "examples" / "ray_job_submit.sh"


class Submission:
    """One run of the script."""

    def __init__(self, job: Job, *arguments: str):
        self.output_file = job.folder / "submission.txt"
        ports = free_ports(3)
        self.address = f"http://127.0.0.1:{ports[1]}"
        self.environment = {**clean_environment(), "RAY_PORTS": "{} {} 0 {}".format(*ports)}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with open(self.output_file, "w") as stream:
            self.process = subprocess.Popen(
                [str(SCRIPT), str(job.spec), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """Without the colours that Ray prints."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.output_file.read_text())

    def wait(self, timeout_s: float = 300) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:.0f} s:\n{self.output}") from None

    def lose_cluster(self) -> None:
        """Ends every process of the cluster at once, as a machine does that loses its power."""
        (head,) = (child.pid for child in psutil.Process(self.process.pid).children() if "start" in child.cmdline())
        for pid in ray_processes_of(head):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        """Lets the script stop its cluster, if it still runs."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def free_ports(number: int) -> list[int]:
    """Ports outside the range that Ray gives to its workers."""
    with ExitStack() as stack:
        found: list[int] = []
        for port in range(21000 + os.getpid() % 5000, 32000):
            taken = stack.enter_context(socket.socket())
            with suppress(OSError):
                taken.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == number:
                return found
    raise AssertionError("no free ports")


@pytest.fixture
def submit() -> Iterator[Callable[..., Submission]]:
    submissions: list[Submission] = []

    def start(job: Job, *arguments: str) -> Submission:
        submissions.append(Submission(job, *arguments))
        return submissions[-1]

    yield start
    for submission in submissions:
        submission.end()


def test_a_submitted_comparison_reports_exactly_what_an_embedded_one_does(
    new_job: Callable[..., Job], submit: Callable[..., Submission], undisturbed: Job
) -> None:
    job = new_job(backbones=["tiny-llama2", "tiny-mistral"], storage=None)
    submission = submit(job, str(job.storage))
    wait_for(lambda: "dashboard is at" in submission.output, "a cluster", alive=submission.process)
    without_token = subprocess.run(
        ["ray", "job", "submit", "--address", submission.address, "--", "touch", str(job.folder / "intruder")],
        env=submission.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert without_token.returncode != 0
    assert "auth" in (without_token.stdout + without_token.stderr).lower()

    assert submission.wait() == 0, submission.output
    assert not (job.folder / "intruder").exists()
    ours, theirs = job.report, undisturbed.report
    assert ours["ranking"] == theirs["ranking"]
    assert ours["verdict"] == theirs["verdict"]
    curves = [[cell[key] for key in ("cell_id", "loss_curve", "status", "attempts")] for cell in ours["cells"]]
    assert curves == [[c[key] for key in ("cell_id", "loss_curve", "status", "attempts")] for c in theirs["cells"]]
    assert (job.storage / "mlflow.db").exists()


@pytest.mark.chaos  # two nodes lose all of their cluster, and the job goes on on another
def test_a_job_whose_cluster_went_down_continues_when_it_is_submitted_to_another(
    new_job: Callable[..., Job], submit: Callable[..., Submission]
) -> None:
    job = new_job(storage=None)
    first = submit(job, str(job.storage))
    wait_for(lambda: job.cells(), "a cell", alive=first.process)
    cell = job.cell("tiny-llama2")
    wait_for(lambda: cell.checkpoint_step, "a checkpoint", alive=first.process)
    first.lose_cluster()
    reached = cell.step
    assert reached < 60

    second = submit(job, str(job.storage))
    assert second.wait() == 0, second.output
    attempt = max(entry["attempt"] for entry in cell.spool())
    (resumed,) = [phase["step"] for phase in cell.phases(attempt) if phase["phase"] == "resumed"]
    assert 0 < resumed <= reached
    assert_every_step_once(sqlite_uri(job), cell.path.name, 60)


def test_a_job_without_storage_is_refused_before_it_starts_anything(
    new_job: Callable[..., Job], submit: Callable[..., Submission]
) -> None:
    job = new_job(storage=None)
    submission = submit(job)

    assert submission.wait() != 0
    assert "exit code 2" in submission.output
    assert "BACKBONE_STORAGE on the cluster" in submission.output
    assert not list(job.folder.glob("**/cells"))
