"""Questions that a sharded model answers in batches: every rank takes part in every forward pass."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from orchestrator.parallel import Mesh

KERNEL_THAT_GENERATES = "sdpa"

Answer = TypeVar("Answer")


def shared_answers(
    mesh: Mesh,
    batches: Sequence[Sequence[int]],
    ask: Callable[[Sequence[int]], list[Answer]],
    obey: Callable[[], None],
) -> list[Answer]:
    """The answers to 0, 1, ..., which are in the batches in any order, over all ranks. Collective.

    Each rank asks for its share of the batches; one with fewer repeats one and throws the answers away. `obey` is
    called by all ranks before each batch, and raises on all where they are to stop.
    """
    rank, world = mesh.dp_rank, mesh.dp_size
    answers: dict[int, Answer] = {}
    for turn in range(math.ceil(len(batches) / world)):
        obey()
        number = turn * world + rank
        batch = batches[min(number, len(batches) - 1)]
        found = ask(batch)
        if number < len(batches):
            answers |= dict(zip(batch, found, strict=True))
    everywhere: dict[int, Answer] = {}
    for share in mesh.gathered(answers):
        everywhere |= share
    return [everywhere[place] for place in range(len(everywhere))]


@contextmanager
def kernel_that_generates(model: Any) -> Iterator[None]:
    """Kernels for training may take neither padding masks nor caches."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager" if before == "eager" else KERNEL_THAT_GENERATES)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
