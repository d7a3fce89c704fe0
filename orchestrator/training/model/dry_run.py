"""The wrap of a backbone over a world that does not exist: what each rank would hold, read off the sharded model.

The model is on the meta device, the process group only says that it has so many ranks. Everything between is what a
gang does: the recipe's adaptation, FSDP around each decoder layer, the optimizer over what learns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from backbones.errors import BackboneError
from backbones.laid_out import lay_out
from backbones.spec import BackboneSpec
from orchestrator.errors import OrchestratorError
from orchestrator.parallel import Mesh, ParallelDims
from orchestrator.spec_files.spec import Recipe
from orchestrator.training.model.optimizer import build_optimizers
from orchestrator.training.model.sharding import adapt_and_shard, found_contract


@dataclass(frozen=True)
class Unit:
    """What FSDP gathers at once. Bytes are those of the gathered parameters, in the dtype that computes."""

    name: str
    gathered_bytes: int


@dataclass(frozen=True)
class Wrap:
    """A backbone as rank 0 would hold it: no rank holds more. Shards are counted with FSDP's padding."""

    backbone_id: str
    units: tuple[Unit, ...]
    decoder_layers: int
    embedding_rows: int
    parameter_bytes: int  # of this rank's shards: the master weights
    gradient_bytes: int  # of what learns, in the dtype of the master weights
    optimizer_bytes: int  # its state
    contract: dict[str, Any]

    @property
    def largest(self) -> Unit:
        return max(self.units, key=lambda unit: unit.gathered_bytes)


def wrap_all(specs: tuple[BackboneSpec, ...], recipe: Recipe, dims: ParallelDims) -> Iterator[Wrap | Exception]:
    """Wraps one backbone after another in a world of `dims.world` ranks; yields what each became, or why it failed."""
    with fake_world(dims.world):
        mesh = Mesh.build(torch.device("cpu"), dims)
        for spec in specs:
            try:
                yield wrap(spec, recipe, mesh)
            except (OrchestratorError, BackboneError) as error:
                yield error


@contextmanager
def fake_world(ranks: int) -> Iterator[None]:
    """A process group whose collectives move nothing, seen from rank 0."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrap(spec: BackboneSpec, recipe: Recipe, mesh: Mesh) -> Wrap:
    """Lays a backbone out, adapts and shards it as a gang would. Raises ShardingError, AdaptationError, LayoutError."""
    backbone = lay_out(spec)
    layers = adapt_and_shard(backbone, recipe, mesh.fsdp)
    found = tuple(_units(backbone.llm))
    shards = [parameter for _, parameters in found for parameter in parameters]
    learning = [shard for shard in shards if shard.sharded_param.requires_grad]
    optimizers = build_optimizers(backbone.llm, recipe.optimizer)
    contract = found_contract(backbone, layers, optimizers, recipe.precision) | optimizers.decay_counts()
    return Wrap(
        backbone_id=spec.backbone_id,
        units=tuple(unit for unit, _ in found),
        decoder_layers=len(layers),
        embedding_rows=int(backbone.llm.get_input_embeddings().weight.shape[0]),
        parameter_bytes=sum(map(_bytes, shards)),
        gradient_bytes=sum(map(_bytes, learning)),
        optimizer_bytes=int(sum(map(_padded, learning)) * recipe.optimizer.state_bytes),
        contract={name: value for name, value in contract.items() if value != ""},  # what a first step leaves
    )


def _units(llm: nn.Module) -> Iterator[tuple[Unit, list[Any]]]:
    """Every FSDP unit with its parameters, as FSDP itself holds them; the root's name is empty."""
    for name, module in llm.named_modules():
        if not isinstance(module, FSDPModule):
            continue
        for group in cast(Any, module)._get_fsdp_state()._fsdp_param_groups:
            ranks = group.mesh_info.shard_mesh_size
            size = sum(_padded(shard) for shard in group.fsdp_params) * ranks * group.mp_policy.param_dtype.itemsize
            yield Unit(name, size), group.fsdp_params


def _padded(shard: Any) -> int:
    """Elements of a rank's part of a parameter, with the rows that make all parts equal."""
    return int(shard.padded_sharded_param_size.numel())


def _bytes(shard: Any) -> int:
    return _padded(shard) * int(shard.sharded_param.dtype.itemsize)
