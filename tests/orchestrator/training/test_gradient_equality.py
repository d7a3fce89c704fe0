"""However one global batch is split, its gradient is the same: over ranks, micro-batches, accumulation and packing.

The reference is one process that takes one document at a time, with a loss of its own. Both sides compute in fp32, by
the same kernel, or both in fp64, where the reference has another kernel and no rounding could hide a mistake.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from gang import standing_ranks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from backbones.contract import TrainableBackbone
from backbones.labelled import METHODS
from backbones.registry import build, get_spec
from orchestrator.data.feed import Feed
from orchestrator.data.prepare import TokenizedDataset
from orchestrator.parallel import Mesh
from orchestrator.planning.plan import Cell
from orchestrator.spec_files.spec import Placement, Recipe
from orchestrator.training.model.optimizer import build_optimizers
from orchestrator.training.model.sharding import decoder_layers, shard
from orchestrator.training.step import train_step
from orchestrator.training.trainee import Trainee

BACKBONE = "tiny-llama2"
SEQUENCE_LENGTH = 96
BOUND = {"fp32": 1e-6, "fp64": 1e-12}  # of each tensor's norm
# What is under this share of the whole gradient is measured by that share. A softmax subtracts, and in short documents
# next to all that queries and keys learn cancels out: fp32 has few digits for the rest, fp64 has enough.
LEAST = {"fp32": 1e-2, "fp64": 1e-4}
SHORTEST = {"fp32": 8, "fp64": 2}  # tokens of a document, for the same reason
KERNEL = {"fp32": "sdpa", "fp64": "eager"}  # of the reference; the engine's is sdpa
WORKERS = (1, 2, 3, 4)
Gradients = dict[str, np.ndarray]


@dataclass(frozen=True)
class Batch:
    """One global batch and how it is split."""

    workers: int
    micro_batch_size: int
    accumulation: int
    packing: bool
    lengths: tuple[int, ...]
    learned: float  # share of the tokens that are targets
    seed: int

    def feed(self) -> Feed:
        """Of which it is the first step. Some documents may have no target; those above the length are cut."""
        draw = np.random.default_rng(self.seed)
        offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        ids = draw.integers(3, 1000, offsets[-1]).astype(np.int32)
        is_target = draw.random(offsets[-1]) < self.learned
        is_target[offsets[:-1]] = False
        count = len(self.lengths)
        data = TokenizedDataset(ids, is_target, is_target, offsets, np.ones(count, np.int64), np.ones(count, np.bool_))
        size = self.workers * self.micro_batch_size * self.accumulation
        kept = np.arange(count)
        return Feed(data, kept, "digest", self.seed, size, SEQUENCE_LENGTH, self.packing, ranks=self.workers)


def batches(precision: str) -> st.SearchStrategy[Batch]:
    """Of at least one target."""
    return st.builds(
        Batch,
        workers=st.sampled_from(WORKERS),
        micro_batch_size=st.integers(1, 3),
        accumulation=st.integers(1, 3),
        packing=st.booleans(),
        lengths=st.lists(st.integers(SHORTEST[precision], 110), min_size=1, max_size=40).map(tuple),
        learned=st.sampled_from([0.05, 0.5, 1.0]),
        seed=st.integers(0, 2**16),
    ).filter(lambda batch: next(batch.feed().steps()).targets > 0)


# --- Both sides in double precision -----------------------------------------------------------------------------------


class InDouble(TorchFunctionMode):
    """Whoever asks for single precision gets double: transformers normalises, and losses are summed, in fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def computing_in(precision: str) -> Any:
    return InDouble() if precision == "fp64" else nullcontext()


def build_backbone(precision: str, attention: str) -> TrainableBackbone:
    backbone = build(BACKBONE, max_length=SEQUENCE_LENGTH, seed=0, attention=attention, compute_dtype=torch.float32)
    if precision == "fp64":
        backbone.llm.double()
    return backbone


# --- The reference ----------------------------------------------------------------------------------------------------


@cache
def plain_model(precision: str) -> Any:
    return build_backbone(precision, KERNEL[precision]).llm.train()


def plain_gradients(batch: Batch, precision: str) -> Gradients:
    """The mean over the targets of all documents of the first step, one document at a time."""
    llm, feed = plain_model(precision), batch.feed()
    documents = [index for row in next(feed.steps()).rows for index in row]
    parts = [feed.data.example(index) for index in documents]
    count = sum(int(learned[:SEQUENCE_LENGTH].sum()) for _, learned, _ in parts)
    llm.zero_grad()
    with computing_in(precision):
        for ids, learned, _ in parts:
            tokens = torch.tensor(ids[:SEQUENCE_LENGTH], dtype=torch.long)
            logits = llm(input_ids=tokens[None], use_cache=False).logits[0, :-1]
            nats = functional.cross_entropy(logits, tokens[1:], reduction="none")
            (nats[torch.tensor(learned[1:SEQUENCE_LENGTH])].sum() / count).backward()
    return {name: weight.grad.numpy() for name, weight in llm.named_parameters()}


# --- The engine -------------------------------------------------------------------------------------------------------


def prepare_engine() -> Callable[[Batch, str], Gradients]:
    """On every rank: the sharded backbone in both precisions, and a function that makes the step of a batch."""
    mesh = Mesh.build(torch.device("cpu"))
    sharded = {precision: shard_in(precision, mesh) for precision in BOUND}
    data = {"train": "-", "validation": "-"}
    recipe = Recipe.model_validate(
        {
            "data": data,
            "budget": {"kind": "steps", "amount": 1},
            "precision": "fp32",
            "sequence_length": SEQUENCE_LENGTH,
            "optimizer": {"max_grad_norm": 1e9},
        }
    )

    def gradients(batch: Batch, precision: str) -> Gradients:
        backbone = sharded[precision]
        feed = batch.feed()
        optimizers = build_optimizers(backbone.llm, recipe.optimizer)
        trainee = Trainee(backbone, [], optimizers, feed, feed.data, np.arange(0), mesh, None, 0.0, 0.0)
        cell = Cell("-", get_spec(BACKBONE), 0, recipe, Placement(), batch.micro_batch_size, "", "")
        with computing_in(precision):
            train_step(cell, trainee, next(feed.steps()), rate=0.0)
        found = {name: weight.grad.full_tensor().numpy() for name, weight in backbone.llm.named_parameters()}
        optimizers.zero_grad()
        return found if mesh.is_main else {}

    return gradients


def shard_in(precision: str, mesh: Mesh) -> TrainableBackbone:
    backbone = build_backbone(precision, "sdpa")
    if precision == "fp32":
        shard(backbone, mesh.fsdp, precision)
    else:
        policy = MixedPrecisionPolicy(param_dtype=torch.float64, reduce_dtype=torch.float64)
        for module in (*decoder_layers(backbone), backbone.llm):
            fully_shard(module, mesh=mesh.fsdp, mp_policy=policy)
        for method in METHODS:
            register_fsdp_forward_method(backbone.llm, method)
    backbone.llm.train()
    return backbone


@pytest.fixture(scope="module")
def gangs() -> Iterator[dict[int, Callable[..., list[Gradients]]]]:
    """Ranks that stand ready, by their number."""
    with ExitStack() as stack:
        yield {workers: stack.enter_context(standing_ranks(workers, prepare_engine)) for workers in WORKERS}


def difference(ours: Gradients, plain: Gradients, precision: str) -> float:
    """The largest over all tensors, as a share of the tensor's norm."""
    assert ours.keys() == plain.keys()
    norms = {name: float(np.linalg.norm(gradient)) for name, gradient in plain.items()}
    least = math.hypot(*norms.values()) * LEAST[precision]
    return max(float(np.linalg.norm(ours[name] - plain[name])) / max(norms[name], least) for name in plain)


@pytest.mark.parametrize("precision", BOUND)
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_the_gradient_of_a_global_batch_does_not_depend_on_how_it_is_split(
    gangs: dict[int, Callable[..., list[Gradients]]], precision: str, data: st.DataObject
) -> None:
    batch = data.draw(batches(precision))
    ours, *_ = gangs[batch.workers](batch, precision)
    plain = plain_gradients(batch, precision)
    found, bound = difference(ours, plain, precision), BOUND[precision]
    if (
        precision == "fp32" and found > bound
    ):  # the reference too may have fewer digits: a short document, a few targets
        bound = 2 * difference(plain, plain_gradients(batch, "fp64"), precision)
    assert found <= bound
