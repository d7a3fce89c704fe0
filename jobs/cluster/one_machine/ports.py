"""Which ports the services listen on: the usual ones where they are free."""

import random
import socket
from dataclasses import dataclass

from orchestrator.errors import InputError, ResourcesError

RAY_WORKERS = range(10002, 20000)  # Ray gives these to its workers, and refuses to start with another service in there
UNUSUAL = range(20000, 32000)  # below the range from which the kernel gives ports to clients


@dataclass(frozen=True)
class Ports:
    """What a user may choose; None: the usual port, or another one where that is taken."""

    ray: int | None = None
    dashboard: int | None = None
    mlflow: int | None = None


@dataclass(frozen=True)
class ChosenPorts:
    """Every port with a number that a user or a second cluster could meet; Ray's agent takes any."""

    ray: int
    dashboard: int
    mlflow: int
    client: int


def choose_ports(wanted: Ports) -> ChosenPorts:
    """Raises InputError for a port that Ray cannot use, ResourcesError for one that is taken."""
    for option, port in (
        ("--port", wanted.ray),
        ("--dashboard-port", wanted.dashboard),
        ("--mlflow-port", wanted.mlflow),
    ):
        if port is not None:
            check_port(option, port)
    taken: set[int] = {port for port in (wanted.ray, wanted.dashboard, wanted.mlflow) if port is not None}
    return ChosenPorts(
        ray=wanted.ray or _free_port(6379, taken),
        dashboard=wanted.dashboard or _free_port(8265, taken),
        mlflow=wanted.mlflow or _free_port(5000, taken),
        client=_free_port(10001, taken),
    )


def choose_mlflow_port(wanted: int | None) -> int:
    """The port of a server beside no cluster. Raises as `choose_ports` does."""
    if wanted is not None:
        check_port("--port", wanted)
    return wanted or _free_port(5000, set())


def check_port(option: str, port: int) -> None:
    """Raises InputError where Ray cannot use it, ResourcesError where something listens on it."""
    if port in RAY_WORKERS or not 1024 <= port <= 65535:
        raise InputError(
            f"{option} is {port}, but Ray's workers use {RAY_WORKERS[0]} to {RAY_WORKERS[-1]} and the system those "
            f"below 1024; choose another, such as {UNUSUAL[0]}"
        )
    if not _is_free(port):
        raise ResourcesError(f"{option} is {port}, where something else listens; choose another port, or leave it out")


def _free_port(usual: int, taken: set[int]) -> int:
    for port in (usual, *random.sample(UNUSUAL, 100)):
        if port not in taken and _is_free(port):
            taken.add(port)
            return port
    raise ResourcesError(f"of 100 ports in {UNUSUAL[0]} to {UNUSUAL[-1]} none is free; end what listens there")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections linger; listeners still count
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
