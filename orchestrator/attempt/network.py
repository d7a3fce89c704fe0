"""Which network interface the workers of one cell talk over, when they stand on several nodes."""

import os
import socket
from dataclasses import dataclass
from typing import Any

import psutil
from ray.train.torch import TorchConfig

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

TorchBackend: Any = TorchConfig().backend_cls


class NetworkedTorchBackend(TorchBackend):
    """Names each worker's interface before the process group is made.

    Left alone, gloo resolves the host's name, which many machines map to 127.0.0.1: no other node reaches that.
    """

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if len(set(worker_group.execute(node_address))) > 1:
            worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class NetworkedTorchConfig(TorchConfig):
    """Ray Train's process group, over the interface that carries the node's address in the Ray cluster."""

    @property
    def backend_cls(self) -> type:
        return NetworkedTorchBackend


def node_address() -> str:
    """This node's address, as the other nodes of the cluster know it."""
    import ray

    return str(ray.util.get_node_ip_address())


def choose_interface() -> None:
    """Sets the variables of gloo and NCCL, unless the node's administrator did."""
    name = interface_of(node_address(), _interfaces())
    for variable in VARIABLES:
        if name is not None:
            os.environ.setdefault(variable, name)


def interface_of(address: str, interfaces: dict[str, list[str]]) -> str | None:
    """The interface that has an address, or None."""
    return next((name for name, addresses in interfaces.items() if address in addresses), None)


def _interfaces() -> dict[str, list[str]]:
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [one.address.split("%")[0] for one in addresses if one.family in families]
        for name, addresses in psutil.net_if_addrs().items()
    }
