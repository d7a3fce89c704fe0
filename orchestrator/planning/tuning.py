"""The trials of equal tuning: their recipes and what they cost. Pure."""

from collections.abc import Iterator

from orchestrator.spec_files.spec import Checkpointing, Evaluate, Recipe, Tuning

SEED = 2**32 - 1  # of every trial: one that a comparison does not get by counting


def trial_recipe(recipe: Recipe, tuning: Tuning, rung: int, rate: float) -> Recipe:
    """A short run with a whole schedule, scored before and after; nothing continues from its checkpoints."""
    changes = {
        "budget": tuning.budget(recipe.budget, rung),
        "evaluate": Evaluate(every=1.0),
        "checkpoint": Checkpointing(every=recipe.checkpoint.every, keep=1),
    }
    return with_rate(recipe, rate).model_copy(update=changes)


def with_rate(recipe: Recipe, rate: float) -> Recipe:
    """The same at another learning rate."""
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"learning_rate": rate})})


def runs_of(tuning: Tuning) -> Iterator[tuple[int, float]]:
    """Every trial that a backbone may get: rung, learning rate. Which get beyond the first, scores say."""
    return ((rung, rate) for rung in range(len(tuning.rung_sizes)) for rate in tuning.rates)


def spend(recipe: Recipe, tuning: Tuning) -> float:
    """What the trials of one backbone cost, as a share of the budget of one full run."""
    amounts = (size * tuning.budget(recipe.budget, rung).amount for rung, size in enumerate(tuning.rung_sizes))
    return sum(amounts) / recipe.budget.amount
