"""Layers that are compiled, recomputed selectively or kept gathered train as plain ones do: two ranks, on the CPU."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gang import run_ranks

from backbones.inputs import Example, Inputs, make_inputs
from backbones.registry import get_spec
from orchestrator.parallel import Mesh
from orchestrator.spec_files.spec import Recipe
from orchestrator.training.loss import summed_nats
from orchestrator.training.model.compilation import CACHE, keep_compiled_code
from orchestrator.training.model.optimizer import build_optimizers
from orchestrator.training.model.sharding import build_sharded, found_contract

STEPS, WIDTH = 4, 32
PLAIN = {"compile": "none", "activation_checkpointing": False}
WAYS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "recomputed": {**PLAIN, "activation_checkpointing": True},
    "selective": {**PLAIN, "activation_checkpointing": "selective"},
    "gathered": {**PLAIN, "keep_gathered": True},
    "compiled and recomputed": {"compile": "layers", "activation_checkpointing": True},
    "compiled and selective": {"compile": "layers", "activation_checkpointing": "selective"},
}
COMPILED = [way for way in WAYS if "compiled" in way]
HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="Inductor needs a C++ compiler on a CPU: g++, or CXX")


def batch(step: int, rank: int) -> Inputs:
    """Two rows of the same width in every step, of documents that differ."""
    draw = np.random.default_rng([step, rank])
    cuts = [int(draw.integers(4, WIDTH - 4)) for _ in range(2)]
    rows = [[draw.integers(3, 200, size) for size in (cut, WIDTH - cut)] for cut in cuts]
    return make_inputs([[Example(ids, np.ones(len(ids), bool)) for ids in row] for row in rows], pad_token_id=0)


def train_all(ways: list[str], folder: str) -> dict[str, dict[str, Any]]:
    """By way, what `train` found on this rank. Inductor's workers would cost more than they save here."""
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1
    keep_compiled_code(Path(folder))
    return {way: train(way) for way in ways}


def train(way: str) -> dict[str, Any]:
    """The losses of some steps on this rank, what was found on the model, and what the compiler counted."""
    from torch._dynamo.utils import counters

    counters.clear()
    settings = dict(WAYS[way])
    keep_gathered = settings.pop("keep_gathered", False)
    recipe = Recipe.model_validate(
        {
            "data": {"train": "-", "validation": "-"},
            "budget": {"kind": "steps", "amount": STEPS},
            "precision": "fp32",
            "sequence_length": WIDTH,
            "optimizer": {"learning_rate": 1e-2},
            **settings,
        }
    )
    mesh = Mesh.build(torch.device("cpu"))
    backbone, layers = build_sharded(get_spec("tiny-llama2"), recipe, mesh, seed=3, keep_gathered=keep_gathered)
    backbone.llm.train()
    optimizers = build_optimizers(backbone.llm, recipe.optimizer)
    losses, graphs = [], []
    contract = {}
    for step in range(STEPS):
        nats = summed_nats(backbone, batch(step, mesh.rank), mesh.device)
        (nats / 100).backward()
        optimizers.step(1e-2)
        contract = contract or found_contract(backbone, layers, optimizers, "fp32")
        optimizers.zero_grad()
        losses.append(float(nats.detach()))
        graphs.append(counters["stats"]["unique_graphs"])
    return {"losses": losses, "graphs": graphs, "contract": contract, "counted": dict(counters["inductor"])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled code is kept."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def trained(folder: Path) -> list[dict[str, dict[str, Any]]]:
    """By rank and way: one start of two ranks for all of them."""
    ways = [way for way in WAYS if HAS_COMPILER or way not in COMPILED]
    return run_ranks(2, train_all, ways, str(folder))


ALL = [pytest.param(way, marks=needs_compiler if way in COMPILED else ()) for way in WAYS]


@pytest.mark.parametrize("way", ALL)
def test_every_way_to_run_the_layers_has_the_losses_of_the_plain_one(trained: Any, way: str) -> None:
    for rank in trained:
        assert rank[way]["losses"] == pytest.approx(rank["plain"]["losses"], rel=1e-5)
        assert rank[way]["losses"][-1] < rank[way]["losses"][0]


@pytest.mark.parametrize("way", ALL)
def test_the_contract_says_how_the_layers_ran(trained: Any, way: str) -> None:
    contract = trained[0][way]["contract"]
    assert contract["compiled"] == WAYS[way]["compile"]
    assert contract["activation_checkpointing"] == WAYS[way]["activation_checkpointing"]
    assert contract["reshards_after_forward"] == (way != "gathered")
    assert (contract["fsdp_units"], contract["decoder_layer"]) == (4, "LlamaDecoderLayer")


@needs_compiler
@pytest.mark.parametrize("way", COMPILED)
def test_all_layers_share_what_the_first_step_compiles_and_no_later_step_compiles(trained: Any, way: str) -> None:
    for rank in trained:
        assert rank[way]["graphs"] == [1] * STEPS


@needs_compiler
def test_a_second_process_finds_the_compiled_code_of_the_first(trained: Any, folder: Path) -> None:
    ways = ["compiled and recomputed"]
    assert any(folder.rglob("*.so"))
    (again,) = run_ranks(1, train_all, ways, str(folder))

    assert again[ways[0]]["counted"].get("fxgraph_cache_miss", 0) == 0
    assert again[ways[0]]["counted"]["fxgraph_cache_hit"] > 0


def test_a_folder_that_somebody_chose_stays_and_the_default_of_inductor_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv(CACHE, "/chosen")
    keep_compiled_code(tmp_path)
    assert os.environ[CACHE] == "/chosen"
    monkeypatch.setenv(CACHE, default_cache_dir())
    keep_compiled_code(tmp_path)
    assert os.environ[CACHE] == str(tmp_path)
