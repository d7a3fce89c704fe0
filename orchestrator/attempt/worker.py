"""The Ray Train worker around `train_cell`: the only door to Ray Train."""

import logging
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.cell_job import CellJob, worker_file
from orchestrator.errors import OrchestratorError
from orchestrator.results import CellStatus, read_json, write_json
from orchestrator.spec_files.spec import Placement

# Seconds between the Ray Train controller's looks at its workers: how soon it sees that they finished or died.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
# A reclaimed node shows as a dead worker anyway; the watcher would be one more process to start and to poll.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# Seconds that Ray Train lets the surviving workers leave a broken process group before it kills them.
os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")

PROCESS_GROUP_TIMEOUT_S = 600
NODE_LABEL = "ray.io/node-id"  # Ray gives it to every node
# Ray Train gives each try to start the workers a minute. Workers that are bound to the nodes of a lease have their room
# there, unless a node was lost; others may have to wait for nodes that come back.
START_FAILURES, START_FAILURES_BOUND = 20, 1
# A rank that lost the connection to another one waits this long before it fails: Ray then sees who really died first.
PATIENCE_S = 3.0
WORKER_DIED, PEER_LOST, PREEMPTED = "WorkerDiedError", "PeerLostError", "PreemptedError"
FAULTS_OF_THE_MACHINE = (WORKER_DIED, PEER_LOST, PREEMPTED)
PEER_LOST_WORDS = ("gloo/transport", "remote process exited", "Connection reset by peer", "Connection closed by peer")
STATUS_OF_ERROR = {
    "DivergedError": CellStatus.DIVERGED,
    "OutOfMemoryError": CellStatus.OUT_OF_MEMORY,
    "TimedOutError": CellStatus.TIMED_OUT,
    "CancelledError": CellStatus.CANCELLED,
    "ShardingError": CellStatus.INFEASIBLE,
    "CertificateError": CellStatus.UNCERTIFIED,
}


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended early: the first cause, not what the other ranks saw of it."""

    kind: str  # name of the exception class, or one of the three of FAULTS_OF_THE_MACHINE
    message: str
    rank: int | None
    time: float
    retriable: bool

    def repeats(self, other: "Failure") -> bool:
        """Whether a rank gave the very same account twice: a fault of the code or the data, not of the machine."""
        if self.kind in FAULTS_OF_THE_MACHINE or self.rank is None:
            return False
        return (self.kind, self.message) == (other.kind, other.message)

    @property
    def is_charged(self) -> bool:
        """Whether it counts against policy.max_failures: a node that was taken away does not."""
        return self.kind != PREEMPTED

    @property
    def account(self) -> str:
        """The failure in one line."""
        rank = "" if self.rank is None else f" on rank {self.rank}"
        return f"{self.kind}{rank}: {self.message.splitlines()[0]}"

    @property
    def status(self) -> CellStatus:
        return STATUS_OF_ERROR.get(self.kind, CellStatus.FAILED)


def load_torch() -> None:
    """Loads torch in the main thread, before Ray: `run_attempt` is called in threads, and needs it.

    Loaded by a thread, after the libraries that Ray Train and MLflow bring along, MKL's start-up ends the process with
    "Intel oneMKL FATAL ERROR: Cannot load libtorch_cpu.so" (torch 2.13.0 and ray 2.60.0, in drivers that are Ray jobs).
    """
    import torch  # noqa: F401


def run_attempt(job: Any, placement: Placement, nodes: Sequence[str] | None = None) -> Failure | None:
    """Runs one attempt (`CellJob` or `CertifyJob`) on a fresh Ray Train worker group; blocks. None means it finished.

    `nodes`: the Ray node id of each worker, where a lease binds them; Ray chooses otherwise.
    Every attempt is a new Ray Train run with no retries of Ray's own and no reports: the manifest in the cell's folder
    is the truth about checkpoints, and Ray Train's snapshot of them is never read.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from orchestrator.attempt.network import NetworkedTorchConfig

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    resources = {"CPU": float(placement.cpus_per_worker)}
    if placement.gpus_per_worker:
        resources["GPU"] = float(placement.gpus_per_worker)
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"job": job},
        torch_config=NetworkedTorchConfig(
            backend="nccl" if placement.gpus_per_worker else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_S
        ),
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=bool(placement.gpus_per_worker),
            resources_per_worker=resources,
            accelerator_type=placement.accelerator,
            label_selector=None if nodes is None else [{NODE_LABEL: node} for node in nodes],
        ),
        run_config=RunConfig(
            name=f"{job.name}-{job.attempt:03d}-{int(time.time())}",
            storage_path=str(job.folder / "ray"),
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=0,
                controller_failure_limit=START_FAILURES if nodes is None else START_FAILURES_BOUND,
            ),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray Train wraps what workers raise; the workers' own account is in the cell's folder
        return find_first_cause(job.folder, job.attempt, placement.workers, error)
    return None


def find_first_cause(folder: Path, attempt: int, workers: int, error: Exception) -> Failure:
    """Why an attempt ended: the earliest fault that a rank wrote down itself, else a rank that died without a word.

    `error` is what Ray Train raised. Ranks that only lost the connection to another one are heard last.
    """
    found: dict[int, Exception] = getattr(error, "worker_failures", {})
    accounts = _accounts(folder, attempt)
    heard = {account.rank for account in accounts}
    # A rank that could not write its account, because the storage is what failed, still told Ray.
    accounts += [_account(rank, one) for rank, one in found.items() if rank not in heard and not _is_death(one)]
    own = [account for account in accounts if account.kind != PEER_LOST]
    if own:
        return min(own, key=lambda account: account.time)
    echo = min(accounts, key=lambda account: account.time, default=None)
    dead = sorted(rank for rank, one in found.items() if _is_death(one))
    if not dead and echo is not None:
        dead = sorted(set(range(workers)) - {account.rank for account in accounts})
    if not dead:
        return echo or Failure(WORKER_DIED, _start_failed(error), None, time.time(), retriable=True)
    message = "; ".join(_obituary(folder, attempt, rank, found.get(rank)) for rank in dead)
    if echo is not None:
        message += f". Rank {echo.rank} noticed: {echo.message.splitlines()[0]}"
    kind = PREEMPTED if any(_is_preempted(one) for one in found.values()) else WORKER_DIED
    return Failure(kind, message, dead[0], time.time(), retriable=True)


def _accounts(folder: Path, attempt: int) -> list[Failure]:
    files = (folder / "failures").glob(f"attempt-{attempt:03d}-rank-*.json")
    return [Failure(**read_json(file)) for file in files]


def _obituary(folder: Path, attempt: int, rank: int, error: Exception | None) -> str:
    file = worker_file(folder, rank)
    known = read_json(file) if file.exists() else {}
    place = f" (pid {known['pid']} on {known['node']})" if known.get("attempt") == attempt else ""
    cause = "killed, out of memory, or its node lost"
    if error is not None and "low on memory" in str(error):  # the words of Ray's memory monitor
        cause = "Ray killed it because its node ran low on memory; use fewer workers a node or a smaller micro batch"
    return f"rank {rank}{place} died without a word: {cause}"


def _is_death(error: Exception) -> bool:
    """Whether Ray Train found the worker's process gone, as against an exception that the worker raised."""
    return hasattr(error, "health_check_failure")


def _is_preempted(error: Exception) -> bool:
    """Whether Ray says that the process died because its node was taken away."""
    return bool(getattr(getattr(error, "health_check_failure", None), "preempted", False))


def _account(rank: int, error: BaseException) -> Failure:
    """What a rank's unexpected exception says. The cause may lie elsewhere, so another attempt is worth it."""
    frames = "".join(traceback.format_exception(error, limit=-4))
    kind = PEER_LOST if is_peer_lost(error) else type(error).__name__
    return Failure(kind, f"{type(error).__name__}: {error}\n{frames}", rank, time.time(), retriable=True)


def _start_failed(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"the workers could not be started or were lost: {text.splitlines()[0][:300]}: {text.splitlines()[-1][:300]}"


def _train_loop(config: dict[str, Any]) -> None:
    """What every worker runs. Its failure is written to the cell's folder before Ray sees it."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from backbones import registry
    from orchestrator.certificate.gang import certify
    from orchestrator.training.cell import train_cell

    job, rank = config["job"], get_context().get_world_rank()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _write_process_id(job, rank)
    try:
        for module in job.plugins:
            registry.load_plugin(module)
        work = train_cell if isinstance(job, CellJob) else certify
        work(job, get_device())
    except torch.OutOfMemoryError as error:
        remedy = "Lower recipe.micro_batch_size, or raise placement.workers."
        _record(job, Failure("OutOfMemoryError", f"{error}\n{remedy}", rank, time.time(), retriable=False))
        raise
    except OrchestratorError as error:
        kind = type(error).__name__
        _record(job, Failure(kind, str(error), rank, time.time(), retriable=kind not in STATUS_OF_ERROR))
        raise
    except BaseException as error:
        account = _account(rank, error)
        _record(job, account)
        if account.kind == PEER_LOST:
            time.sleep(PATIENCE_S)
        raise


def is_peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because another rank went away, which is not this rank's fault."""
    from torch.distributed import DistNetworkError

    if isinstance(error, DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in PEER_LOST_WORDS)


def _write_process_id(job: Any, rank: int) -> None:
    """Lets a person (or a test) find the process of a rank: `workers/rank-1.json` holds its node and pid."""
    import ray

    node = ray.util.get_node_ip_address()
    write_json(worker_file(job.folder, rank), {"node": node, "pid": os.getpid(), "attempt": job.attempt})


def _record(job: Any, failure: Failure) -> None:
    write_json(job.folder / "failures" / f"attempt-{job.attempt:03d}-rank-{failure.rank}.json", asdict(failure))
