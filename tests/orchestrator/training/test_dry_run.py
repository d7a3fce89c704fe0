"""The wrap over ranks that do not exist, against ranks that do."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from gang import run_ranks

from backbones import BackboneSpec, get_spec
from backbones.contract import LLMBackbone
from orchestrator.parallel import Mesh, ParallelDims
from orchestrator.spec_files.spec import Adaptation, Recipe
from orchestrator.training.model.dry_run import Wrap, wrap_all
from orchestrator.training.model.optimizer import build_optimizers
from orchestrator.training.model.sharding import build_sharded


def recipe(kind: str = "full", **changes: Any) -> Recipe:
    data = {"train": "train.jsonl", "validation": "validation.jsonl"}
    facts = {"data": data, "budget": {"kind": "steps", "amount": 1}, "adaptation": {"kind": kind}}
    return Recipe.model_validate({**facts, **changes})


def wrapped(spec: BackboneSpec, recipe: Recipe, dims: ParallelDims) -> Wrap:
    [found] = wrap_all((spec,), recipe, dims)
    assert isinstance(found, Wrap), found
    return found


def _held_by_a_rank(backbone_id: str, recipe: Recipe, dims: ParallelDims) -> tuple[int, int, int]:
    """Bytes of the storages that a real rank holds: weights, gradients, optimizer state."""
    backbone, _ = build_sharded(get_spec(backbone_id), recipe, Mesh.build(torch.device("cpu"), dims), seed=0)
    optimizers = build_optimizers(backbone.llm, recipe.optimizer)
    ids = torch.arange(32)[None]
    backbone(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizers.step(1e-3)

    parameters = list(backbone.llm.parameters())
    states = [state for part in optimizers.torch_optimizers for state in part.state.values()]
    return (
        _storage(parameters),
        _storage([parameter.grad for parameter in parameters if parameter.grad is not None]),
        _storage([value for state in states for name, value in state.items() if name != "step"]),
    )


def _storage(tensors: list[Any]) -> int:
    """Bytes behind local tensors; FSDP reduces the gradients of a unit into one storage."""
    storages = [tensor.to_local().untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize(
    ("backbone_id", "kind", "dims"),
    [
        ("tiny-qwen", "full", ParallelDims(shard=2)),
        ("tiny-llama2", "lora", ParallelDims(shard=2)),
        ("tiny-mistral", "last_layer", ParallelDims(replicate=2)),
    ],
)
def test_a_real_rank_holds_the_bytes_that_the_dry_run_says(backbone_id: str, kind: str, dims: ParallelDims) -> None:
    expected = wrapped(get_spec(backbone_id), recipe(kind), dims)
    weights, gradients, states = run_ranks(dims.world, _held_by_a_rank, backbone_id, recipe(kind), dims)[0]
    assert (expected.parameter_bytes, expected.gradient_bytes, expected.optimizer_bytes) == (weights, gradients, states)


@pytest.mark.parametrize("backbone_id", ["llama2-7b-pure", "llama2-13b-pure", "llama2-70b-pure"])
def test_gated_models_are_wrapped_over_64_ranks_without_tokenizer_weights_or_network(
    backbone_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", _no_network)
    spec = get_spec(backbone_id)
    found = wrapped(spec, recipe(), ParallelDims(shard=64))
    sizes = spec.architecture
    assert len(found.units) == sizes.num_layers + 1
    assert found.embedding_rows == 32064  # 32,000 and PAD, to the next multiple of 64
    parameters = spec.parameters + 2 * 64 * sizes.hidden_size
    assert found.parameter_bytes == found.gradient_bytes == found.optimizer_bytes // 2 == parameters * 4 // 64
    root = 2 * 32064 * sizes.hidden_size + sizes.hidden_size
    layer = (parameters - root) // sizes.num_layers
    assert found.largest.gathered_bytes == 2 * max(root, layer)


def _no_network(*_: Any) -> None:
    raise OSError("a dry run asks nobody")


def test_adapters_are_wrapped_with_their_layers_and_alone_have_state() -> None:
    full, lora = (wrapped(get_spec("gpt2"), recipe(kind), ParallelDims(shard=4)) for kind in ("full", "lora"))
    assert len(full.units) == len(lora.units) == 13
    assert lora.parameter_bytes - full.parameter_bytes == lora.gradient_bytes
    assert lora.optimizer_bytes == 2 * lora.gradient_bytes < full.optimizer_bytes / 20


def test_rows_that_ranks_cannot_share_equally_are_counted_with_their_padding() -> None:
    found = wrapped(get_spec("tiny-llama2"), recipe(), ParallelDims(shard=64))
    # 96 rows of a hidden unit over 64 ranks are 2 each: 128 are stored.
    hidden, layers, mlp, rows = 96, 3, 256, 1088
    matrices = layers * (4 * 2 * hidden + 2 * (mlp // 64) * hidden + 2 * mlp)
    norms = (2 * layers + 1) * 2
    assert found.parameter_bytes == 4 * (matrices + norms + rows // 64 * hidden)


def test_a_layer_class_that_does_not_match_is_an_error_that_names_backbone_and_remedy() -> None:
    sound, wrong = get_spec("tiny-qwen"), replace(get_spec("gpt2"), decoder_layer_cls="Qwen3DecoderLayer")
    first, second = wrap_all((wrong, sound), recipe(), ParallelDims(shard=8))
    assert str(first).startswith("gpt2: GPT2LMHeadModel has no list of 12 layers of class Qwen3DecoderLayer; correct")
    assert isinstance(second, Wrap)


def test_a_class_that_builds_itself_is_not_wrapped_by_guesswork() -> None:
    assert issubclass(SelfMade, LLMBackbone)
    spec = replace(get_spec("gpt2"), backbone_cls=f"{__name__}:SelfMade")
    [error] = wrap_all((spec,), recipe(), ParallelDims(shard=8))
    assert str(error) == (
        "gpt2: SelfMade builds itself, so it cannot be laid out without its weights; derive it from "
        "backbones.causal_lm.CausalLMBackbone"
    )


class SelfMade(LLMBackbone):
    """A backbone that only upstream's contract describes."""


def test_nothing_that_learns_is_an_error_before_any_gpu_is_asked() -> None:
    biases = recipe().model_copy(update={"adaptation": Adaptation(kind="bias_only")})
    [error] = wrap_all((get_spec("tiny-llama2"),), biases, ParallelDims(shard=2))
    assert "nothing of tiny-llama2 would learn; choose full or last_layer" in str(error)
