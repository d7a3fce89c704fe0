"""The images of a job, as a plan tells them."""

from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from jobs.formats import listed, short_id

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan


class PlannedImages(TypedDict):
    """The images of a plan's data. Sizes are [width, height] in pixels."""

    train: int
    validation: int
    most_per_example: int
    smallest: list[int]
    largest: list[int]
    sides: dict[str, int]  # backbone -> pixels a side of the square that it sees
    tokens: dict[str, int]  # backbone -> tokens that one takes
    flops: dict[str, float]  # backbone -> of training on one, in towers and connector, beside those of its tokens


def find_images(planned: "Plan") -> PlannedImages | None:
    """Counts and sizes of both splits; None where there are no images."""
    from orchestrator.planning.modalities import tokens_of_an_image
    from orchestrator.planning.sizes.flops import training_flops_per_image

    if planned.train.pictures is None or planned.validation.pictures is None:
        return None
    both = planned.train.pictures.followed_by(planned.validation.pictures)
    seeing = {spec.backbone_id: spec.vision for spec in planned.backbones if spec.vision is not None}
    learning = planned.job.recipe.adaptation
    return {
        "train": planned.train.pictures.count,
        "validation": planned.validation.pictures.count,
        "most_per_example": both.most_per_example,
        "smallest": [*both.smallest],
        "largest": [*both.largest],
        "sides": {backbone_id: vision.image_size for backbone_id, vision in seeing.items()},
        "tokens": {backbone_id: tokens_of_an_image(vision) for backbone_id, vision in seeing.items()},
        "flops": {
            spec.backbone_id: training_flops_per_image(spec, learning.kind, learning.vision)
            for spec in planned.backbones
            if spec.vision is not None
        },
    }


def images_in_words(images: PlannedImages | None) -> dict[str, str]:
    """A line of the plan, under its name; none without images."""
    if images is None:
        return {}
    sizes = dict.fromkeys(" x ".join(map(str, size)) for size in (images["smallest"], images["largest"]))
    seen = [
        f"{tokens:,} tokens at {images['sides'][backbone_id]} pixels, "
        f"and {images['flops'][backbone_id] / 1e9:.3g} GFLOP beside theirs, for {short_id(backbone_id)}"
        for backbone_id, tokens in images["tokens"].items()
    ]
    return {
        "images": f"{images['train']:,} in training, {images['validation']:,} held out; {' to '.join(sizes)} pixels, "
        f"at most {images['most_per_example']} an example; each is {listed(seen)}"
    }
