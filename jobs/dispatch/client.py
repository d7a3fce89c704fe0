"""The queue from a laptop: `QueueClient` has the verbs of the command line, over Ray's job API and with its token."""

import getpass
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from jobs.cluster.jobs_api import MARK, RayJobs
from jobs.dispatch.wire import BenchmarkQuestion, JobStatus, Question, QueueListing, ScheduleFacts, SyncAnswer
from jobs.driver.kinds.benchmark import MEASURED, WARM_UP, new_occurrence
from orchestrator.errors import ClusterError, InputError

ANSWER_LIMIT_S = 180.0
LOOK_S = 2.0
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
OVER = ("SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED")


@dataclass(frozen=True)
class Benchmark:
    """Measures the speed of a comparison's backbones instead of running it: over how many steps, after how many."""

    warm_up: int = WARM_UP
    measured: int = MEASURED
    occurrence: str = field(default_factory=new_occurrence)  # the same again is the same job


@dataclass(frozen=True)
class Submission:
    """A spec to submit or to schedule, and the folder that travels with it: this one if the spec is inside."""

    spec: Path
    priority: int | None = None  # else the spec's
    owner: str | None = None  # else the user
    plugins: tuple[str, ...] = ()
    working_dir: Path | None = None
    skip_infeasible: bool = False
    certificate: bool = True
    benchmark: Benchmark | None = None
    decide: bool = False  # seeds are added until it is decided
    max_seeds: int | None = None  # else the spec's
    keep_finished: bool = False  # takes over, marked, what learned from examples that another backbone drops

    @property
    def folder(self) -> Path:
        """Raises InputError where spec and folder do not fit."""
        here = self.spec.resolve()
        if not here.is_file():
            raise InputError(f"{self.spec}: no such file; give the path of a spec")
        folder = (self.working_dir or Path.cwd()).resolve()
        if here.is_relative_to(folder):
            return folder
        if self.working_dir is not None:
            raise InputError(
                f"{self.spec} is not inside --working-dir {self.working_dir}; choose a folder that holds it"
            )
        return here.parent

    @property
    def question(self) -> Question:
        """What the gateway plans."""
        question: Question = {
            "spec": str(self.spec.resolve().relative_to(self.folder)),
            "priority": self.priority,
            "owner": self.owner or getpass.getuser(),
            "plugins": list(self.plugins),
            "skip_infeasible": self.skip_infeasible,
            "certificate": self.certificate,
        }
        if self.benchmark is not None:
            question["benchmark"] = cast(BenchmarkQuestion, asdict(self.benchmark))
        if self.keep_finished:
            question["keep_finished"] = True
        if self.decide:
            question["decide"] = {"max_seeds": self.max_seeds}
        return question


class QueueClient:
    """One cluster's queue. Raises ClusterError when it cannot be reached, InputError for what it refuses."""

    def __init__(self, address: str | None = None, insecure: bool = False):
        self._jobs = RayJobs(address or default_address(), insecure)

    def submit(self, submission: Submission) -> JobStatus:
        """Queues a spec with the folder it stands in. The same spec again is the same job."""
        job: JobStatus = self.ask("submit", submission.question, str(submission.folder))
        return job

    def queue(self) -> QueueListing:
        """Every job, the leases that are held, the nodes."""
        listing: QueueListing = self._about("queue")
        return listing

    def status(self, job_id: str) -> JobStatus:
        """One job with its cells and its last events."""
        job: JobStatus = self._about("status", job_id)
        return job

    def stop(self, job_id: str) -> JobStatus:
        """Stops a job at a checkpoint; submitting it again continues it."""
        job: JobStatus = self._about("stop", job_id, f"stopped by {getpass.getuser()}")
        return job

    def cancel(self, job_id: str) -> JobStatus:
        """Ends a job at once; submitting it again continues from its last checkpoints."""
        job: JobStatus = self._about("cancel", job_id, f"cancelled by {getpass.getuser()}")
        return job

    def sync(self) -> SyncAnswer:
        """Gives MLflow what it lacks of jobs that are over, at once instead of at the dispatcher's next try."""
        answer: SyncAnswer = self._about("sync")
        return answer

    def add_schedule(self, name: str, submission: Submission, cron: str, timezone: str, **rules: str) -> ScheduleFacts:
        """Submits the spec on a clock; `rules` are grace, overlap and catch_up (docs/schedules.md)."""
        if submission.benchmark is not None:
            raise InputError("a benchmark cannot be put on a clock; submit it, or schedule the comparison itself")
        question = {"name": name, "cron": cron, "timezone": timezone, "rules": rules, **submission.question}
        added: ScheduleFacts = self.ask("schedule_add", question, str(submission.folder))
        return added

    def schedules(self) -> list[ScheduleFacts]:
        """Every schedule with its next tick."""
        answer: list[ScheduleFacts] = self._about("schedule", "all")
        return answer

    def schedule(self, verb: str, name: str) -> ScheduleFacts:
        """`show`, `pause`, `resume`, `remove` or `run_now`."""
        answer: ScheduleFacts = self._about("schedule", verb, name)
        return answer

    def logs(self, job_id: str) -> str:
        """What the job's latest driver printed."""
        driver = self.status(job_id)["driver"]
        return self._jobs.logs(driver) if driver else ""

    def follow(self, job_id: str) -> Iterator[str]:
        """What its drivers print, piece by piece, until the job is over."""
        printed: dict[str, int] = {}  # characters, by driver
        while True:
            job = self.status(job_id)
            if job["driver"] and self._jobs.find(job["driver"]) is not None:
                yield from self._follow_driver(job["driver"], printed)
            if job["state"] in OVER:
                return
            time.sleep(LOOK_S)

    def wait(self, job_id: str) -> JobStatus:
        """Until the job is over; its status then."""
        for _ in self.follow(job_id):
            pass
        return self.status(job_id)

    def _follow_driver(self, driver: str, printed: dict[str, int]) -> Iterator[str]:
        while True:
            job = self._jobs.find(driver)
            text = self._jobs.logs(driver)
            if len(text) > printed.get(driver, 0):
                yield text[printed.get(driver, 0) :]
                printed[driver] = len(text)
            if job is None or job.is_over:
                return
            time.sleep(LOOK_S)

    def _about(self, verb: str, *arguments: str) -> Any:
        return self.ask(verb, {"arguments": list(arguments)})

    def ask(self, verb: str, question: Mapping[str, object], working_dir: str | None = None) -> Any:
        """One question as one small job. Asking twice what changes something changes it once."""
        name = f"backbone-{verb}-{uuid.uuid4().hex[:12]}"
        self._jobs.submit(name, ["python", "-m", "jobs.dispatch.gateway", verb, json.dumps(question)], working_dir)
        end = self._jobs.wait(name, ANSWER_LIMIT_S)
        text = self._jobs.logs(name) if end.exit_code is not None else ""
        line = next((line for line in reversed(text.splitlines()) if line.startswith(MARK)), None)
        if line is None:
            last = "\n".join((text or end.message).strip().splitlines()[-5:])
            raise ClusterError(f"the cluster could not answer ({end.status}):\n{last}")
        self._jobs.forget(name)
        answer = json.loads(line.removeprefix(MARK))
        if isinstance(answer, dict) and "error" in answer:
            raise (InputError if answer["exit_code"] == 2 else ClusterError)(answer["error"])
        return answer


def default_address() -> str:
    """RAY_API_SERVER_ADDRESS, or RAY_ADDRESS where that is a URL, else this machine's dashboard."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if (address := os.environ.get(name, "")).startswith("http"):
            return address
    return DEFAULT_ADDRESS
