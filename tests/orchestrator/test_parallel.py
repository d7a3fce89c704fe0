"""How ranks share the work: the planner's arithmetic, and what ranks say to each other on a mesh."""

from typing import Any

import pytest
import torch
from gang import run_ranks
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.parallel import Mesh, ParallelDims
from orchestrator.spec_files.spec import Placement

SMALL = st.integers(1, 8)


@given(replicate=SMALL, shard=SMALL, rows=SMALL, accumulation=SMALL)
def test_a_batch_that_divides_is_shared_whole(replicate: int, shard: int, rows: int, accumulation: int) -> None:
    dims = ParallelDims(replicate, shard)
    batch = dims.data * rows * accumulation
    assert dims.world == dims.data == replicate * shard
    assert dims.rows_of_a_rank(batch) == rows * accumulation
    assert dims.accumulation_steps(batch, rows) == accumulation


@given(shards=SMALL, replicas=SMALL)
def test_a_placement_says_how_its_workers_share_a_cell(shards: int, replicas: int) -> None:
    dims = Placement(workers=shards * replicas, replicas=replicas).parallel
    assert (dims.replicate, dims.shard, dims.world) == (replicas, shards, shards * replicas)


@pytest.mark.parametrize("name", ["tensor", "context"])
def test_what_is_not_available_is_named_and_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} parallelism is not available: .*raise placement.workers"):
        ParallelDims(**{name: 2})


def talk(replicas: int) -> dict[str, Any]:
    """On every rank: what it knows of its place, and what the others told it."""
    world = len(Mesh.build(torch.device("cpu")).gathered(None))
    mesh = Mesh.build(torch.device("cpu"), ParallelDims(replicas, world // replicas))
    total = torch.tensor([float(mesh.rank + 1)])
    most, least = total.clone(), total.clone()
    mesh.sum_over_data(total)
    mesh.maximum(most)
    mesh.minimum(least)
    mesh.barrier()
    return {
        "ranks": mesh.gathered(mesh.dp_rank),
        "told": mesh.from_main(f"rank {mesh.rank}"),
        "sums": (float(total), float(most), float(least)),
        "mesh": tuple(mesh.fsdp.shape),
        "is_main": mesh.is_main,
    }


@pytest.mark.parametrize(("replicas", "shape"), [(1, (2,)), (2, (2, 1))])
def test_ranks_hear_of_each_other_over_the_mesh(replicas: int, shape: tuple[int, ...]) -> None:
    first, second = run_ranks(2, talk, replicas)
    assert first == {"ranks": [0, 1], "told": "rank 0", "sums": (3.0, 2.0, 1.0), "mesh": shape, "is_main": True}
    assert second == {**first, "is_main": False}


def build_for(world: int) -> str:
    try:
        Mesh.build(torch.device("cpu"), ParallelDims(shard=world))
    except InputError as error:
        return str(error)
    return ""


def test_a_gang_of_another_size_than_planned_is_refused() -> None:
    assert run_ranks(1, build_for, 1) == [""]
    assert "1 ranks run, but" in run_ranks(1, build_for, 3)[0]
