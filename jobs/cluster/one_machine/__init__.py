"""A cluster on this machine alone: `backbone up` and `backbone down`."""

from jobs.cluster.one_machine.cluster import down, up
from jobs.cluster.one_machine.commands import Resources
from jobs.cluster.one_machine.ports import Ports

__all__ = ["Ports", "Resources", "down", "up"]
