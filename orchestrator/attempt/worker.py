"""The Ray Train worker around the stages of a cell: the only door to Ray Train."""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from orchestrator.attempt.failure import Failure, account_of, find_first_cause, record_failure
from orchestrator.cell_job import CellJob
from orchestrator.errors import OutOfMemoryError
from orchestrator.layout import CellFolder
from orchestrator.results import write_json
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


def load_torch() -> None:
    """Loads torch in the main thread, before Ray: `run_attempt` is called in threads, and needs it.

    Loaded by a thread, after the libraries that Ray Train and MLflow bring along, MKL's start-up ends the process with
    "Intel oneMKL FATAL ERROR: Cannot load libtorch_cpu.so" (torch 2.13.0 and ray 2.60.0, in drivers that are Ray jobs).
    """
    import torch  # noqa: F401


def run_attempt(job: CellJob, placement: Placement, nodes: Sequence[str] | None = None) -> Failure | None:
    """Runs one attempt on a fresh Ray Train worker group; blocks. None means it finished.

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
            storage_path=str(CellFolder(job.folder).ray),
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


def _train_loop(config: dict[str, Any]) -> None:
    """What every worker runs. Its failure is written to the cell's folder before Ray sees it."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from backbones import registry
    from orchestrator.attempt.stages import run_cell

    job, rank = config["job"], get_context().get_world_rank()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _write_process_id(job, rank)
    try:
        for module in job.plugins:
            registry.load_plugin(module)
        run_cell(job, get_device())
    except torch.OutOfMemoryError as error:
        remedy = "Lower recipe.micro_batch_size, or raise placement.workers."
        record_failure(job, account_of(rank, OutOfMemoryError(f"{error}\n{remedy}")))
        raise
    except BaseException as error:
        account = account_of(rank, error)
        record_failure(job, account)
        if account.is_echo:
            time.sleep(PATIENCE_S)
        raise


def _write_process_id(job: CellJob, rank: int) -> None:
    """Lets a person (or a test) find the process of a rank: `workers/rank-1.json` holds its node and pid."""
    import ray

    node = ray.util.get_node_ip_address()
    write_json(CellFolder(job.folder).worker(rank), {"node": node, "pid": os.getpid(), "attempt": job.attempt})
