"""The tune split, the trials of a plan, and what they cost: exact."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from product import write_job

from orchestrator.data.sources.dataset import DIGEST, Items
from orchestrator.data.tune_split import ROOM, SHARE, choose_tune_split
from orchestrator.errors import SpecError
from orchestrator.planning.plan import Plan, comparison_identity, load_comparison, untuned
from orchestrator.planning.tuning import spend
from orchestrator.spec_files.spec import Budget, Comparison, RateGrid, Tuning

RATES = [1e-3, 4e-3, 1.6e-2]


def planned(folder: Path, **changes: Any) -> Plan:
    job = write_job(folder, **({"backbones": ["tiny-llama2", "tiny-mistral"], "seeds": 2} | changes))
    return load_comparison(job.spec)


def tuning_of(plan: Plan) -> Tuning:
    assert isinstance(plan.job, Comparison) and plan.job.tuning is not None
    return plan.job.tuning


@st.composite
def some_items(draw: st.DrawFn) -> Items:
    groups = draw(st.integers(1, 12))
    count = draw(st.integers(2, 80))
    drawn = draw(st.lists(st.integers(0, groups - 1), min_size=count, max_size=count))
    names, numbers = np.unique(drawn, return_inverse=True)
    sizes = np.array(draw(st.lists(st.integers(1, 500), min_size=count, max_size=count)))
    texts = draw(st.lists(st.integers(0, count), min_size=count, max_size=count))
    digests = np.array([b"%016d" % text for text in texts], DIGEST)
    return Items(sizes, numbers, tuple(f"g{n}" for n in names), digests)


@given(some_items(), st.integers(1, 5000))
def test_no_trial_learns_from_text_on_which_it_is_scored(items: Items, held_out: int) -> None:
    split = choose_tune_split(items, held_out)
    if split is None:  # all of it would be scored, or all the rest are copies
        return
    learned = np.setdiff1d(np.arange(len(items.digests)), split.excluded)
    assert len(learned) and len(split.examples)
    assert not set(items.digests[learned]) & set(items.digests[split.examples])
    assert split.learnable_bytes == items.learnable_bytes[split.examples].sum()
    target = min(SHARE * items.learnable_bytes.sum(), held_out)
    assert split.learnable_bytes <= ROOM * target
    if split.groups:
        chosen = set(items.group_numbers[split.examples])
        assert len(chosen) == split.groups
        assert {*np.flatnonzero(np.isin(items.group_numbers, list(chosen)))} == set(split.examples.tolist())


def test_the_same_groups_are_drawn_whatever_their_order() -> None:
    sizes, numbers = np.full(40, 100), np.repeat(np.arange(20), 2)
    names = tuple(f"source {n}" for n in range(20))
    digests = np.array([b"%016d" % n for n in range(40)], DIGEST)
    split = choose_tune_split(Items(sizes, numbers, names, digests), 10_000)
    turned = choose_tune_split(Items(sizes, numbers[::-1].copy(), names, digests), 10_000)
    assert split is not None and turned is not None and split.groups == 2
    assert set(numbers[split.examples]) == set(numbers[::-1][turned.examples])


def test_one_source_group_is_drawn_from_one_by_one() -> None:
    digests = np.array([b"%016d" % n for n in range(50)], DIGEST)
    split = choose_tune_split(Items(np.full(50, 10), np.zeros(50, int), ("all",), digests), 10_000)
    assert split is not None and split.groups == 0 and len(split.examples) == 5


def test_trials_of_every_backbone_cost_the_same_and_what_is_said(tmp_path: Path) -> None:
    plan = planned(tmp_path, tuning={"learning_rate": RATES, "budget_fraction": 0.4})
    tuning, budget = tuning_of(plan), plan.job.recipe.budget
    assert tuning.rung_sizes == (3, 2)
    amounts = [tuning.budget(budget, rung).amount for rung in (0, 1)]
    assert amounts == pytest.approx([0.2 * budget.amount, 0.4 * budget.amount])
    assert spend(plan.job.recipe, tuning) == pytest.approx(3 * 0.2 + 2 * 0.4)
    by_backbone = {
        spec.backbone_id: [(c.rung, c.learning_rate, c.recipe.budget.amount, c.seed) for c in plan.cells if c.is_trial]
        for spec in plan.backbones
    }
    assert by_backbone["tiny-llama2"] == by_backbone["tiny-mistral"]


def test_runs_that_are_judged_are_those_of_an_untuned_comparison(tmp_path: Path) -> None:
    tuned = planned(tmp_path, tuning={"learning_rate": RATES})
    plain = {cell.cell_id for rate in RATES for cell in planned(tmp_path, recipe__optimizer__learning_rate=rate).cells}
    assert {cell.cell_id for cell in tuned.cells if not cell.is_trial} == plain
    assert untuned(tuned).cells == planned(tmp_path).cells
    assert comparison_identity(tuned) == comparison_identity(planned(tmp_path))


def test_a_further_learning_rate_or_seed_adds_trials_and_changes_none(tmp_path: Path) -> None:
    before = planned(tmp_path, tuning={"learning_rate": RATES})
    wider = planned(tmp_path, tuning={"learning_rate": [*RATES, 6.4e-2]})
    assert {cell.cell_id for cell in before.cells} < {cell.cell_id for cell in wider.cells}
    longer = planned(tmp_path, tuning={"learning_rate": RATES}, seeds=3)
    assert longer.trials == before.trials


def test_trials_are_known_by_what_they_are_scored_on(tmp_path: Path) -> None:
    plan = planned(tmp_path, tuning={"learning_rate": RATES, "budget_fraction": 1.0, "rungs": 1})
    assert plan.tune is not None
    assert {cell.validation_digest for cell in plan.cells if cell.is_trial} == {plan.tune.digest}
    assert {cell.validation_digest for cell in plan.cells if not cell.is_trial} == {plan.validation.digest}


def test_a_grid_rises_by_a_factor() -> None:
    grid = RateGrid(low=1e-4, high=1e-2, trials=5)
    assert grid.rates == (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2)


@given(st.integers(2, 64), st.integers(1, 8), st.floats(0.01, 1))
def test_each_rung_halves_the_trials_and_doubles_their_budget(trials: int, rungs: int, share: float) -> None:
    rates = tuple(1e-5 * 1.1**n for n in range(trials))
    tuning = Tuning(learning_rate=rates, rungs=rungs, budget_fraction=share)
    sizes, whole = tuning.rung_sizes, Budget(kind="bytes", amount=1e9)
    assert sizes[0] == trials and len(sizes) <= rungs and all(size >= 2 for size in sizes)
    assert all(later == (earlier + 1) // 2 for earlier, later in itertools.pairwise(sizes))
    amounts = [tuning.budget(whole, rung).amount for rung in range(len(sizes))]
    assert amounts[-1] == pytest.approx(share * 1e9)
    assert all(later == pytest.approx(2 * earlier) for earlier, later in itertools.pairwise(amounts))


def test_steps_are_whole_and_each_rung_has_more_of_them(tmp_path: Path) -> None:
    tuning = Tuning(learning_rate=(1e-3, 1e-2, 1e-1), budget_fraction=0.3)
    assert [tuning.budget(Budget(kind="steps", amount=7), rung).amount for rung in (0, 1)] == [2, 3]
    with pytest.raises(SpecError, match="has 2 rungs of 1, 1 steps, which do not double"):
        planned(
            tmp_path,
            tuning={"learning_rate": RATES, "budget_fraction": 0.1},
            recipe__budget={"kind": "steps", "amount": 7},
        )


def test_a_trial_is_known_by_what_it_does_whatever_its_rung(tmp_path: Path) -> None:
    two = planned(tmp_path, tuning={"learning_rate": RATES[:2], "budget_fraction": 0.5})
    three = planned(tmp_path, tuning={"learning_rate": RATES, "budget_fraction": 0.5})
    assert two.trials == {cell.cell_id for cell in three.cells if cell.rung == 1 and cell.learning_rate in RATES[:2]}
    assert len({cell.cell_id for cell in three.cells}) == len(three.cells)


def test_too_little_training_data_is_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path, tuning={"learning_rate": RATES})
    file = job.folder / "train.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(SpecError, match="whose 1 examples are too few or too unequal"):
        load_comparison(job.spec)
