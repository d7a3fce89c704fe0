"""How the ranks of a gang share the work: `ParallelDims` for the planner, `Mesh` for the worker.

A rank is one process with one device. Ranks are replicas of shards: every rank reads rows of its own, so replicate x
shard is also how many ways the batch is split. Only `Mesh` needs torch, and only once it is built.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.errors import InputError
from orchestrator.faults import Faults

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

Value = TypeVar("Value")

# What torch says when a collective failed because another rank went away.
PEER_LOST_WORDS = ("gloo/transport", "remote process exited", "Connection reset by peer", "Connection closed by peer")
# What it says once Ray Train has ended all groups of a worker because another one died.
GROUP_ENDED_WORDS = ("Invalid process group specified", "Default process group has not been initialized")


@dataclass(frozen=True)
class ParallelDims:
    """How many ranks stand along each dimension. Raises InputError for what is not available.

    `replicate` groups hold the same shards, `shard` ranks share one copy of the states, `tensor` would split matrices
    and `context` sequences.
    """

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor", "context"):
            if getattr(self, name) != 1:
                raise InputError(
                    f"{name} parallelism is not available: ranks are replicas of shards; leave {name} at 1, and raise "
                    "placement.workers where a model does not fit"
                )

    @property
    def world(self) -> int:
        """Ranks altogether."""
        return self.replicate * self.shard * self.tensor * self.context

    @property
    def data(self) -> int:
        """Ranks that read rows of their own: ways in which the global batch is split."""
        return self.replicate * self.shard

    def rows_of_a_rank(self, global_batch_size: int) -> int:
        """Rows of a step that each data-parallel rank computes; the batch must divide."""
        return global_batch_size // self.data

    def accumulation_steps(self, global_batch_size: int, micro_batch_size: int) -> int:
        """Forward and backward passes of each rank in a step."""
        return self.rows_of_a_rank(global_batch_size) // micro_batch_size


@dataclass(frozen=True)
class Mesh:
    """This rank's place among all of them, and what ranks say to each other. Built once and carried."""

    dims: ParallelDims
    device: "torch.device"
    fsdp: "DeviceMesh"  # (shard,), or (replicate, shard)
    dp_rank: int  # which of the `dims.data` shares of the batch this rank computes
    rank: int
    faults: Faults = field(default_factory=Faults)  # what is to happen to this rank, where somebody asked for it

    @classmethod
    def build(cls, device: "torch.device", dims: ParallelDims | None = None) -> "Mesh":
        """Over all ranks of the process group, as planned, else as shards of one copy; collective.

        Raises InputError where plan and process group differ in size.
        """
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        world = dist.get_world_size()
        dims = ParallelDims(shard=world) if dims is None else dims
        if world != dims.world:
            raise InputError(f"{world} ranks run, but {dims} needs {dims.world}")
        names = ("shard",) if dims.replicate == 1 else ("replicate", "shard")
        fsdp = init_device_mesh(device.type, tuple(getattr(dims, name) for name in names), mesh_dim_names=names)
        return cls(dims, device, fsdp, dist.get_rank(), dist.get_rank())

    @property
    def dp_size(self) -> int:
        return self.dims.data

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @property
    def is_first_on_node(self) -> bool:
        """Whether this rank does what is done once on each machine."""
        import torch.distributed as dist

        return bool(dist.get_node_local_rank(fallback_rank=0) == 0)

    def barrier(self) -> None:
        """Waits for every rank."""
        import torch.distributed as dist

        dist.barrier()

    def from_main(self, value: Value) -> Value:
        """The main rank's plain value, on every rank. Collective."""
        import torch.distributed as dist

        told: list[Any] = [value]
        dist.broadcast_object_list(told)
        spoken: Value = told[0]
        return spoken

    def gathered(self, value: Value) -> list[Value]:
        """Every rank's plain value, by rank, on every rank. Collective."""
        import torch.distributed as dist

        values: list[Any] = [None] * self.dims.world
        dist.all_gather_object(values, value)
        return values

    def sum_over_data(self, tensor: "torch.Tensor") -> None:
        """Adds a tensor up, in place, over the ranks that read rows of their own. Collective."""
        import torch.distributed as dist

        dist.all_reduce(tensor)

    def maximum(self, tensor: "torch.Tensor") -> None:
        """The largest over all ranks, in place. Collective."""
        import torch.distributed as dist

        dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def minimum(self, tensor: "torch.Tensor") -> None:
        """The least over all ranks, in place. Collective."""
        import torch.distributed as dist

        dist.all_reduce(tensor, dist.ReduceOp.MIN)


def is_peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because another rank went away, which is not this rank's fault."""
    from torch.distributed import DistNetworkError

    if isinstance(error, DistNetworkError):
        return True
    said = {RuntimeError: PEER_LOST_WORDS, ValueError: GROUP_ENDED_WORDS}
    return any(
        isinstance(error, kind) and words in str(error) for kind, all_words in said.items() for words in all_words
    )
