"""`make chaos`: users keep submitting while a fault strikes every half minute; in the end everything was done once.

    CHAOS_MINUTES=30 CHAOS_SEED=7 make chaos

Prints each fault as it strikes, and its seed: the same seed gives the same faults in the same order, though not at the
same step of a cell. Needs root and `ip`, as the other tests on two nodes.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from product import assert_every_step_once, wait_for
from two_nodes import TwoNodes, assert_nothing_leaks, new_job, runs_of, submit, two_nodes, wait_until_over

MINUTES = float(os.environ.get("CHAOS_MINUTES", "15"))
SEED = int(os.environ.get("CHAOS_SEED", str(time.time_ns() % 10_000)))
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60 * MINUTES + 2400)]

STEPS = 150
PAUSE_S = (10.0, 45.0)  # between two faults
OUTAGE_S = (2.0, 30.0)
OWNERS = ("ada", "bob", "eve")
GIVEN_UP = "drivers in a row died"  # five without a finished cell: a person would submit again


class Faults:
    """What may strike a cluster, drawn by weight."""

    def __init__(self, cluster: TwoNodes, rng: random.Random):
        self._cluster, self._rng = cluster, rng
        self._kinds: list[tuple[Callable[[], object], int]] = [
            (self.worker_process, 4),
            (self.dispatcher, 3),
            (self.driver, 2),
            (self.mlflow_hangs, 2),
            (self.mlflow_dies, 1),
            (self.node, 2),
            (self.head, 1),
        ]

    def strike(self) -> str:
        """One fault, and its name. The cluster is whole again when this returns, but for what must heal by itself."""
        kinds, weights = zip(*self._kinds, strict=True)
        (fault,) = self._rng.choices(kinds, weights)
        return f"{fault.__name__}: {fault()}"

    def worker_process(self) -> object:
        """A rank of some cell."""
        pids = [pid for node in ("head", "worker") for pid in self._cluster.pids(node, "ray::RayTrainWorker")]
        return self._kill(pids)

    def dispatcher(self) -> object:
        return self._cluster.kill("head", "ray::DispatcherActor")

    def driver(self) -> object:
        return self._kill(self._cluster.pids("head", "-m jobs.compare"))

    def mlflow_hangs(self) -> object:
        pids, outage_s = self._cluster.pids("head", "mlflow"), self._rng.uniform(*OUTAGE_S)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(outage_s)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        return f"{outage_s:.0f} s"

    def mlflow_dies(self) -> object:
        outage_s = self._rng.uniform(*OUTAGE_S)
        self._cluster.kill("head", "mlflow")
        time.sleep(outage_s)
        self._cluster.start_mlflow()
        return f"{outage_s:.0f} s"

    def node(self) -> object:
        outage_s = self._rng.uniform(*OUTAGE_S)
        self._cluster.kill_node("worker")
        time.sleep(outage_s)
        self._cluster.start_worker()
        return f"away for {outage_s:.0f} s"

    def head(self) -> object:
        """The control store dies, and with it all that Ray ran; somebody starts the cluster again."""
        self._cluster.kill("head", "gcs_server")
        for node in ("head", "worker"):
            self._cluster.kill_node(node)
        self._cluster.start_ray()
        return "started again"

    def _kill(self, pids: list[int]) -> object:
        if not pids:
            return "there was none"
        pid = self._rng.choice(sorted(pids))
        os.kill(pid, signal.SIGKILL)
        return pid


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path_factory.mktemp("chaos")) as nodes:
        yield nodes


def test_whatever_strikes_every_job_ends_once(cluster: TwoNodes, capsys: pytest.CaptureFixture[str]) -> None:
    rng, began = random.Random(SEED), time.monotonic()
    faults = Faults(cluster, rng)
    job_ids: dict[str, Path] = {}  # and the folder of each

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    say(f"seed {SEED}, {MINUTES:g} minutes, storage {cluster.storage}")
    while time.monotonic() - began < 60 * MINUTES:
        if not unfinished(cluster, job_ids):
            job_ids |= submit_another(cluster, rng, len(job_ids))
            say(f"submitted {list(job_ids)[-1]}")
        time.sleep(rng.uniform(*PAUSE_S))
        say(faults.strike())

    say("no more faults")
    jobs = wait_until_all_succeed(cluster, job_ids, say)
    uri = f"sqlite:///{cluster.storage / 'mlflow.db'}"
    for job_id in job_ids:
        for cell in cluster.ask("status", job_id)["cells"]:
            assert_every_step_once(uri, cell["cell_id"], STEPS)
        assert {run.info.status for run in runs_of(cluster, job_id)} == {"FINISHED"}, job_id
    assert len(jobs) == len(job_ids), "a submission became two jobs"
    assert_nothing_leaks(cluster)
    say(f"{len(job_ids)} jobs, each step of each cell once in MLflow, nothing leaked")


def unfinished(cluster: TwoNodes, job_ids: dict[str, Path]) -> list[str]:
    """Those without a report, looked for in the storage: the cluster may not answer just now."""
    return [job_id for job_id in job_ids if not (cluster.storage / job_id / "report.json").exists()]


def submit_another(cluster: TwoNodes, rng: random.Random, number: int) -> dict[str, Path]:
    """Two comparisons of different people. The first ones also make the certificates, which are kept."""
    submitted = {}
    for seed, owner in enumerate(rng.sample(OWNERS, 2), number):  # every cell is trained by one job alone
        name = f"chaos-{number}-{owner}"
        chosen = rng.sample(["tiny-llama2", "tiny-mistral", "tiny-qwen"], 2)
        job = new_job(cluster, name, STEPS, backbones=chosen, seeds=[seed], policy={"max_failures": 50})
        answer = submit(cluster, job, f"--owner={owner}", f"--priority={rng.randint(0, 3)}")
        submitted[answer["job_id"]] = job.folder
    return submitted


def wait_until_all_succeed(cluster: TwoNodes, job_ids: dict[str, Path], say: Callable[[str], None]) -> list[Any]:
    """A job that the queue gave up, as it says it will, is submitted once more."""

    def settled() -> dict[str, dict[str, Any]] | None:
        time.sleep(10)  # a question is a job on the cluster
        jobs = {job["job_id"]: job for job in cluster.ask("queue")["jobs"]}
        for job_id, job in jobs.items():
            if job["state"] == "FAILED" and GIVEN_UP in job["reason"]:
                say(f"again {job_id}: {job['reason']}")
                cluster.ask("submit", "compare.yaml", cwd=job_ids[job_id])
                return None
        return jobs if all(job["ended_s"] for job in jobs.values()) else None

    jobs = wait_for(settled, "the end of every job", timeout_s=1500)
    wait_until_over(cluster, *job_ids)
    assert {job["state"] for job in jobs.values()} == {"SUCCEEDED"}, jobs
    return list(jobs)
