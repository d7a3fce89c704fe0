"""The Ray Train worker around the stages of a cell: with trainer.py the only door to Ray Train."""

import gc
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.attempt.failure import account_of, record_failure
from orchestrator.attempt.mailbox import Answer, Call, Mailbox
from orchestrator.attempt.watch import watched
from orchestrator.cell_job import CellJob
from orchestrator.layout import CellFolder
from orchestrator.parallel import Mesh
from orchestrator.results import CellStatus, write_json
from orchestrator.spec_files.spec import Placement
from orchestrator.training.pulse import Pulse

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
LOOK_S = 0.05  # between two looks for the next cell
# Failures that every rank meets at the same point, after which each of them can begin another cell.
AGREED = (CellStatus.DIVERGED, CellStatus.TIMED_OUT, CellStatus.UNCERTIFIED, CellStatus.CANCELLED)


def load_torch() -> None:
    """Loads torch in the main thread, before Ray: gangs are run in threads, which need it.

    Loaded by a thread, after the libraries that Ray Train and MLflow bring along, MKL's start-up ends the process with
    "Intel oneMKL FATAL ERROR: Cannot load libtorch_cpu.so" (torch 2.13.0 and ray 2.60.0, in drivers that are Ray jobs).
    """
    import torch  # noqa: F401


def run_gang(folder: Path, name: str, storage: Path, placement: Placement, nodes: Sequence[str] | None = None) -> None:
    """Runs a fresh Ray Train worker group that serves the calls of the mailbox in `folder`; blocks until it ended.

    `storage`: where Ray Train may keep what it wants. `nodes`: the Ray node id of each worker, where a lease binds
    them; Ray chooses otherwise. Raises what Ray Train makes of an error of the workers.

    Every gang is a new Ray Train run with no retries of Ray's own and no reports: the manifest in a cell's folder is
    the truth about checkpoints, and Ray Train's snapshot of them is never read.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from orchestrator.attempt.network import NetworkedTorchConfig
    from orchestrator.attempt.trainer import TrainerWithoutDatasets

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    resources = {"CPU": float(placement.cpus_per_worker)}
    if placement.gpus_per_worker:
        resources["GPU"] = float(placement.gpus_per_worker)
    TrainerWithoutDatasets(
        _serve,
        train_loop_config={"folder": folder},
        torch_config=NetworkedTorchConfig(
            backend="nccl" if placement.gpus_per_worker else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_S
        ),
        scaling_config=ScalingConfig(
            num_workers=placement.most,
            use_gpu=bool(placement.gpus_per_worker),
            resources_per_worker=resources,
            accelerator_type=placement.accelerator,
            label_selector=None if nodes is None else [{NODE_LABEL: node} for node in nodes],
        ),
        run_config=RunConfig(
            name=f"{name}-{int(time.time())}",
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=0,
                controller_failure_limit=START_FAILURES if nodes is None else START_FAILURES_BOUND,
            ),
        ),
    ).fit()


def _serve(config: dict[str, Any]) -> None:
    """What every worker runs: one cell after another, until it is called to an end.

    A failure is written to the cell's folder before anybody else sees it. One that all ranks meet alike leaves the gang
    as sound as before; any other ends it.
    """
    from ray.train import get_context
    from ray.train.torch import get_device

    from backbones import registry
    from orchestrator.attempt.stages import run_cell
    from orchestrator.training.model.compilation import keep_compiled_code

    mailbox, rank, mesh = Mailbox(config["folder"]), get_context().get_world_rank(), Mesh.build(get_device())
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    call = _next_call(mailbox, 1, mesh)
    while (job := call.job) is not None:
        failure, pulse = None, Pulse()
        _write_process_id(job, rank)
        keep_compiled_code(CellFolder(job.folder).storage.compiled)
        try:
            for module in job.plugins:
                registry.load_plugin(module)
            with watched(job, rank, pulse):
                run_cell(job, mesh.device, pulse)
        except BaseException as error:
            failure = account_of(rank, error, pulse.step)
            record_failure(job, failure)
            if failure.is_echo:
                time.sleep(PATIENCE_S)
            if failure.status not in AGREED:
                raise
        gc.collect()  # a model and its optimizer refer to each other
        mesh.barrier()  # the answer speaks for all ranks
        if mesh.is_main:
            mailbox.answer(Answer(call.number, failure))
        call = _next_call(mailbox, call.number + 1, mesh)


def _next_call(mailbox: Mailbox, number: int, mesh: Mesh) -> Call:
    """The call of that number, on every rank; the main rank looks for it."""
    call = None
    while mesh.is_main and (call := mailbox.find_call(number)) is None:
        time.sleep(LOOK_S)
    told = mesh.from_main(call)
    assert told is not None
    return told


def _write_process_id(job: CellJob, rank: int) -> None:
    """Lets a person (or a test) find the process of a rank: `workers/rank-1.json` holds its node and pid."""
    import ray

    node = ray.util.get_node_ip_address()
    write_json(CellFolder(job.folder).worker(rank), {"node": node, "pid": os.getpid(), "attempt": job.attempt})
