"""What planning decides about recomputed activations and gathered weights, for all cells of a job alike."""

from pathlib import Path
from typing import Any

import pytest
from test_plan import ids, recipe_facts, write_job

from backbones.registry import get_spec
from orchestrator.errors import SpecError
from orchestrator.planning.plan import load_comparison
from orchestrator.planning.sizes.memory import find_device_gib, predict_memory
from orchestrator.planning.sizes.recomputation import keeps_weights_gathered, resolve_activation_checkpointing
from orchestrator.spec_files.spec import Placement, Recipe

SMALL, LARGE = get_spec("smollm2-135m-instruct"), get_spec("llama2-7b-pure")


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(recipe_facts(activation_checkpointing="auto", **changes))


def gpus(workers: int = 1, accelerator: str | None = "H100") -> Placement:
    return Placement(workers=workers, gpus_per_worker=1, accelerator=accelerator)


def test_auto_recomputes_nothing_where_every_backbone_fits_with_its_activations() -> None:
    one = recipe(global_batch_size=1, micro_batch_size=1)
    assert resolve_activation_checkpointing(one, gpus(), [SMALL]) is False
    assert resolve_activation_checkpointing(one, gpus(), [LARGE]) is True
    assert resolve_activation_checkpointing(one, gpus(), [SMALL, LARGE]) is True  # one answer for a comparison


def test_auto_recomputes_on_a_device_that_nobody_knows() -> None:
    assert resolve_activation_checkpointing(recipe(), gpus(accelerator=None), [SMALL]) is True
    assert resolve_activation_checkpointing(recipe(), Placement(), [SMALL]) is True


@pytest.mark.parametrize("said", [True, False, "selective"])
def test_what_a_recipe_says_is_what_happens(said: Any) -> None:
    told = recipe().model_copy(update={"activation_checkpointing": said})
    assert resolve_activation_checkpointing(told, gpus(), [SMALL, LARGE]) == said


def test_weights_stay_gathered_only_where_all_of_them_fit_beside_the_rest() -> None:
    told = recipe(global_batch_size=1, micro_batch_size=1).model_copy(update={"activation_checkpointing": True})
    assert keeps_weights_gathered(SMALL, told, gpus(), 1)
    assert not keeps_weights_gathered(SMALL, told, gpus(accelerator=None), 1)
    # Two workers of 80 GB hold the states of 7 B parameters, but not their bf16 values, unsharded, as well.
    sharded = gpus(2)
    usable = find_device_gib(sharded)
    assert usable is not None and predict_memory(LARGE, told, sharded, 1).total < usable
    assert not keeps_weights_gathered(LARGE, told, sharded, 1)


def test_the_cells_of_a_plan_carry_the_decision_and_not_the_question(tmp_path: Path) -> None:
    asked = load_comparison(write_job(tmp_path / "auto", recipe_facts(activation_checkpointing="auto")))
    told = load_comparison(write_job(tmp_path / "true", recipe_facts(activation_checkpointing=True)))
    silent = load_comparison(write_job(tmp_path / "silent", recipe_facts()))

    assert {cell.recipe.activation_checkpointing for cell in asked.cells} == {True}
    assert ids(asked) == ids(told) == ids(silent)


def test_keys_that_came_later_leave_cell_ids_as_they_were(tmp_path: Path) -> None:
    plain = load_comparison(write_job(tmp_path / "plain"))
    assert "compile" not in plain.job.recipe.model_dump()
    assert ids(load_comparison(write_job(tmp_path / "auto", recipe_facts(compile="auto")))) == ids(plain)
    assert ids(load_comparison(write_job(tmp_path / "layers", recipe_facts(compile="layers")))) != ids(plain)
    selective = recipe_facts(activation_checkpointing="selective")
    assert ids(load_comparison(write_job(tmp_path / "selective", selective))) != ids(plain)


def test_a_word_that_names_no_way_to_recompute_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"recipe\.activation_checkpointing"):
        load_comparison(write_job(tmp_path, recipe_facts(activation_checkpointing="sometimes")))
