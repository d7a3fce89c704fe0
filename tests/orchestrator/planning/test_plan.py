"""Cells and their identity, the batch, the memory prediction and the FLOPs: pure arithmetic, by hand here.

Over 300 lines: one function, with everything that a spec may say.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backbones.registry import get_spec
from backbones.spec import Architecture, BackboneSpec
from orchestrator.errors import InputError, SpecError
from orchestrator.planning.plan import Cell, Plan, ids_without_occurrence, load_comparison, load_finetune, load_plan
from orchestrator.planning.sizes.flops import find_mfu, find_peak_flops, training_flops_per_token
from orchestrator.planning.sizes.memory import choose_micro_batch_size, find_device_gib, find_shortage, predict_memory
from orchestrator.spec_files.spec import Elastic, Placement, Recipe

SPECS = Path(__file__).parents[3] / "jobs" / "specs"  # a folder with YAML files
TINY_TOKENIZER = Path(get_spec("tiny-llama2").source)


def recipe_facts(**changes: Any) -> dict[str, Any]:
    facts = {
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "sequence_length": 64,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "budget": {"kind": "steps", "amount": 5},
    }
    return {**facts, **changes}


def write_job(folder: Path, recipe: dict[str, Any] | None = None, answer: str = "a", **changes: Any) -> Path:
    """A spec with its data; without `backbone` a comparison of two tiny backbones."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        turns = [{"role": "user", "content": split}, {"role": "assistant", "content": answer}]
        (folder / f"{split}.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    what = {} if "backbone" in changes else {"backbones": ["tiny-llama2", "tiny-mistral"], "seeds": 2}
    spec = {"name": "pair", **what, "recipe": recipe or recipe_facts(), **changes}
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return path


def write_model(folder: Path, weights: bytes = b"\0" * 8) -> Path:
    """The files of a small Llama: enough to be planned and hashed."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 128,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header = json.dumps(
        {"model.embed_tokens.weight": {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, 8]}}
    ).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_TOKENIZER / name, folder / name)
    return folder


def ids(plan: Plan) -> list[str]:
    return [cell.cell_id for cell in plan.cells]


# --- cells and their identity ---


def test_cells_go_seed_by_seed_so_that_all_backbones_have_equally_many(tmp_path: Path) -> None:
    plan = load_comparison(write_job(tmp_path, seeds=[5, 3]))
    assert [(cell.backbone.backbone_id, cell.seed) for cell in plan.cells] == [
        ("tiny-llama2", 5), ("tiny-mistral", 5), ("tiny-llama2", 3), ("tiny-mistral", 3),
    ]  # fmt: skip


def test_the_same_spec_has_the_same_ids_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = load_comparison(write_job(tmp_path / "here"))
    there = write_job(tmp_path / "there", storage=str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    assert ids(load_comparison(there)) == ids(here)
    assert load_comparison(there).job_id == here.job_id


def test_ids_do_not_depend_on_where_the_data_lies_or_what_the_file_is_called(tmp_path: Path) -> None:
    plan = load_comparison(write_job(tmp_path / "one"))
    write_job(tmp_path / "two")
    (tmp_path / "two" / "train.jsonl").rename(tmp_path / "renamed.jsonl")
    data = {"train": str(tmp_path / "renamed.jsonl"), "validation": "validation.jsonl"}
    text = yaml.safe_dump(
        {"name": "pair", "backbones": ["tiny-llama2", "tiny-mistral"], "recipe": recipe_facts(data=data)}
    )
    (tmp_path / "two" / "spec.yaml").write_text(text, encoding="utf-8")
    assert ids(load_comparison(tmp_path / "two" / "spec.yaml")) == ids(plan)


def test_ids_do_not_depend_on_where_a_model_folder_lies_but_on_its_weights(tmp_path: Path) -> None:
    write_model(tmp_path / "a" / "model")
    write_model(tmp_path / "b" / "copy")
    write_model(tmp_path / "c" / "model", weights=b"\1" * 8)
    (tmp_path / "a" / "model" / "README.md").write_text("no part of the model", encoding="utf-8")
    plans = [
        load_finetune(write_job(tmp_path / "a", backbone="hf:./model")),
        load_finetune(write_job(tmp_path / "b", backbone=f"hf:{tmp_path / 'b' / 'copy'}")),
        load_finetune(write_job(tmp_path / "c", backbone="hf:./model")),
    ]
    [[first], [copied], [other]] = [ids(plan) for plan in plans]
    assert first == copied
    assert first.startswith("hf-llama-s0-")
    assert other != first


def test_a_model_and_its_copy_cannot_be_compared_with_each_other(tmp_path: Path) -> None:
    write_model(tmp_path / "one")
    write_model(tmp_path / "two")
    with pytest.raises(SpecError, match=r"'backbones\.1' is 'hf:\./two', which has the same content as 'hf:\./one'"):
        load_comparison(write_job(tmp_path, backbones=["hf:./one", "hf:./two"]))


CHANGES: dict[str, dict[str, Any]] = {
    "the answers": {"answer": "b"},
    "the seed": {"seeds": [2, 3]},
    "the learning rate": {"recipe": recipe_facts(optimizer={"learning_rate": 1e-3})},
    "the sequence length": {"recipe": recipe_facts(sequence_length=32)},
    "the micro-batch": {"recipe": recipe_facts(micro_batch_size=4)},
    "the precision": {"recipe": recipe_facts(precision="fp32")},
    "the workers": {"placement": {"workers": 2}},
    "the rivals, with which examples are shared": {"backbones": ["tiny-llama2", "tiny-qwen"]},
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_decides_the_result_changes_the_id(what: str, tmp_path: Path) -> None:
    plan, changed = (
        load_comparison(write_job(tmp_path / "a")),
        load_comparison(write_job(tmp_path / "b", **CHANGES[what])),
    )
    assert not set(ids(plan)) & set(ids(changed))
    assert plan.job_id != changed.job_id


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"policy": {"timeout": "1h", "max_failures": 0}},
        {"tracking": {"experiment": "other"}},
        {"verdict": {"alpha": 0.01}},
        {"recipe": recipe_facts(checkpoint={"every": 0.5, "keep": 1})},
        {"recipe": recipe_facts(evaluate={"tasks": ["piqa"], "include_path": str(SPECS)})},
    ],
    ids=["name", "policy", "tracking", "verdict", "checkpoint", "tasks"],
)
def test_what_does_not_decide_the_result_keeps_the_id(changes: dict[str, Any], tmp_path: Path) -> None:
    assert ids(load_comparison(write_job(tmp_path / "a", **changes))) == ids(load_comparison(write_job(tmp_path / "b")))


def test_adding_a_seed_keeps_the_other_cells(tmp_path: Path) -> None:
    two, three = (ids(load_comparison(write_job(tmp_path, seeds=number))) for number in (2, 3))
    assert three[:4] == two
    assert len(set(three)) == 6


def test_with_per_backbone_data_a_new_rival_keeps_the_other_cells(tmp_path: Path) -> None:
    recipe = recipe_facts(data={**recipe_facts()["data"], "parity": "per_backbone"})
    two = load_comparison(write_job(tmp_path / "a", recipe))
    three = load_comparison(write_job(tmp_path / "b", recipe, backbones=["tiny-llama2", "tiny-mistral", "tiny-qwen"]))
    assert set(ids(two)) < set(ids(three))


def test_the_kind_of_a_spec_is_what_it_names(tmp_path: Path) -> None:
    assert load_plan(write_job(tmp_path)).kind == "comparison"
    finetune = load_plan(write_job(tmp_path, backbone="tiny-llama2", seed=3))
    assert (finetune.kind, [cell.seed for cell in finetune.cells]) == ("finetune", [3])


@pytest.mark.parametrize("left", ["unfinished/model.safetensors", "training_manifest.json"])
def test_an_export_of_ours_and_an_interrupted_one_may_be_written_again(left: str, tmp_path: Path) -> None:
    path = tmp_path / "export" / left
    path.parent.mkdir(parents=True)
    path.touch()
    export = {"folder": str(tmp_path / "export")}
    assert load_finetune(write_job(tmp_path, backbone="tiny-llama2", export=export)).cells


def test_a_batch_is_shared_out_exactly(tmp_path: Path) -> None:
    plan = load_comparison(write_job(tmp_path, placement={"workers": 2}))
    assert {(cell.micro_batch_size, cell.accumulation_steps) for cell in plan.cells} == {(2, 2)}


# --- memory ---

MISTRAL = get_spec("mistral-v0.1-7b-pure")
ONE_H100 = Placement(workers=1, gpus_per_worker=1, accelerator="H100")


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate_json(json.dumps(recipe_facts(**changes)))


def test_mistral_7b_needs_108_gib_of_states_on_one_device() -> None:
    """7.24e9 parameters x (4 weights + 4 gradients + 8 moments) bytes."""
    memory = predict_memory(MISTRAL, recipe(), ONE_H100, 1)
    assert memory.states == pytest.approx(7_241_732_096 * 16 / 2**30)
    assert round(memory.states) == 108


def test_states_are_divided_by_the_shards_and_not_by_the_replicas() -> None:
    def states(workers: int, replicas: int) -> float:
        return predict_memory(MISTRAL, recipe(), Placement(workers=workers, replicas=replicas), 1).states

    assert states(8, 1) == pytest.approx(states(1, 1) / 8)
    assert states(8, 2) == pytest.approx(states(1, 1) / 4)


def test_working_memory_grows_with_rows_and_without_checkpointing() -> None:
    def working(rows: int, **changes: Any) -> float:
        return predict_memory(MISTRAL, recipe(**changes), ONE_H100, rows).working

    assert working(1) < working(2) < working(4)
    assert working(4, sequence_length=4096, activation_checkpointing=False) > 3 * working(4, sequence_length=4096)
    assert working(4, precision="fp32") > working(4)


def test_auto_takes_the_largest_divisor_that_the_prediction_lets_in() -> None:
    eight = ONE_H100.model_copy(update={"workers": 8})
    auto = recipe(micro_batch_size="auto", global_batch_size=32 * 8, sequence_length=4096)
    rows = choose_micro_batch_size(MISTRAL, auto, eight)
    usable = find_device_gib(eight)
    assert usable is not None
    fits = [n for n in (1, 2, 4, 8, 16, 32) if predict_memory(MISTRAL, auto, eight, n).total <= usable]
    assert rows == fits[-1]
    assert 1 < rows < 32


def test_auto_on_an_unknown_device_stays_small_and_divides() -> None:
    auto = recipe(micro_batch_size="auto", global_batch_size=36)
    assert choose_micro_batch_size(MISTRAL, auto, Placement(workers=2)) == 6


def test_every_remedy_for_a_shortage_is_one() -> None:
    tight = recipe(global_batch_size=24, micro_batch_size=4)
    message = find_shortage(MISTRAL, tight, ONE_H100)
    assert message is not None
    assert "raise placement.workers to 2" in message
    assert find_shortage(MISTRAL, tight, ONE_H100.model_copy(update={"workers": 2})) is None
    assert "set recipe.adaptation.kind to lora, or set recipe.adaptation.kind to last_layer" in message
    assert find_shortage(MISTRAL, recipe(adaptation={"kind": "lora"}), ONE_H100) is None
    assert find_shortage(MISTRAL, recipe(adaptation={"kind": "last_layer"}), ONE_H100) is None


def test_a_shortage_that_nothing_named_helps_asks_for_a_shorter_sequence() -> None:
    huge = recipe(sequence_length=32768, micro_batch_size=8, global_batch_size=8, activation_checkpointing=True)
    message = find_shortage(MISTRAL, huge, ONE_H100.model_copy(update={"accelerator": "T4"}))
    assert message is not None
    assert message.endswith("lower recipe.sequence_length")


def test_no_shortage_is_claimed_for_a_device_that_nobody_knows() -> None:
    assert find_device_gib(Placement(workers=1, gpus_per_worker=1, accelerator="Quantum-1")) is None
    assert find_shortage(MISTRAL, recipe(), Placement(workers=1)) is None


# --- FLOPs ---

LLAMA_3_8B = replace(
    MISTRAL,
    backbone_id="llama3-8b",
    parameters=8_030_261_248,
    architecture=Architecture(4096, 14336, 32, 32, 8, 128, vocab_size=128_256, tied_embeddings=False),
)


def test_llama_3_8b_at_8k_trains_with_5_79e10_flops_per_token() -> None:
    """6 x (8.03e9 - 128256 x 4096) + 12 x 32 layers x 4096 x 8192."""
    assert training_flops_per_token(LLAMA_3_8B, 8192) == pytest.approx(5.79e10, rel=1e-3)


def test_a_tied_embedding_multiplies_as_output_layer() -> None:
    tied: BackboneSpec = replace(LLAMA_3_8B, architecture=replace(LLAMA_3_8B.architecture, tied_embeddings=True))
    difference = training_flops_per_token(tied, 64) - training_flops_per_token(LLAMA_3_8B, 64)
    assert difference == 6 * 128_256 * 4096


def test_mfu_is_a_share_of_the_peak_or_nothing() -> None:
    flops = training_flops_per_token(LLAMA_3_8B, 8192)
    assert find_mfu(8000, flops, "NVIDIA H100 80GB HBM3") == pytest.approx(8000 * flops / 989e12)
    assert find_mfu(8000, flops, "Quantum-1") is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),  # neither an L4 nor an L40S
        ("NVIDIA RTX A1000", None),
        ("NVIDIA H100 NVL", 835e12),
        ("CPU", None),
    ],
)
def test_a_peak_is_found_by_the_name_that_the_device_reports(name: str, peak: float | None) -> None:
    assert find_peak_flops(name) == peak


# --- firings of a schedule ---

NIGHT = "nightly/2026-11-22T02:00Z"


ALWAYS = {
    False: (
        "pair-d9ab25ac38",
        *("tiny-llama2-s0-854000ebc7", "tiny-mistral-s0-ed628dda96"),
        *("tiny-llama2-s1-e687188b62", "tiny-mistral-s1-dbbee8dbb8"),
    ),
    True: (  # since PACKED_ORDER is 2
        "pair-2a964648c9",
        *("tiny-llama2-s0-83c42a867a", "tiny-mistral-s0-b630a1b97e"),
        *("tiny-llama2-s1-f222f91489", "tiny-mistral-s1-28487ab2bc"),
    ),
}


@pytest.mark.parametrize("packing", ALWAYS)
def test_a_plan_that_no_clock_fired_has_the_ids_it_always_had(packing: bool, tmp_path: Path) -> None:
    plan = load_comparison(write_job(tmp_path, recipe=recipe_facts(packing=packing)))
    assert plan.occurrence is None
    assert (plan.job_id, *ids(plan)) == ALWAYS[packing]


def test_another_packed_order_is_a_new_cell_where_the_recipe_packs_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [write_job(tmp_path / str(packing), recipe=recipe_facts(packing=packing)) for packing in (True, False)]
    packed, plain = (ids(load_comparison(spec)) for spec in specs)
    monkeypatch.setattr("orchestrator.planning.plan.PACKED_ORDER", 3)
    packed_anew, plain_anew = (ids(load_comparison(spec)) for spec in specs)
    assert not set(packed) & set(packed_anew)
    assert plain_anew == plain


def test_each_firing_measures_anew_and_the_same_firing_does_not(tmp_path: Path) -> None:
    spec = write_job(tmp_path)
    by_hand, first, again = load_plan(spec), load_plan(spec, NIGHT), load_comparison(spec, NIGHT)
    next_night = load_plan(spec, "nightly/2026-11-23T02:00Z")
    assert first.occurrence == NIGHT
    assert {cell.occurrence for cell in first.cells} == {NIGHT}
    assert (ids(first), first.job_id) == (ids(again), again.job_id)
    everything = [*ids(by_hand), *ids(first), *ids(next_night)]
    assert len(set(everything)) == 12
    assert len({by_hand.job_id, first.job_id, next_night.job_id}) == 3


def test_firings_that_measure_the_same_can_be_told_from_those_that_do_not(tmp_path: Path) -> None:
    spec = write_job(tmp_path)
    by_hand, night = load_plan(spec), load_plan(spec, NIGHT)
    assert ids_without_occurrence(night) == dict(zip(ids(night), ids(by_hand), strict=True))
    assert ids_without_occurrence(by_hand) == {cell_id: cell_id for cell_id in ids(by_hand)}
    changed = load_plan(write_job(tmp_path, recipe=recipe_facts(sequence_length=32)), NIGHT)
    assert not set(ids_without_occurrence(changed).values()) & set(ids(by_hand))


def test_a_finetune_has_its_firing_too(tmp_path: Path) -> None:
    spec = write_job(tmp_path, backbone="tiny-llama2")
    assert ids(load_finetune(spec, NIGHT)) == ids(load_plan(spec, NIGHT)) != ids(load_finetune(spec))


@pytest.mark.parametrize("occurrence", ["", "nightly", "../../x", "nightly/../../x", "nightly/2026-11-22T02:00Z/x"])
def test_an_occurrence_that_could_name_another_folder_is_refused(tmp_path: Path, occurrence: str) -> None:
    with pytest.raises(InputError, match=r"is no (occurrence of|name for) a schedule"):
        load_plan(write_job(tmp_path), occurrence)


# --- elastic placements ---


def test_an_elastic_cell_may_have_every_number_of_workers_that_shares_the_batch(tmp_path: Path) -> None:
    facts = recipe_facts(global_batch_size=12, micro_batch_size="auto")
    plan = load_plan(write_job(tmp_path, facts, placement={"workers": {"min": 1, "max": 5}}))
    cell = plan.cells[0]
    assert cell.worlds == (4, 3, 2, 1)
    assert cell.placement.workers == 4 and cell.micro_batch_size == 3


@given(st.integers(1, 48), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_every_world_of_an_elastic_cell_computes_the_same_global_batch(
    batch: int, fewest: int, more: int, replicas: int
) -> None:
    placement = Placement(workers=Elastic(min=fewest, max=fewest + more), replicas=min(replicas, fewest + more))
    worlds = placement.worlds(batch)
    assert worlds == tuple(sorted(worlds, reverse=True))
    for workers in worlds:
        cell = elastic_cell(placement.on(worlds[0]), batch).on(workers)
        rows = cell.placement.parallel.data * cell.micro_batch_size * cell.accumulation_steps
        assert rows == batch and cell.micro_batch_size <= elastic_cell(placement.on(worlds[0]), batch).micro_batch_size


def elastic_cell(placement: Placement, batch: int) -> Cell:
    chosen = recipe(global_batch_size=batch, micro_batch_size="auto")
    spec = get_spec("tiny-llama2")
    return Cell("cell", spec, 0, chosen, placement, choose_micro_batch_size(spec, chosen, placement), "", "")


@pytest.mark.parametrize(
    ("workers", "complaint"),
    [
        ({"min": 4, "max": 2}, "'placement.workers.max' is 2; it must be at least placement.workers.min, which is 4"),
        ({"min": 0, "max": 2}, "'placement.workers.min' is 0; it must be above 0"),
        ({"max": 2}, "'placement.workers.min' is missing"),
        ({"min": 5, "max": 7}, "'placement.workers' is 5 to 7, and no number of them shares"),
    ],
)
def test_bounds_that_no_world_meets_are_refused(tmp_path: Path, workers: dict[str, int], complaint: str) -> None:
    with pytest.raises(SpecError) as error:
        load_plan(write_job(tmp_path, placement={"workers": workers}))
    assert complaint in str(error.value)


def test_a_fixed_number_of_workers_keeps_its_cell_id(tmp_path: Path) -> None:
    fixed, elastic = (
        load_plan(write_job(tmp_path, placement={"workers": workers})) for workers in (2, {"min": 1, "max": 2})
    )
    assert {cell.cell_id for cell in fixed.cells}.isdisjoint(cell.cell_id for cell in elastic.cells)
    assert [cell.worlds for cell in fixed.cells] == [()] * 4
