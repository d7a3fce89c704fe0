"""A cluster on this machine alone: `backbone up` and `backbone down`."""

from jobs.one_machine.cluster import down, up
from jobs.one_machine.commands import Resources
from jobs.one_machine.ports import Ports

__all__ = ["Ports", "Resources", "down", "up"]
