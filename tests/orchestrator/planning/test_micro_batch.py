"""The micro-batch and the accumulation that the memory plan chooses, for any backbone, recipe and device."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbones.registry import get_spec
from backbones.spec import BackboneSpec
from orchestrator.planning.sizes.memory import DEVICE_GIB, choose_micro_batch_size, find_device_gib, find_shortage
from orchestrator.planning.sizes.memory import predict_memory as predict
from orchestrator.spec_files.spec import Placement, Recipe

IDS = ("gpt2", "llama2-7b-pure", "llama2-70b-pure", "qwen3-0.6b", "mistral-v0.1-7b-pure", "tiny-qwen")
MOST_ROWS = 32
BY_SIZE = sorted(DEVICE_GIB, key=lambda name: DEVICE_GIB[name])


def recipe(rows: int | str, batch: int, **changes: object) -> Recipe:
    data = {"train": "train.jsonl", "validation": "validation.jsonl"}
    facts = {"data": data, "budget": {"kind": "steps", "amount": 1}, "micro_batch_size": rows}
    return Recipe.model_validate({**facts, "global_batch_size": batch, **changes})


def placed(workers: int, accelerator: str | None, replicas: int = 1) -> Placement:
    return Placement(workers=workers, replicas=replicas, gpus_per_worker=1, accelerator=accelerator)


recipes = st.fixed_dictionaries(
    {
        "sequence_length": st.sampled_from([128, 2048, 8192]),
        "precision": st.sampled_from(["bf16", "fp32"]),
        "activation_checkpointing": st.booleans(),
        "attention": st.sampled_from(["auto", "sdpa"]),
        "adaptation": st.sampled_from(["full", "lora", "last_layer", "bias_only"]).map(lambda kind: {"kind": kind}),
    }
)
shares = st.integers(1, 96)
workers = st.sampled_from([1, 2, 3, 8, 64])


@given(st.sampled_from(IDS), recipes, shares, workers, st.sampled_from(BY_SIZE))
def test_the_largest_divisor_that_fits_is_chosen_and_makes_the_exact_batch(
    backbone_id: str, changes: dict[str, object], share: int, workers: int, accelerator: str
) -> None:
    spec, auto, placement = (
        get_spec(backbone_id),
        recipe("auto", share * workers, **changes),
        placed(workers, accelerator),
    )
    rows, usable = choose_micro_batch_size(spec, auto, placement), find_device_gib(placement)
    steps = placement.parallel.accumulation_steps(auto.global_batch_size, rows)
    assert rows * steps * workers == auto.global_batch_size
    divisors = [n for n in range(1, MOST_ROWS + 1) if share % n == 0]
    fitting = [n for n in divisors if usable is not None and predict(spec, auto, placement, n).total <= usable]
    assert rows == (fitting[-1] if fitting else 1)
    assert bool(fitting) == (find_shortage(spec, auto, placement) is None)


@given(st.sampled_from(IDS), recipes, shares, workers)
def test_a_larger_device_never_gets_a_smaller_micro_batch(
    backbone_id: str, changes: dict[str, object], share: int, workers: int
) -> None:
    spec, auto = get_spec(backbone_id), recipe("auto", share * workers, **changes)
    chosen = [choose_micro_batch_size(spec, auto, placed(workers, name)) for name in BY_SIZE]
    assert chosen == sorted(chosen)


@given(st.sampled_from(IDS), recipes, st.integers(1, 16), st.sampled_from([1, 2, 4, 8]))
def test_memory_shrinks_with_shards_and_partial_adaptation_and_recomputation_and_grows_with_rows(
    backbone_id: str, changes: dict[str, object], rows: int, shards: int
) -> None:
    spec, batch = get_spec(backbone_id), 4 * 16 * rows * shards
    plain = recipe(rows, batch, **changes)

    def total(recipe: Recipe = plain, shards: int = shards, rows: int = rows, replicas: int = 1) -> float:
        return predict(spec, recipe, placed(shards * replicas, "H100", replicas), rows).total

    assert total(rows=rows) <= total(rows=2 * rows)
    assert total(shards=2 * shards) < total() + gathered_ahead(spec)
    assert total(replicas=2) == pytest.approx(total())
    recomputed, kept = (plain.model_copy(update={"activation_checkpointing": value}) for value in (True, False))
    selective = plain.model_copy(update={"activation_checkpointing": "selective"})
    assert total(recomputed) <= total(selective)
    assert total(recomputed) <= total(kept)
    whole = plain.model_copy(update={"adaptation": recipe(1, 1, adaptation={"kind": "full"}).adaptation})
    biases = plain.model_copy(update={"adaptation": recipe(1, 1, adaptation={"kind": "bias_only"}).adaptation})
    assert total(biases) <= total(plain) <= total(whole) * 1.01


def gathered_ahead(spec: BackboneSpec) -> float:
    """GiB of a layer: ranks that share a model gather the next one while they compute this."""
    return 4 * spec.parameters / spec.architecture.num_layers / 2**30


def test_a_chosen_micro_batch_says_both_numbers_where_even_one_row_is_too_much() -> None:
    spec = replace(get_spec("llama2-70b-pure"), backbone_id="big")
    message = find_shortage(spec, recipe("auto", 8), placed(8, "L4"))
    assert message is not None
    assert message.startswith("big needs about ")
    assert "for weights, gradients and AdamW state" in message
    assert "22 usable GiB of one L4" in message


def test_kept_activations_that_do_not_fit_are_answered_with_selective_checkpointing() -> None:
    kept = recipe(16, 128, activation_checkpointing=False, sequence_length=4096)
    spec, placement = get_spec("mistral-v0.1-7b-pure"), placed(8, "H100")
    message = find_shortage(spec, kept, placement)
    assert message is not None
    assert "turn recipe.activation_checkpointing on" in message
    few = recipe(8, 64, activation_checkpointing=False, sequence_length=2048)
    message = find_shortage(spec, few, placement)
    assert message is not None
    assert "set recipe.activation_checkpointing to selective" in message
