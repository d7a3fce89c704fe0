"""What a report's answer holds for: its budget, its tuning, its data and its sizes, in words. Pure."""

from collections.abc import Mapping
from typing import Any

from jobs.formats import count, listed, significant, size
from jobs.results.documents import Report, TuningFacts

UNITS = {"tokens": "tokens", "steps": "optimizer steps", "flops": "FLOPs", "gpu_hours": "GPU hours"}


def scope(document: Report) -> list[tuple[str, str]]:
    """(aspect, sentence) for each that the document tells; reports of tests and of earlier versions may tell less."""
    spec: Mapping[str, Any] = document["comparison"]["spec"]
    recipe = spec.get("recipe") or {}
    tuning = document.get("tuning")
    told = (
        ("Budget", _budget(recipe)),
        ("Tuning", _tuning(recipe) if tuning is None else _tuned(tuning)),
        ("Data", _data(document, recipe)),
        ("Sizes", _sizes(document)),
        ("Constraints", _constraints((spec.get("verdict") or {}).get("constraints") or {})),
    )
    return [(aspect, sentence) for aspect, sentence in told if sentence]


def _budget(recipe: Mapping[str, Any]) -> str:
    budget = recipe.get("budget")
    if not budget:
        return ""
    kind, amount = budget["kind"], budget["amount"]
    number = (
        f"{size(amount)} of learnable text" if kind == "bytes" else f"{significant(amount)} {UNITS.get(kind, kind)}"
    )
    return f"{number} for each run. More or less training may rank the backbones differently."


def _tuning(recipe: Mapping[str, Any]) -> str:
    optimizer = recipe.get("optimizer") or {}
    if "learning_rate" not in optimizer:
        return ""
    method = (recipe.get("adaptation") or {}).get("kind", "full")
    return (
        f"none: every backbone was trained with a learning rate of {optimizer['learning_rate']:g}, adaptation {method}."
        " A rate of its own may suit a backbone better."
    )


def _tuned(facts: TuningFacts) -> str:
    rates = ", ".join(f"{rate:g}" for rate in facts["rates"])
    return (
        f"every backbone had the same trials of the learning rates {rates}, and was trained with the best of them. "
        "Short trials may prefer another one than a whole run does."
    )


def _data(document: Report, recipe: Mapping[str, Any]) -> str:
    data, asked = document["data"], recipe.get("data") or {}
    named = data.get("train") or asked.get("train")
    length = f", in rows of {count(recipe['sequence_length'])} tokens" if "sequence_length" in recipe else ""
    training = f"trained on {named or 'the training text'} ({size(data['train_bytes'])}{length})"
    held_out = data.get("validation") or asked.get("validation") or "the held-out text"
    scored = count(data.get("scored", data["validation_examples"]))
    return (
        f"{training}, scored on {scored} items of {held_out} ({size(data['validation_bytes'])}). Other text may differ."
    )


def _sizes(document: Report) -> str:
    sizes = sorted({n for cell in document["cells"] if (n := cell["metrics"].get("parameters")) is not None})
    if not sizes or document["comparison"]["kind"] == "finetune":
        return ""
    told = count(sizes[0]) if len(sizes) == 1 else f"{count(sizes[0])} to {count(sizes[-1])}"
    return f"models of {told} parameters. Larger and smaller ones of the same families may rank differently."


def _constraints(wanted: Mapping[str, Any]) -> str:
    """Memory and speed are those of training, which is what was measured."""
    told = {
        "memory_gib": lambda most: f"at most {significant(most)} GiB of memory on a device in training",
        "tokens_per_second": lambda least: f"at least {significant(least)} tokens/s per device in training",
        "context": lambda least: f"a context of at least {count(least)} tokens",
        "licence": lambda allowed: f"a licence among {listed(allowed)}",
    }
    parts = [written(wanted[name]) for name, written in told.items() if name in wanted]
    return f"only backbones with {listed(parts)} are ranked; one of which it is not known is not." if parts else ""
