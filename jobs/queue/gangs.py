"""Which nodes a gang goes to: pure bin-packing, node by node, a whole gang at once or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

Placement = tuple[tuple[str, int], ...]  # (node id, workers there), in the order of the nodes


@dataclass(frozen=True)
class Demand:
    """A gang of identical bundles, one per worker; a bundle never spans two nodes. Memory is in whole GiB.

    `worlds`: of an elastic gang, every number of workers that would do, the largest first.
    """

    workers: int
    gpus_per_worker: int = 1
    cpus_per_worker: int = 0
    memory_gib_per_worker: int = 0
    accelerator: str | None = None
    worlds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1 or min(self.bundle) < 0 or not any(self.bundle):
            raise ValueError(f"a gang needs at least one worker, and each worker at least one resource; got {self}")

    @cached_property
    def bundle(self) -> tuple[int, int, int]:
        """GPUs, CPUs and GiB of one worker."""
        return self.gpus_per_worker, self.cpus_per_worker, self.memory_gib_per_worker

    @cached_property
    def gpus(self) -> int:
        return self.workers * self.gpus_per_worker

    def fitted(self, nodes: "Sequence[Node]", gpu_quota: int | None = None) -> "Demand":
        """With as many workers as these nodes could hold if they were empty, within a quota; else the fewest."""
        if not self.worlds:
            return self
        room, sizes = Room(nodes), [replace(self, workers=workers) for workers in self.worlds]
        allowed = (one for one in sizes if gpu_quota is None or one.gpus <= gpu_quota)
        return next((one for one in allowed if room.place(one) is not None), sizes[-1])

    @cached_property
    def wants_only_gpus(self) -> bool:
        return not self.cpus_per_worker and not self.memory_gib_per_worker

    def __str__(self) -> str:
        parts = zip(self.bundle, ("GPU", "CPU", "GiB"))
        bundle = ", ".join(f"{amount} {unit}" for amount, unit in parts if amount)
        return f"{self.workers} x {{{bundle}{f', {self.accelerator}' if self.accelerator else ''}}}"


ANY = "any"  # the accelerator of a machine that does not exist yet: its label is known once it runs


@dataclass(frozen=True)
class Node:
    """What one machine offers to workers."""

    node_id: str
    gpus: int
    cpus: int = 0
    memory_gib: int = 0
    accelerator: str | None = None


class Room:
    """What is free on every node. Mutable: each decision makes its own."""

    def __init__(self, nodes: Sequence[Node]):
        self._accelerators = [node.accelerator for node in nodes]
        self._ids = [node.node_id for node in nodes]
        self._index = {node.node_id: index for index, node in enumerate(nodes)}
        self._free = [[node.gpus, node.cpus, node.memory_gib] for node in nodes]
        self.gpus = sum(node.gpus for node in nodes)

    def copy(self) -> "Room":
        other = object.__new__(Room)
        other._accelerators, other._ids, other._index = self._accelerators, self._ids, self._index
        other._free = [free[:] for free in self._free]
        other.gpus = self.gpus
        return other

    def count(self, demand: Demand) -> int:
        """How many workers of this kind fit, on all nodes together."""
        return sum(count for count, _ in self._all_slots(demand))

    def place(self, demand: Demand) -> Placement | None:
        """The fewest nodes: the tightest that holds all that is left, else the emptiest filled up; ties by order."""
        if demand.gpus > self.gpus:
            return None
        slots = self._all_slots(demand)
        if sum(count for count, _ in slots) < demand.workers:
            return None
        slots.sort(key=lambda one: (-one[0], one[1]))
        left, taken, position = demand.workers, [], 0
        # The sum above is enough for the gang, so this ends before the nodes do.
        while slots[position][0] < left:
            taken.append((slots[position][1], slots[position][0]))
            left -= slots[position][0]
            position += 1
        tightest = min(one for one in slots[position:] if one[0] >= left)
        taken.append((tightest[1], left))
        return tuple((self._ids[index], workers) for index, workers in sorted(taken))

    def take(self, demand: Demand, placement: Placement, counted: Demand | None = None) -> int:
        """Books a placement; returns by how many the workers of kind `counted` that fit became fewer."""
        return -self._change(demand, placement, -1, counted)

    def give(self, demand: Demand, placement: Placement, counted: Demand | None = None) -> int:
        """Frees a placement; returns by how many the workers of kind `counted` that fit became more."""
        return self._change(demand, placement, 1, counted)

    def _change(self, demand: Demand, placement: Placement, sign: int, counted: Demand | None) -> int:
        gained = 0
        for node_id, workers in placement:
            index = self._index.get(node_id)
            if index is None:
                continue  # the node has left the cluster
            # Counted before and after: a worker of `counted` may be of another size, and fit into what was left over.
            gained -= self._slots(index, counted) if counted else 0
            free, times = self._free[index], sign * workers
            free[0] += times * demand.gpus_per_worker
            free[1] += times * demand.cpus_per_worker
            free[2] += times * demand.memory_gib_per_worker
            self.gpus += times * demand.gpus_per_worker
            gained += self._slots(index, counted) if counted else 0
        return gained

    def _all_slots(self, demand: Demand) -> list[tuple[int, int]]:
        """(how many workers fit, on which node) of the nodes where any do."""
        if demand.wants_only_gpus and demand.accelerator is None:  # the same in one step; most gangs are of this kind
            size = demand.gpus_per_worker
            return [(free[0] // size, index) for index, free in enumerate(self._free) if free[0] >= size]
        return [(count, index) for index in range(len(self._free)) if (count := self._slots(index, demand))]

    def _slots(self, index: int, demand: Demand) -> int:
        if demand.accelerator is not None and self._accelerators[index] not in (demand.accelerator, ANY):
            return 0
        free = self._free[index]
        if demand.wants_only_gpus:
            return free[0] // demand.gpus_per_worker if free[0] > 0 else 0
        return max(0, min(have // want for have, want in zip(free, demand.bundle) if want))
