"""Whether data, backbones and recipe go together where rows are a robot's actions, or have images. No torch."""

from collections.abc import Sequence
from dataclasses import replace

from backbones.spec import BackboneSpec, Vision
from orchestrator.data.sources.dataset import Dataset
from orchestrator.errors import SpecProblem
from orchestrator.spec_files.source import SpecSource
from orchestrator.spec_files.spec import Job


def check_actions(source: SpecSource, job: Job, specs: Sequence[BackboneSpec], problems: list[SpecProblem]) -> None:
    """What a recipe must be to learn a robot's actions."""
    data, adaptation = job.recipe.data, job.recipe.adaptation.kind
    if data.format != "actions":
        return
    if data.parity != "intersection":
        message = (
            f"'recipe.data.parity' is '{data.parity}', under which long examples are cut, and part of an action is no "
            "action; set it to intersection"
        )
        problems.append(source.problem("recipe.data.parity", message))
    for spec in specs:
        if spec.extra_tokens and adaptation in ("lora", "bias_only"):
            message = (
                f"'recipe.adaptation.kind' is '{adaptation}', but the tokens that {spec.backbone_id} adds for actions "
                "are new, and only full and last_layer train their rows; choose one of these"
            )
            problems.append(source.problem("recipe.adaptation.kind", message))


def check_vision(source: SpecSource, job: Job, specs: Sequence[BackboneSpec], problems: list[SpecProblem]) -> None:
    """Towers and connectors can only learn where there are some."""
    adaptation = job.recipe.adaptation
    path, value = ("kind", adaptation.kind) if adaptation.kind == "connector" else ("vision", adaptation.vision)
    if value not in ("connector", "full"):
        return
    for spec in specs:
        if spec.vision is None:
            message = (
                f"'recipe.adaptation.{path}' is '{value}', but {spec.backbone_id} reads text alone; put vision towers "
                f"in front of it (fused:TOWERS+{spec.backbone_id}), or remove it from the recipe"
            )
            problems.append(source.problem(f"recipe.adaptation.{path}", message))


def masked(source: SpecSource, job: Job, train: Dataset, validation: Dataset, problems: list[SpecProblem]) -> Dataset:
    """Training data whose statistics know which dimensions of an action are scaled.

    Source of `auto`: openvla/openvla, prismatic/vla/datasets/rlds/oxe/materialize.py, EEF_POS and EEF_R6.
    """
    wanted, path = job.recipe.data.actions, "recipe.data.actions.mask"
    if train.actions is None or validation.actions is None or wanted is None or wanted.mask is None:
        return train
    size, mask = train.actions.dimensions, wanted.mask
    if mask == "auto":
        if size not in (7, 10):
            message = (
                f"'{path}' is auto, which is for 7 or 10 dimensions, and actions have {size}; list true for each that "
                "is scaled, and false for each that stays as it is"
            )
            problems.append(source.problem(path, message))
            return train
        mask = (True,) * (size - 1) + (False,)
    elif len(mask) != size:
        message = f"'{path}' lists {len(mask)} dimensions, and actions have {size}; list each of them"
        problems.append(source.problem(path, message))
        return train
    for data in (train, validation):
        assert data.actions is not None
        if beyond := replace(data.actions, mask=mask).beyond_bins():
            at = beyond[0]
            low, high = data.actions.min[at], data.actions.max[at]
            message = (
                f"'{path}' leaves dimension {at} as it is, but in '{data.reference}' it goes from {low:g} to {high:g}, "
                "and tokens hold -1 to 1; set it to true there"
            )
            problems.append(source.problem(path, message))
            return train
    return replace(train, actions=replace(train.actions, mask=mask))


def check_answers(
    source: SpecSource, job: Job, specs: Sequence[BackboneSpec], train: Dataset, problems: list[SpecProblem]
) -> None:
    """An answer of actions must fit behind its question: it is never cut, so nothing would be left."""
    if train.actions is None:
        return
    length, chunk, size = job.recipe.sequence_length, train.chunk, train.actions.dimensions
    images = 0 if train.pictures is None else 1
    for spec in specs:
        seen = images * tokens_of_an_image(spec.vision) if spec.vision is not None else 0
        if chunk * size + seen < length:
            continue
        answer = f"an answer of {chunk} actions takes" if chunk > 1 else "an action takes"
        beside = f", and an image {seen} of {spec.backbone_id}" if seen else ""
        remedy = f"raise it above {chunk * size + seen}" + (", or lower recipe.data.actions.chunk" if chunk > 1 else "")
        message = (
            f"'recipe.sequence_length' is {length}, but {answer} {chunk * size} tokens{beside}, and none is cut; "
            f"{remedy}"
        )
        problems.append(source.problem("recipe.sequence_length", message))
        return


def check_images(
    source: SpecSource,
    job: Job,
    specs: Sequence[BackboneSpec],
    train: Dataset,
    validation: Dataset,
    problems: list[SpecProblem],
) -> None:
    """Every example has an image and every backbone sees, or none: a rank without an image would hang the others."""
    data, length = job.recipe.data, job.recipe.sequence_length
    if (train.pictures is None) != (validation.pictures is None):
        one, other = ("no images", "some") if train.pictures is None else ("images", "none")
        message = (
            f"'recipe.data.train' is '{data.train}', which has {one}, and '{data.validation}' has {other}; "
            "train on and hold out rows of one kind"
        )
        problems.append(source.problem("recipe.data.train", message))
        return
    for spec in specs:
        if spec.vision is None and train.pictures is not None:
            message = (
                f"'recipe.data.train' is '{data.train}', whose rows have images, and {spec.backbone_id} reads text "
                "alone; take the backbone out, or the images"
            )
            problems.append(source.problem("recipe.data.train", message))
        elif spec.vision is not None and train.pictures is None:
            message = (
                f"'recipe.data.train' is '{data.train}', whose rows have no images, and {spec.backbone_id} learns from "
                "rows that have some; give each row an image, or choose a backbone that reads text"
            )
            problems.append(source.problem("recipe.data.train", message))
        elif spec.vision is not None and length <= (tokens := tokens_of_an_image(spec.vision)):
            message = (
                f"'recipe.sequence_length' is {length}, but one image takes {tokens} tokens of {spec.backbone_id}, and "
                "no example with images is cut; raise it"
            )
            problems.append(source.problem("recipe.sequence_length", message))
        elif spec.vision is not None and job.recipe.packing and not spec.vision.packs:
            message = (
                f"'recipe.packing' is true, but images and prompts that share a row of {spec.backbone_id} would see "
                "each other; set it to false"
            )
            problems.append(source.problem("recipe.packing", message))


def tokens_of_an_image(vision: Vision) -> int:
    """With the tokens that frame it."""
    return vision.tokens_per_image + sum(map(len, vision.frame))
