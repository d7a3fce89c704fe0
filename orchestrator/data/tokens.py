"""Examples to token arrays in memory, and what a tokenizer did to them. NumPy only."""

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.data.actions import ActionCoding
from orchestrator.data.arrays import TokenizedDataset
from orchestrator.data.examples import Example
from orchestrator.data.images.pixels import DIGEST

if TYPE_CHECKING:
    from backbones.prompting.codec import Codec, Encoded


def tokenize(
    codec: "Codec",
    examples: Iterable[Example],
    checks_round_trips: bool = True,
    actions: ActionCoding | None = None,
) -> TokenizedDataset:
    """Encodes every example, whole: nothing is cut here."""
    input_ids, is_target, is_scored = array("i"), bytearray(), bytearray()
    lengths, sizes, round_trips = [], [], []
    images: list[int] = []
    image_digests = bytearray()
    for example in examples:
        encoded = _encode(codec, example, actions)
        input_ids.extend(encoded.input_ids)
        is_target += encoded.targets
        is_scored += encoded.scored
        lengths.append(len(encoded.input_ids))
        sizes.append(example.learnable_bytes)
        images.append(len(example.images))
        for image in example.images:
            image_digests += bytes.fromhex(image.sha256)
        if checks_round_trips:
            round_trips.append(_round_trips(codec, example))
    return TokenizedDataset(
        input_ids=np.frombuffer(input_ids, np.int32),
        is_target=np.frombuffer(is_target, np.bool_),
        is_scored=np.frombuffer(is_scored, np.bool_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        learnable_bytes=np.array(sizes, np.int64),
        round_trips=np.array(round_trips, np.bool_),
        image_offsets=np.concatenate([[0], np.cumsum(images)]).astype(np.int64) if image_digests else None,
        image_digests=np.frombuffer(image_digests, DIGEST) if image_digests else None,
    )


def _encode(codec: "Codec", example: Example, actions: ActionCoding | None) -> "Encoded":
    if actions is not None:
        ids = actions.encode(np.array(example.actions))
        return codec.encode_action(example.turns[0].content, ids, len(example.images), ends=len(ids) == actions.numbers)
    if example.turns:
        images = [len(turn.images) for turn in example.turns]
        return codec.encode_conversation([(turn.role, turn.content) for turn in example.turns], images)
    return codec.encode_text(example.text)


def _round_trips(codec: "Codec", example: Example) -> bool:
    """Whether the tokens hold every byte that bits per byte divides by: some prompt formats leave `<image>` out.

    An action's ids always stand for its bins.
    """
    if example.action:
        return True
    answers = [turn.content for turn in example.turns if turn.role == "assistant"]
    clean = codec.prompt_builder("prismatic").clean
    return all(codec.round_trips(text) for text in answers or [example.text]) and all(
        clean(text) == text for text in answers
    )


def count(codec: "Codec", data: TokenizedDataset, actions: ActionCoding | None = None) -> dict[str, int]:
    """What sums up over parts. A chunk that its episode cuts short has no EOS."""
    if not len(data):
        return dict.fromkeys(("doubled_bos", "missing_eos", "scored", "learnable_bytes"), 0)
    first, second = data.offsets[:-1], np.minimum(data.offsets[:-1] + 1, len(data.input_ids) - 1)
    bos, ends = codec.bos_token_id, (codec.eos_token_id, codec.text_eos_token_id)
    doubled = 0 if bos is None else int(np.sum((data.input_ids[first] == bos) & (data.input_ids[second] == bos)))
    # A chat template may go on behind the end of the answer, so it is the last target that must be an EOS.
    last = np.maximum.reduceat(np.where(data.is_target, np.arange(len(data.is_target)), -1), first)
    is_missing = (last < 0) | ~np.isin(data.input_ids[last], ends)
    if actions is not None:
        is_missing &= data.learnable_bytes == actions.numbers
    return {
        "doubled_bos": doubled,
        "missing_eos": int(np.sum(is_missing)),
        "scored": int(data.is_scored.sum()),
        "learnable_bytes": int(data.learnable_bytes.sum()),
    }
