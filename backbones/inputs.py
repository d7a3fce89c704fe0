"""`Inputs`: what a backbone is given, from the codec's tokens to the loss. Shape suffixes: B rows, T positions.

The record is passed whole: a backbone that looks at more than text adds to `extras` and `token_extras` in its
`collate`, and its forward pass finds it there; nothing in between looks inside. No torch: ranks make it in numpy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from backbones.prompting.image_tokens import CodecError

if TYPE_CHECKING:
    import torch

    from backbones.spec import Vision

IGNORED = -100  # a label where nothing is learned


class Example(NamedTuple):
    """One example as it is collated. Image tokens stand in `input_ids`, as many as the images take."""

    input_ids: np.ndarray  # (T,) token ids
    is_learned: np.ndarray  # (T,) bool
    images: np.ndarray | None = None  # (images, S, S, 3) uint8, RGB, of the spec's size, in the order of their tokens


@dataclass(frozen=True)
class Inputs:
    """Rows of equal length, right-padded. Labels are already shifted: `labels_BT[b, t]` is the target after token t."""

    input_ids_BT: np.ndarray  # int64
    position_ids_BT: np.ndarray  # int64; starts again at 0 with every packed example
    labels_BT: np.ndarray  # int64; IGNORED where nothing is learned
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)  # further arguments of the forward pass, by name
    # Further arguments with an entry for each token, (..., B, T); `position_ids` here takes the place of those above.
    token_extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def on(self, device: "torch.device") -> "PlacedInputs":
        """The same on a device; a CUDA device is still copying when this returns.

        Position ids and neither mask nor cache: that is what keeps packed examples apart in transformers.
        """
        labels = self.labels_BT.reshape(-1)
        positions = np.flatnonzero(labels != IGNORED)
        own = {"input_ids": self.input_ids_BT, "position_ids": self.position_ids_BT}
        arrays = {**own, **self.extras, **self.token_extras}
        return PlacedInputs(
            arguments={name: _moved(array, device) for name, array in arrays.items()},
            positions_N=_moved(positions, device),
            targets_N=_moved(labels[positions], device),
        )

    def as_one_row(self) -> "Inputs":
        """All rows in one: position ids start again with every row, as with every packed example."""
        ids, positions, labels = self.input_ids_BT, self.position_ids_BT, self.labels_BT
        by_token = {name: array.reshape(*array.shape[:-2], 1, -1) for name, array in self.token_extras.items()}
        return Inputs(ids.reshape(1, -1), positions.reshape(1, -1), labels.reshape(1, -1), self.extras, by_token)


@dataclass(frozen=True)
class PlacedInputs:
    """Rows on a device, and what is to be learned of them. Which positions are labelled was found out on the host."""

    arguments: "Mapping[str, torch.Tensor]"  # of the forward pass
    positions_N: "torch.Tensor"  # int64: of the labelled tokens, the rows laid end to end
    targets_N: "torch.Tensor"  # int64: what follows each of them


def _moved(array: np.ndarray, device: "torch.device") -> "torch.Tensor":
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def make_inputs(rows: Sequence[Sequence[Example]], pad_token_id: int, width: int | None = None) -> Inputs:
    """Concatenates the examples of each row and pads on the right, to the longest row or to `width` positions.

    No attention mask is made: with causal attention right padding cannot reach a real token, and packed examples are
    kept apart by position ids that start again (transformers drops that separation when any mask is passed).
    """
    width = width or max(sum(len(example.input_ids) for example in row) for row in rows)
    input_ids_BT = np.full((len(rows), width), pad_token_id, np.int64)
    position_ids_BT = np.empty((len(rows), width), np.int64)
    labels_BT = np.full((len(rows), width), IGNORED, np.int64)
    for line, row in enumerate(rows):
        start, count = 0, 0
        for ids, is_learned, _ in row:
            end, count = start + len(ids), len(ids)
            input_ids_BT[line, start:end] = ids
            position_ids_BT[line, start:end] = np.arange(count)
            labels_BT[line, start : end - 1] = np.where(is_learned[1:], ids[1:], IGNORED)
            start = end
        position_ids_BT[line, start:] = np.arange(count, count + width - start)  # padding continues the last example
    return Inputs(input_ids_BT, position_ids_BT, labels_BT)


def images_of(rows: Sequence[Sequence[Example]]) -> np.ndarray | None:
    """(images, S, S, 3) uint8: the images of all rows end to end, as their tokens stand; None where there are none."""
    images = [example.images for row in rows for example in row if example.images is not None]
    return np.concatenate(images) if images else None


def placeholders_of(example: Example, placeholder: int, vision: "Vision") -> np.ndarray:
    """Where an example's placeholders stand, in order: int64, (images x tokens an image).

    Raises CodecError where they are not those of its images, as features would slip into the places of another, or
    where one is learned.
    """
    places = np.flatnonzero(example.input_ids == placeholder)
    images = 0 if example.images is None else len(example.images)
    if len(places) != images * vision.tokens_per_image:
        raise CodecError(
            f"an example has {images} images and {len(places)} of their tokens, not {images * vision.tokens_per_image}"
        )
    if example.is_learned[places].any():
        raise CodecError("an example learns the tokens of its images")
    return places


def check_squares(images_NSSC: np.ndarray, vision: "Vision") -> None:
    """Raises ValueError for images that are not of the size that a backbone looks at."""
    side = vision.image_size
    if images_NSSC.dtype != np.uint8 or images_NSSC.shape[1:] != (side, side, 3):
        raise ValueError(
            f"images are {images_NSSC.dtype} {images_NSSC.shape[1:]}, but this backbone looks at uint8 "
            f"{(side, side, 3)}; resize them to the spec's image_size"
        )
