"""Connecting to Ray, what its nodes offer, and asking the autoscaler for more."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from jobs.cluster.dispatcher import NAMESPACE
from jobs.queue.gangs import ANY, Demand, Node
from orchestrator.errors import InputError, ResourcesError
from orchestrator.hardware import GIB
from orchestrator.planning.preflight import IN_RAY_JOB
from orchestrator.spec_files.spec import Placement

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

LABEL = "accelerator_type:"
STARTED_TOO_SLOWLY = "timed out during startup"  # of a busy machine, in a plain Exception


def is_remote() -> bool:
    """Whether this process was told of a cluster: by RAY_ADDRESS, or by running as a Ray job."""
    return IN_RAY_JOB in os.environ or "RAY_ADDRESS" in os.environ


def require_joinable_address() -> None:
    """Raises InputError where RAY_ADDRESS is a job API, which takes submissions but no drivers from outside."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS is {address}, a job API: `backbone submit SPEC` sends a spec there. To run on this machine "
            "alone, unset RAY_ADDRESS"
        )


def find_missing_hardware(placement: Placement) -> str | None:
    """What this machine lacks for one cell when no cluster is given, found without Ray; None when it can run."""
    if is_remote() or not placement.gpus_per_worker:
        return None
    needed, present = placement.fewest * placement.gpus_per_worker, _count_gpus()
    if needed <= present:
        return None
    return (
        f"'placement' asks for {placement.fewest} x {placement.gpus_per_worker} NVIDIA GPU, but this machine has "
        f"{present} and no cluster is given; set RAY_ADDRESS, submit with `backbone submit`, or lower "
        "placement.workers or placement.gpus_per_worker"
    )


def connect(placement: Placement) -> None:
    """Connects to the cluster of this Ray job or of RAY_ADDRESS, else starts Ray on this machine alone.

    Raises InputError where Ray has no use of the token that it was told of, and ResourcesError where this machine is
    too busy to start it.
    """
    import ray

    try:
        _connect(placement)
    except ray.exceptions.AuthenticationError as error:
        said, *_ = str(error).split(". ")
        raise InputError(
            f"{said}. Name a file that holds the cluster's token (on its head: ~/.ray/auth_token), "
            "or, to run on this machine alone, unset RAY_AUTH_TOKEN_PATH and RAY_AUTH_MODE"
        ) from error
    except Exception as error:
        if STARTED_TOO_SLOWLY not in str(error):
            raise
        load = ", ".join(f"{one:.0f}" for one in os.getloadavg())
        raise ResourcesError(
            f"Ray did not start in its time on this machine, whose load is {load} on {os.cpu_count()} cores. Nothing "
            "is lost: run the same command again when less else runs here"
        ) from error


def _connect(placement: Placement) -> None:
    import ray

    if is_remote():
        address = "auto" if IN_RAY_JOB in os.environ else None
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        return
    needed = placement.fewest * placement.cpus_per_worker
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, needed),  # logical: a laptop may run more workers than it has cores
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )


def demand_of(placement: Placement, worlds: tuple[int, ...] = ()) -> Demand:
    """The gang that one cell asks for; `worlds`: how many workers an elastic one may have, the most first."""
    return Demand(
        placement.most,
        placement.gpus_per_worker,
        placement.cpus_per_worker,
        accelerator=placement.accelerator,
        worlds=worlds,
    )


def live_nodes() -> list[Node]:
    """What the nodes that are alive offer, in an order that does not change."""
    import ray

    alive = sorted((one for one in ray.nodes() if one["Alive"]), key=lambda one: one["NodeID"])
    return [_node(one["NodeID"], one["Resources"]) for one in alive]


def largest_cluster(autoscaling_config: Path) -> list[Node]:
    """Every node that the autoscaler may start by its configuration. Raises OSError, KeyError."""
    types = yaml.safe_load(autoscaling_config.expanduser().read_text(encoding="utf-8"))["available_node_types"]
    return [
        replace(_node(f"{name}-{number}", kind.get("resources", {})), accelerator=ANY)
        for name, kind in types.items()
        for number in range(max(kind.get("max_workers", 0), 1))
    ]


class NodeRequest:
    """Tells the autoscaler of every gang that runs or waits: Ray itself sees only those that were launched.

    Does nothing on a cluster without an autoscaler. `standing`: what was asked for before; None, if nobody knows.
    """

    def __init__(self, standing: list[Demand] | None):
        self._demands = standing

    def update(self, demands: list[Demand]) -> None:
        """Asks for the nodes of these, if that is news; of none: takes the request back."""
        from ray.autoscaler.sdk import request_resources

        if demands != self._demands:
            request_resources(bundles=[bundle for demand in demands for bundle in [_bundle(demand)] * demand.workers])
            self._demands = demands


def _bundle(demand: Demand) -> dict[str, float]:
    bundle = {"CPU": float(demand.cpus_per_worker), "GPU": float(demand.gpus_per_worker)}
    if demand.accelerator:
        bundle[f"{LABEL}{demand.accelerator}"] = 0.001
    return {name: amount for name, amount in bundle.items() if amount}


def _node(node_id: str, resources: dict[str, Any]) -> Node:
    accelerator = next((name.removeprefix(LABEL) for name in resources if name.startswith(LABEL)), None)
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    return Node(node_id, gpus, cpus, int(resources.get("memory", 0) // GIB), accelerator)


def _count_gpus() -> int:
    """The GPUs of this machine that this process may use."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listing = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60, check=False).stdout
    present = sum(line.startswith("GPU ") for line in listing.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if visible is None else min(present, len(list(filter(None, visible.split(",")))))
