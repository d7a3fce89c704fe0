"""Tokenizes a dataset once per backbone, in parts, into arrays that every worker of every cell then maps.

Folders are named by content (data, tokenizer, prompt format), so a second run finds them and tokenizes nothing. However
the data is parted, the arrays are the same.
"""

import hashlib
import json
import shutil
import uuid
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backbones.actions import ActionTokensError
from orchestrator.data.actions import ActionCoding, statistics_from_json
from orchestrator.data.arrays import COUNTS, join_arrays, load_arrays, save_arrays
from orchestrator.data.arrays import TokenizedDataset as TokenizedDataset
from orchestrator.data.arrays import is_prepared as is_prepared
from orchestrator.data.examples import Example
from orchestrator.data.images.pixels import DIGEST
from orchestrator.data.images.rendering import Rendering, join_pixels, render_part, rendering_of
from orchestrator.data.sources.containers import SPAN_BYTES
from orchestrator.data.sources.dataset import Block, Dataset, HeldBlock
from orchestrator.errors import InputError
from orchestrator.results import read_json

if TYPE_CHECKING:
    from backbones.prompting.codec import Codec, Encoded
    from backbones.spec import Vision

FORMAT = 3  # raise it when the meaning of an array changes
PARTS = 256  # of large data; of less, a part is a span
ROWS_A_SPAN = 4000  # of tables: their bytes are not known

Blocks = tuple[Block | HeldBlock, ...]


@dataclass(frozen=True)
class Prepared:
    """The tokenized splits of one backbone: where they are, and what the tokenizer did to the data."""

    backbone_id: str
    train_file: str
    validation_file: str
    fingerprint: str
    prompt_example: str
    doubled_bos: int
    missing_eos: int
    tokens_per_byte: float
    actions: ActionCoding | None = None  # of a robot's data


@dataclass(frozen=True)
class Split:
    """A split for one tokenizer: where its arrays are or go, and the parts in which they are made."""

    folder: Path
    parts: tuple[Blocks, ...]
    checks_round_trips: bool  # of held-out items alone: what is learned need not be given back
    actions: ActionCoding | None = None
    pixels: Rendering | None = None  # of examples with images

    @property
    def is_ready(self) -> bool:
        return self.folder.is_dir()

    @property
    def works(self) -> "tuple[Work, ...]":
        """What is made apart, one after the other."""
        return (self,) if self.pixels is None else (self.pixels, self)


Work = Split | Rendering


def splits_of(
    codec: "Codec", train: Dataset, validation: Dataset, folder: Path, vision: "Vision | None" = None
) -> tuple[Split, Split]:
    """What has to be there before a backbone can train. A robot's actions are counted in training data alone.

    `vision` is how the backbone sees images. Raises InputError where the tokenizer has no ids to spare for actions.
    """
    actions = _coding(codec, train)
    return (
        _split(codec, train, folder, False, actions, vision),
        _split(codec, validation, folder, True, actions, vision),
    )


def prepare(
    backbone_id: str,
    codec: "Codec",
    train: Dataset,
    validation: Dataset,
    folder: Path,
    vision: "Vision | None" = None,
) -> Prepared:
    """Tokenizes both splits into `folder`, unless arrays of the same content are there. Returns where they are."""
    splits = splits_of(codec, train, validation, folder, vision)
    for work in (work for split in splits for work in split.works):
        if not work.is_ready:
            make_here(codec, work)
    return prepared_of(backbone_id, codec, *splits)


def make_here(codec: "Codec", work: Work) -> None:
    """Makes the arrays of a split, or its pixels, one part after the other."""
    parts = parts_folder(work)
    try:
        join(work, [make_part(codec, work, number, parts) for number in range(len(work.parts))])
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def parts_folder(work: Work) -> Path:
    """Makes the folder of a split's parts until they are joined: one of its own for each who makes them.

    Whoever is late finds it gone, and leaves nothing behind.
    """
    folder = work.folder.with_name(f".{work.folder.name}.parts-{uuid.uuid4().hex[:8]}")
    folder.mkdir(parents=True)
    return folder


def make_part(codec: "Codec", work: Work, number: int, folder: Path) -> Path:
    """Tokenizes or renders one part. Raises DataChangedError and OSError."""
    if isinstance(work, Rendering):
        return render_part(work, number, folder)
    examples = (example for block in work.parts[number] for example in block.read())
    data = tokenize(codec, examples, work.checks_round_trips, work.actions)
    part = folder / f"{number:06d}"
    save_arrays(part, data, _counts(codec, data), is_part=True)
    return part


def join(work: Work, parts: Sequence[Path]) -> None:
    """Makes one folder of all parts."""
    if isinstance(work, Rendering):
        join_pixels(work, parts)
    else:
        join_arrays(parts, work.folder, None if work.pixels is None else work.pixels.folder)


def prepared_of(backbone_id: str, codec: "Codec", train: Split, validation: Split) -> Prepared:
    """Where the arrays of two splits are, and what was counted of them."""
    counts = read_json(train.folder / COUNTS)
    return Prepared(
        backbone_id,
        str(train.folder),
        str(validation.folder),
        codec.fingerprint,
        codec.prompt_example,
        doubled_bos=counts["doubled_bos"],
        missing_eos=counts["missing_eos"],
        tokens_per_byte=counts["scored"] / max(counts["learnable_bytes"], 1),
        actions=train.actions,
    )


def prepared_from_json(document: dict[str, Any]) -> Prepared:
    """The inverse of `dataclasses.asdict`; documents of earlier versions know nothing of actions."""
    coding = document.get("actions")
    if coding is not None:
        coding = ActionCoding(coding["end"], statistics_from_json(coding["statistics"]))
    return Prepared(**{**document, "actions": coding})


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


def load_tokenized(file: str) -> TokenizedDataset:
    """Maps arrays that `prepare` wrote. No array holds objects: the files cannot run code."""
    return load_arrays(Path(file))


def _coding(codec: "Codec", train: Dataset) -> ActionCoding | None:
    if train.actions is None:
        return None
    try:
        return ActionCoding(codec.actions.end, train.actions)
    except ActionTokensError as error:
        raise InputError(f"recipe.data.format is actions: {error}") from error


def _split(
    codec: "Codec",
    dataset: Dataset,
    folder: Path,
    checks_round_trips: bool,
    actions: ActionCoding | None,
    vision: "Vision | None",
) -> Split:
    weights = [_weight(block) for block in dataset.blocks]
    full = max(1.0, sum(weights) / PARTS)
    parts: list[list[Block | HeldBlock]] = []
    weight = full  # of the last part
    for block, more in zip(dataset.blocks, weights, strict=True):
        if weight >= full:
            parts.append([])
            weight = 0.0
        parts[-1].append(block)
        weight += more
    blocks = tuple(map(tuple, parts))
    facts: list[Any] = [FORMAT, codec.fingerprint, dataset.digest, checks_round_trips]
    if actions is not None:
        facts.append(asdict(actions))
    pixels = None
    if vision is not None and dataset.pictures is not None:
        pixels = rendering_of(blocks, dataset.digest, vision.image_size, vision.resample, folder)
        facts.append(pixels.folder.name)
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return Split(folder / name, blocks, checks_round_trips, actions, pixels)


def _weight(block: Block | HeldBlock) -> float:
    """How many spans' work a block is; what is in memory stays together."""
    if isinstance(block, HeldBlock):
        return 1.0
    if block.span.suffix in (".jsonl", ".txt"):
        return (block.span.end - block.span.start) / (SPAN_BYTES * 0.9)  # a span but for its last, broken line
    return block.count / ROWS_A_SPAN


def _encode(codec: "Codec", example: Example, actions: ActionCoding | None) -> "Encoded":
    if actions is not None:
        ids = actions.tokens.encode(actions.statistics.normalise(np.array(example.action)))
        return codec.encode_action(example.turns[0].content, ids.tolist(), len(example.images))
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


def _counts(codec: "Codec", data: TokenizedDataset) -> dict[str, int]:
    """What sums up over parts."""
    if not len(data):
        return dict.fromkeys(("doubled_bos", "missing_eos", "scored", "learnable_bytes"), 0)
    first, second = data.offsets[:-1], np.minimum(data.offsets[:-1] + 1, len(data.input_ids) - 1)
    bos, ends = codec.bos_token_id, (codec.eos_token_id, codec.text_eos_token_id)
    doubled = 0 if bos is None else int(np.sum((data.input_ids[first] == bos) & (data.input_ids[second] == bos)))
    # A chat template may go on behind the end of the answer, so it is the last target that must be an EOS.
    last = np.maximum.reduceat(np.where(data.is_target, np.arange(len(data.is_target)), -1), first)
    missing = int(np.sum((last < 0) | ~np.isin(data.input_ids[last], ends)))
    return {
        "doubled_bos": doubled,
        "missing_eos": missing,
        "scored": int(data.is_scored.sum()),
        "learnable_bytes": int(data.learnable_bytes.sum()),
    }
