"""The Ray Train worker around `train_cell`: the only door to Ray Train."""

import logging
import os
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.results import CellStatus, read_json, write_json
from orchestrator.spec import Placement

# Seconds between the Ray Train controller's looks at its workers: how soon it sees that they finished or died.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
# A reclaimed node shows as a dead worker anyway; the watcher would be one more process to start and to poll.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# Seconds that Ray Train lets the surviving workers leave a broken process group before it kills them.
os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")

PROCESS_GROUP_TIMEOUT_S = 600
# A rank that lost the connection to another one waits this long before it fails: Ray then sees who really died first.
PATIENCE_S = 3.0
WORKER_DIED, PEER_LOST, PREEMPTED = "WorkerDiedError", "PeerLostError", "PreemptedError"
PEER_LOST_WORDS = ("gloo/transport", "remote process exited", "Connection reset by peer", "Connection closed by peer")
STATUS_OF_ERROR = {
    "DivergedError": CellStatus.DIVERGED,
    "OutOfMemoryError": CellStatus.OUT_OF_MEMORY,
    "TimedOutError": CellStatus.TIMED_OUT,
    "CancelledError": CellStatus.CANCELLED,
    "ShardingError": CellStatus.INFEASIBLE,
}


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended early, as the first rank that failed saw it."""

    kind: str  # name of the exception class
    message: str
    rank: int | None
    time: float
    retriable: bool

    def repeats(self, other: "Failure") -> bool:
        """Whether a rank gave the very same account twice: a fault of the code or the data, not of the machine."""
        return self.rank is not None and (self.kind, self.message) == (other.kind, other.message)

    @property
    def status(self) -> CellStatus:
        return STATUS_OF_ERROR.get(self.kind, CellStatus.FAILED)


def run_attempt(job: Any, placement: Placement) -> Failure | None:
    """Runs one attempt (`training.CellJob`) on a fresh Ray Train worker group; blocks. None means it finished.

    Every attempt is a new Ray Train run with no retries of Ray's own and no reports: the manifest in the cell's folder
    is the truth about checkpoints, and Ray Train's snapshot of them is never read.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    resources = {"CPU": float(placement.cpus_per_worker)}
    if placement.gpus_per_worker:
        resources["GPU"] = float(placement.gpus_per_worker)
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(
            backend="nccl" if placement.gpus_per_worker else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_S
        ),
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=bool(placement.gpus_per_worker),
            resources_per_worker=resources,
            accelerator_type=placement.accelerator,
        ),
        run_config=RunConfig(
            name=f"{job.cell.cell_id}-{job.attempt:03d}-{int(time.time())}",
            storage_path=str(job.folder / "ray"),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray Train wraps what workers raise; the workers' own account is in the cell's folder
        return find_failure(job.folder, job.attempt) or Failure(
            "WorkerDiedError", _first_line(error), None, time.time(), retriable=True
        )
    return None


def find_failure(folder: Path, attempt: int) -> Failure | None:
    """The earliest failure that a rank of this attempt wrote down: later ones are its echoes."""
    files = (folder / "failures").glob(f"attempt-{attempt:03d}-rank-*.json")
    failures = [Failure(**read_json(file)) for file in files]
    return min(failures, key=lambda failure: failure.time, default=None)


def _train_loop(config: dict[str, Any]) -> None:
    """What every worker runs. Its failure is written to the cell's folder before Ray sees it."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from orchestrator.training import train_cell

    job, rank = config["job"], get_context().get_world_rank()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _write_process_id(job, rank)
    try:
        train_cell(job, get_device())
    except torch.OutOfMemoryError as error:
        _record(
            job, rank, "OutOfMemoryError", f"{error}\nLower recipe.micro_batch_size, or raise placement.workers.", False
        )
        raise
    except OrchestratorError as error:
        _record(job, rank, type(error).__name__, str(error), type(error).__name__ not in STATUS_OF_ERROR)
        raise
    except BaseException as error:
        message = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
        _record(job, rank, type(error).__name__, message, True)
        raise


def _write_process_id(job: Any, rank: int) -> None:
    """Lets a person (or a test) find the process of a rank: `workers/rank-1.json` holds its node and pid."""
    import ray

    node = ray.util.get_node_ip_address()
    write_json(job.folder / "workers" / f"rank-{rank}.json", {"node": node, "pid": os.getpid(), "attempt": job.attempt})


def _record(job: Any, rank: int, kind: str, message: str, retriable: bool) -> None:
    failure = Failure(kind, message, rank, time.time(), retriable)
    write_json(job.folder / "failures" / f"attempt-{job.attempt:03d}-rank-{rank}.json", asdict(failure))


def _first_line(error: Exception) -> str:
    return f"a worker died without a word (killed, or its node lost): {str(error).strip().splitlines()[0][:300]}"
