"""`backbone plan`: what a job would do, as plain data and in words."""

from typing import TYPE_CHECKING

from rich.table import Table
from typing_extensions import TypedDict

from jobs.cli import tables
from jobs.formats import duration, listed, money, short_id, significant
from jobs.results.costs.documents import Device
from jobs.results.costs.forecast import predict
from jobs.results.judging.constraints import find_ruled_out
from orchestrator.planning.plan import expected
from orchestrator.tracking.run import without_password

if TYPE_CHECKING:
    from jobs.results.documents import Facts
    from orchestrator.planning.plan import Plan


class PlannedCell(TypedDict):
    """A cell of `backbone plan --json`."""

    cell_id: str
    backbone_id: str
    seed: int
    micro_batch_size: int
    accumulation_steps: int
    predicted_memory_gib: float
    device_memory_gib: float | None  # None: the plan does not know the device
    flops_per_token: float
    infeasible: str | None  # why the cell cannot run
    any_rate: bool  # whether it stands for a run at whichever learning rate trials will choose
    predicted_seconds: float | None  # None: nothing like it was measured in this storage
    predicted_device_hours: float | None
    predicted_cost: float | None


class PlannedCost(TypedDict):
    """What all cells of a plan would take, as far as it is known."""

    device: Device
    device_hours: float  # of the cells that are known
    cost: float | None
    currency: str | None
    known_cells: int
    unknown_backbones: list[str]
    measured_in: dict[str, str]  # backbone -> job
    measured_on: dict[str, str]  # backbone -> hardware


class PlannedImages(TypedDict):
    """The images of a plan's data. Sizes are [width, height] in pixels."""

    train: int
    validation: int
    most_per_example: int
    smallest: list[int]
    largest: list[int]
    sides: dict[str, int]  # backbone -> pixels a side of the square that it sees
    tokens: dict[str, int]  # backbone -> tokens that one takes


class PlanDocument(TypedDict):
    """`backbone plan --json`."""

    id: str
    kind: str
    name: str
    storage: str
    tracking_uri: str
    train_examples: int
    train_bytes: int
    validation_examples: int
    validation_bytes: int
    images: PlannedImages | None  # None: its rows have none
    placement: "Facts"
    recipe: "Facts"
    predicted: PlannedCost
    ruled_out: dict[str, list[str]]  # backbone -> which constraints it cannot meet, as is known before it runs
    cells: list[PlannedCell]


def plan_document(planned: "Plan") -> PlanDocument:
    """The plan as plain data. Cells beyond the first trials stand for those at whichever learning rate is best."""
    planned = expected(planned)
    predicted, rule = predict(planned), planned.job.rule
    cells: list[PlannedCell] = [
        {
            "cell_id": cell.cell_id,
            "backbone_id": cell.backbone.backbone_id,
            "seed": cell.seed,
            "micro_batch_size": cell.micro_batch_size,
            "accumulation_steps": cell.accumulation_steps,
            "predicted_memory_gib": forecast.memory.total,
            "device_memory_gib": forecast.device_gib,
            "flops_per_token": forecast.flops_per_token,
            "infeasible": None if forecast.infeasible is None else forecast.infeasible.message,
            "any_rate": planned.job.tuned_by is not None and cell.rung != 0,
            "predicted_seconds": found.seconds,
            "predicted_device_hours": found.device_hours,
            "predicted_cost": found.cost,
        }
        for cell, forecast, found in zip(planned.cells, planned.forecasts, predicted.cells, strict=True)
    ]
    return {
        "id": planned.job_id,
        "kind": planned.kind,
        "name": planned.job.name,
        "storage": str(planned.storage),
        "tracking_uri": without_password(planned.tracking_uri),
        "train_examples": len(planned.train),
        "train_bytes": planned.train.learnable_bytes,
        "validation_examples": len(planned.validation),
        "validation_bytes": planned.validation.learnable_bytes,
        "images": _images(planned),
        "placement": planned.job.placement.model_dump(),
        "recipe": planned.job.recipe.model_dump(mode="json"),
        "predicted": {
            "device": predicted.device,
            "device_hours": predicted.device_hours,
            "cost": predicted.cost,
            "currency": None if predicted.rate is None else predicted.rate.currency,
            "known_cells": predicted.known,
            "unknown_backbones": [*predicted.unknown],
            "measured_in": {name: speed.job_id for name, speed in predicted.speeds.items()},
            "measured_on": {name: speed.hardware for name, speed in predicted.speeds.items()},
        },
        "ruled_out": {} if rule is None else find_ruled_out(rule.constraints, planned.backbones),
        "cells": cells,
    }


def print_plan(planned: "Plan") -> None:
    """Cells, batches and predicted memory, then the job in words."""
    document = plan_document(planned)
    recipe, placement = planned.job.recipe, planned.job.placement
    table = Table(box=None, pad_edge=False, header_style="bold")
    currency = document["predicted"]["currency"]
    headings = ["cell", "parameters", "micro x accumulation x workers", "GiB per device", "GFLOP per token", "time"]
    for name in [*headings, *(["cost"] if currency else [])]:
        table.add_column(name, justify="left" if name == "cell" else "right", no_wrap=True)
    for cell, facts in zip(expected(planned).cells, document["cells"], strict=True):
        limit = facts["device_memory_gib"]
        table.add_row(
            cell.cell_id + (" or at another rate" if facts["any_rate"] else ""),
            tables.abbreviated(cell.backbone.parameters),
            f"{cell.micro_batch_size} x {cell.accumulation_steps} x {cell.placement.most}",
            f"{facts['predicted_memory_gib']:.2f}" + (f" of {limit:.0f}" if limit else ""),
            f"{facts['flops_per_token'] / 1e9:.3g}",
            duration(facts["predicted_seconds"]),
            *([money(facts["predicted_cost"], currency)] if currency else []),
        )
    tables.print_wide(table)
    lines = {
        "job": planned.job_id,
        "data": f"{len(planned.train):,} training examples ({planned.train.learnable_bytes:,} learnable "
        f"bytes), {len(planned.validation):,} held out ({planned.validation.learnable_bytes:,} bytes)",
        **_images_in_words(document["images"]),
        "budget": f"{significant(recipe.budget.amount)} {recipe.budget.kind} per cell, {recipe.precision}",
        **_tuning_in_words(planned),
        "placement": f"{placement.number} workers x {placement.gpus_per_worker} GPU, {placement.cpus_per_worker} CPU",
        "storage": str(planned.storage),
        "tracking": without_password(planned.tracking_uri),
        **_looks_in_words(planned),
        "cost": _cost(document["predicted"], len(document["cells"]), planned),
    }
    print()
    for name, text in lines.items():
        print(f"{name:10} {text}")
    for backbone_id, reasons in document["ruled_out"].items():
        told = f"{'; '.join(reasons)}: it would be trained and not ranked; take it out of the spec"
        print(f"{'ruled out':10} {backbone_id}: {told}")


def _images(planned: "Plan") -> PlannedImages | None:
    from orchestrator.planning.modalities import tokens_of_an_image

    if planned.train.pictures is None or planned.validation.pictures is None:
        return None
    both = planned.train.pictures.followed_by(planned.validation.pictures)
    seeing = {spec.backbone_id: spec.vision for spec in planned.backbones if spec.vision is not None}
    return {
        "train": planned.train.pictures.count,
        "validation": planned.validation.pictures.count,
        "most_per_example": both.most_per_example,
        "smallest": [*both.smallest],
        "largest": [*both.largest],
        "sides": {backbone_id: vision.image_size for backbone_id, vision in seeing.items()},
        "tokens": {backbone_id: tokens_of_an_image(vision) for backbone_id, vision in seeing.items()},
    }


def _images_in_words(images: PlannedImages | None) -> dict[str, str]:
    if images is None:
        return {}
    sizes = dict.fromkeys(" x ".join(map(str, size)) for size in (images["smallest"], images["largest"]))
    seen = [
        f"{tokens:,} tokens at {images['sides'][backbone_id]} pixels for {short_id(backbone_id)}"
        for backbone_id, tokens in images["tokens"].items()
    ]
    return {
        "images": f"{images['train']:,} in training, {images['validation']:,} held out; {' to '.join(sizes)} pixels, "
        f"at most {images['most_per_example']} an example; each is {listed(seen)}"
    }


def _cost(found: PlannedCost, cells: int, planned: "Plan") -> str:
    """What it would take, by what was measured before, or why nobody can say."""
    if not found["known_cells"]:
        return "not known: nothing like it was measured in this storage; `backbone benchmark SPEC` measures the speed"
    priced = f", {money(found['cost'], found['currency'])}" if found["currency"] else ""
    of = "" if found["known_cells"] == cells else f" for {found['known_cells']} of {cells} cells"
    parts = [f"about {significant(found['device_hours'])} {found['device']} hours{priced}{of}"]
    if found["measured_in"]:
        places = ((job_id, found["measured_on"][name]) for name, job_id in found["measured_in"].items())
        measured = dict.fromkeys(f"{job_id} on {hardware}" for job_id, hardware in places)
        parts.append(f"by the speed measured in {', '.join(measured)}")
    if found["unknown_backbones"]:
        parts.append(f"not measured yet: {', '.join(map(short_id, found['unknown_backbones']))}")
    if planned.job.price is not None and not found["currency"]:
        kind = "per_gpu_hour" if planned.job.placement.gpus_per_worker else "per_core_hour"
        parts.append(f"the price of these workers is not known: set price.{kind}")
    return "; ".join(parts)


def _tuning_in_words(planned: "Plan") -> dict[str, str]:
    from orchestrator.planning.tuning import spend

    tuning, recipe = planned.job.tuned_by, planned.job.recipe
    if tuning is None or planned.tune is None:
        return {}
    budgets = [significant(tuning.budget(recipe.budget, rung).amount) for rung in range(len(tuning.rung_sizes))]
    rungs = [f"{size} of {budget}" for size, budget in zip(tuning.rung_sizes, budgets, strict=True)]
    return {
        "tuning": f"{listed(rungs)} {recipe.budget.kind} for each backbone, {100 * spend(recipe, tuning):.0f} % of a "
        f"cell's budget, scored on {len(planned.tune.examples):,} training examples; then each trains at its best rate"
    }


def _looks_in_words(planned: "Plan") -> dict[str, str]:
    """What earlier verdicts of the same comparison leave for this one; nothing where there were none."""
    from jobs.results.judging.looks import load_looks

    rule = planned.job.rule
    earlier = [] if rule is None else load_looks(planned)
    if rule is None or not earlier:
        return {}
    times = "once" if len(earlier) == 1 else f"{len(earlier)} times"
    spent = sum(record["spent"] for record in earlier)
    return {
        "looks": f"judged {times} before, which spent {spent:.2g} of alpha {rule.alpha:g}; other runs are another look"
    }


def print_looks(planned: "Plan") -> None:
    """At how many seeds a decision looks, and at which level each tests, where nobody looked before."""
    from jobs.results.judging.spending import nominal_levels
    from orchestrator.spec_files.spec import Decision

    job = planned.job
    assert isinstance(job, Decision)
    seeds = range(job.first, len(job.seed_list) + 1)
    levels = nominal_levels(job.verdict.alpha, [number / len(job.seed_list) for number in seeds])
    print(f"looks      {', '.join(f'{n} seeds at {p:.2g}' for n, p in zip(seeds, levels, strict=True))}")
    print(f"first      {job.first * len(planned.backbones)} cells; the others only where it is still undecided")
