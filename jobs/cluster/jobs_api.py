"""The only door to Ray Jobs: submitting, watching and ending drivers, over HTTP with the cluster's token."""

import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.cluster.endpoint import find_token, http_get, is_loopback
from orchestrator.errors import ClusterError

LIMIT_S = 10.0
# What a cluster says whose job API answers and whose agent, which runs the jobs, registers some seconds later.
NO_AGENT, AGENT_LIMIT_S = "No available agent to submit job", 60.0
MARK = "BACKBONE-ANSWER "  # begins the line of a job's output that answers a client
TOKEN_HELP = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds the cluster's token (on the head: "
    "~/.ray/auth_token), mode 0600"
)


@dataclass(frozen=True)
class RayJob:
    """What Ray says of a job. `exit_code` is None while it runs, or if it never ran or was killed with its node."""

    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    exit_code: int | None
    message: str

    @property
    def is_over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


class RayJobs:
    """The job API of one cluster. Every method raises ClusterError when it cannot do its work."""

    def __init__(self, address: str, insecure: bool = False):
        self.address = address.rstrip("/")
        require_reachable(self.address, insecure)
        if find_token() is not None:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.WARNING)
        try:
            self._client = JobSubmissionClient(self.address)
        except (ConnectionError, RuntimeError) as error:
            raise ClusterError(f"{self.address}: {error}") from error

    def submit(
        self,
        submission_id: str,
        command: Sequence[str],
        working_dir: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Starts a command on the head. The same id twice is one job, also when the first answer was lost.

        `variables` are seen by everybody who may read the cluster's jobs: never a secret.
        """
        environment: dict[str, Any] = {"env_vars": dict(variables or {})}
        if working_dir is not None:
            environment["working_dir"] = working_dir
        deadline = time.monotonic() + AGENT_LIMIT_S
        while True:
            try:
                self._client.submit_job(
                    entrypoint=shlex.join(command), submission_id=submission_id, runtime_env=environment
                )
                return
            except Exception as error:  # requests' errors, and RuntimeError for whatever the server refused
                if self.find(submission_id) is not None:
                    return
                if NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise ClusterError(f"{self.address} did not take the job: {_explain(error)}") from error
            time.sleep(1.0)

    def find(self, submission_id: str) -> RayJob | None:
        """The job, or None if Ray does not know it."""
        try:
            info = self._client.get_job_info(submission_id)
        except RuntimeError as error:
            if "does not exist" in str(error) or "404" in str(error):
                return None
            raise ClusterError(f"{self.address}: {_explain(error)}") from error
        except OSError as error:
            raise ClusterError(f"{self.address}: {_explain(error)}") from error
        return RayJob(str(info.status.value), info.driver_exit_code, str(info.message or ""))

    def wait(self, submission_id: str, limit_s: float) -> RayJob:
        """Until the job is over."""
        deadline = time.monotonic() + limit_s
        while True:
            job = self.find(submission_id)
            if job is None:
                raise ClusterError(f"{self.address}: the job {submission_id} is gone; is this another cluster?")
            if job.is_over:
                return job
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{self.address}: {submission_id} did not end within {limit_s:.0f} s ({job.status}: "
                    f"{job.message}); `backbone doctor --address {self.address}` looks for the cause"
                )
            time.sleep(0.3)

    def logs(self, submission_id: str) -> str:
        """What the job printed so far."""
        try:
            return str(self._client.get_job_logs(submission_id))
        except (RuntimeError, OSError) as error:
            raise ClusterError(f"{self.address}: no logs of {submission_id}: {_explain(error)}") from error

    def stop(self, submission_id: str) -> None:
        """Ends the job's process. One that is over or unknown is left alone."""
        if (job := self.find(submission_id)) is not None and not job.is_over:
            self._client.stop_job(submission_id)

    def forget(self, submission_id: str) -> None:
        """Takes a job that is over out of Ray's list."""
        self._client.delete_job(submission_id)


def require_reachable(address: str, insecure: bool) -> None:
    """Raises ClusterError unless the cluster answers and takes our token, within seconds.

    A cluster that answers without a token runs whatever anybody sends it, and so does whoever else is on its network.
    """
    if not address.startswith(("http://", "https://")):
        raise ClusterError(
            f"'{address}' is no address of a job API; give http://HOST:8265 (`ray dashboard` forwards it)"
        )
    token = find_token()
    answer = http_get(f"{address}/api/version", token=token, timeout_s=LIMIT_S)
    if answer.status is None:
        raise ClusterError(
            f"nothing answers at {address} ({answer.text}); is the cluster up, and its dashboard forwarded to here?"
        )
    if answer.status == 401:
        raise ClusterError(f"{address} wants a token and none was sent; {TOKEN_HELP}")
    if answer.status == 403:
        raise ClusterError(f"{address} refuses this token; {TOKEN_HELP}")
    if answer.status != 200:
        raise ClusterError(f"{address} answers {answer.status}, which is no Ray dashboard; check host and port")
    if (
        not is_loopback(address)
        and not insecure
        and http_get(f"{address}/api/version", timeout_s=LIMIT_S).status == 200
    ):
        raise ClusterError(
            f"{address} answers without a token: anybody who reaches it can run anything there. Start it with "
            "RAY_AUTH_MODE=token (docs/cluster.md), or say --insecure-cluster"
        )


def _explain(error: Exception) -> str:
    text = str(error)
    if "413" in text:
        return "the working directory is larger than the 100 MiB that Ray takes; list what is large in .rayignore"
    if NO_AGENT in text:
        return (
            f"for {AGENT_LIMIT_S:.0f} s the head had no agent to run it; dashboard_agent.log there says why. Where "
            "another process has its port, start the head with --dashboard-agent-listen-port=0"
        )
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
