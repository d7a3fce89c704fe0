"""The tokens that stand for an image in a prompt, and where they stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backbones.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from backbones.spec import Vision

NO_IMAGES = "this backbone reads text alone, and a conversation has images; choose a backbone that sees"


class CodecError(BackboneError, ValueError):
    """The tokenizer and the prompt format do not fit, or a conversation is not one."""


@dataclass(frozen=True)
class ImageTokens:
    """One image as token ids: its placeholders between what frames them. They are appended, never read out of a text.

    `place`: "turn" is in front of the text of the turn; "bos" behind the first token, as Prismatic has it, whatever
    that token is; "start" in front of everything. `around` is text before and behind each image of a turn, which is
    tokenized with what stands beside it.
    """

    ids: tuple[int, ...]
    placeholder: int  # the id whose embedding a feature of the image replaces
    place: Literal["turn", "bos", "start"] = "turn"
    around: tuple[str, str] = ("", "")

    @classmethod
    def of(cls, vision: "Vision", tokenizer: "PreTrainedTokenizerBase") -> "ImageTokens":
        """Those of a spec. Raises CodecError for a token that the tokenizer does not have."""
        before, behind = vision.frame
        names = [*before, vision.placeholder, *behind]
        vocabulary = tokenizer.get_vocab()
        missing = [name for name in names if name not in vocabulary]
        if missing:
            raise CodecError(f"the tokenizer has no token {missing[0]!r}, which stands around or for an image")
        first, last = ([vocabulary[name] for name in side] for side in (before, behind))
        placeholder = vocabulary[vision.placeholder]
        ids = (*first, *[placeholder] * vision.tokens_per_image, *last)
        return cls(ids, placeholder, vision.place, vision.around)


def images_of_questions(turns: Sequence[tuple[str, str]], images: Sequence[int]) -> list[int]:
    """How many images each user turn has, of a count for each turn. Raises CodecError for those of other turns."""
    if not images:
        return [0 for role, _ in turns if role == "user"]
    if len(images) != len(turns):
        raise CodecError(f"{len(turns)} turns have {len(images)} counts of images; give one for each turn")
    for (role, _), count in zip(turns, images, strict=True):
        if count < 0 or (count and role != "user"):
            raise CodecError(f"a turn of the {role} has {count} images; they stand in turns of the user")
    return [count for (role, _), count in zip(turns, images, strict=True) if role == "user"]
