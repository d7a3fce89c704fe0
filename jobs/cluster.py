"""Connecting to Ray, and how many cells fit at once."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from orchestrator.errors import ResourcesError
from orchestrator.preflight import IN_RAY_JOB
from orchestrator.spec import Placement

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray. `embedded`: started by this process on this machine, and stopped with it."""

    embedded: bool


def is_remote() -> bool:
    """Whether this process was told of a cluster: by RAY_ADDRESS, or by running as a Ray job."""
    return IN_RAY_JOB in os.environ or "RAY_ADDRESS" in os.environ


def find_missing_hardware(placement: Placement) -> str | None:
    """What this machine lacks for one cell when no cluster is given, found without Ray; None when it can run."""
    if is_remote() or not placement.gpus_per_worker:
        return None
    needed, present = placement.workers * placement.gpus_per_worker, _count_gpus()
    if needed <= present:
        return None
    return (
        f"'placement' asks for {placement.workers} x {placement.gpus_per_worker} NVIDIA GPU, but this machine has "
        f"{present} and no cluster is given; set RAY_ADDRESS, submit with `ray job submit`, or lower "
        "placement.workers or placement.gpus_per_worker"
    )


def connect(placement: Placement) -> Cluster:
    """Connects to the cluster of this Ray job or of RAY_ADDRESS, else starts Ray on this machine alone."""
    import ray

    if is_remote():
        ray.init(address="auto" if IN_RAY_JOB in os.environ else None, log_to_driver=False, logging_level="ERROR")
        return Cluster(embedded=False)
    needed = placement.workers * placement.cpus_per_worker
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, needed),  # logical: a laptop may run more workers than it has cores
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    return Cluster(embedded=True)


def concurrent_cells(placement: Placement) -> int:
    """How many cells the cluster's nodes could hold at once if they held nothing else."""
    import ray

    workers = sum(_workers_on(node["Resources"], placement) for node in ray.nodes() if node["Alive"])
    return workers // placement.workers


def request_nodes(placements: list[Placement]) -> None:
    """Tells the autoscaler of every cell that runs or waits: Ray itself sees only the ones that were launched.

    An empty list takes the request back. Does nothing on a cluster without an autoscaler.
    """
    if not is_remote():
        return
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[bundle for placement in placements for bundle in _bundles(placement)])


def check_capacity(placement: Placement, waited_s: float, limit_s: float) -> None:
    """Raises ResourcesError once a cell that fits nowhere has waited for the autoscaler long enough."""
    if waited_s < limit_s:
        return
    import ray

    total = ray.cluster_resources()
    raise ResourcesError(
        f"a cell needs {placement.workers} workers x ({placement.cpus_per_worker} CPU, {placement.gpus_per_worker} GPU"
        f"{', ' + placement.accelerator if placement.accelerator else ''}), but after {waited_s:.0f} s the cluster has "
        f"{total.get('CPU', 0):g} CPU and {total.get('GPU', 0):g} GPU. Add nodes, or lower placement.workers."
    )


def _bundles(placement: Placement) -> list[dict[str, float]]:
    bundle = {"CPU": float(placement.cpus_per_worker), "GPU": float(placement.gpus_per_worker)}
    if placement.accelerator:
        bundle[f"accelerator_type:{placement.accelerator}"] = 0.001
    return [{name: amount for name, amount in bundle.items() if amount}] * placement.workers


def _workers_on(resources: dict[str, float], placement: Placement) -> int:
    if placement.accelerator and f"accelerator_type:{placement.accelerator}" not in resources:
        return 0
    by_cpu = int(resources.get("CPU", 0) // placement.cpus_per_worker)
    if not placement.gpus_per_worker:
        return by_cpu
    return min(by_cpu, int(resources.get("GPU", 0) // placement.gpus_per_worker))


def _count_gpus() -> int:
    """The GPUs of this machine that this process may use."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listing = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60, check=False).stdout
    present = sum(line.startswith("GPU ") for line in listing.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if visible is None else min(present, len(list(filter(None, visible.split(",")))))
