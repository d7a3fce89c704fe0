"""What a plan would do that nobody is likely to want, in sentences; none of it is refused. Pure."""

from orchestrator.planning.plan import Plan
from orchestrator.spec_files.spec import Adaptation

MOST_EPOCHS = 20.0


def find_epochs(plan: Plan) -> float | None:
    """How often a cell passes over the training data; None where its budget does not say before it has run.

    Of steps: at least so often, an example in each row.
    """
    budget, recipe = plan.job.recipe.budget, plan.job.recipe
    if budget.kind == "bytes":
        return budget.amount / max(plan.train.learnable_bytes, 1)
    if budget.kind == "steps":
        return budget.amount * recipe.global_batch_size / len(plan.train)
    return None


def advise(plan: Plan) -> list[str]:
    """A sentence for each thing, with its remedy."""
    recipe, examples = plan.job.recipe, len(plan.train)
    said = []
    if recipe.global_batch_size > examples:
        said.append(
            f"recipe.global_batch_size is {recipe.global_batch_size}, but there are {examples:,} training examples: "
            "every step sees some of them more than once; lower it, or train on more"
        )
    epochs = find_epochs(plan)
    if epochs is not None and epochs > MOST_EPOCHS:
        said.append(
            f"recipe.budget passes about {epochs:,.0f} times over the training data: the model will know it by heart; "
            f"{MOST_EPOCHS:.0f} times are recipe.budget.amount {MOST_EPOCHS / epochs * recipe.budget.amount:.3g}"
        )
    said += [
        f"{spec.backbone_id} has a new projector, which adaptation {recipe.adaptation.kind} leaves as it was drawn: "
        "what its towers see will mean nothing to it; train that first (recipe.adaptation: {kind: connector}), and "
        "begin with the export (hf:FOLDER)"
        for spec in plan.backbones
        if spec.fusion is not None and not spec.fusion.is_whole and not _connects(recipe.adaptation)
    ]
    return said


def _connects(adaptation: Adaptation) -> bool:
    """Whether connectors learn."""
    return adaptation.kind in ("full", "connector") or adaptation.vision == "full"
