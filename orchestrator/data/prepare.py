"""Tokenizes a dataset once per backbone, in parts, into arrays that every worker of every cell then maps.

Folders are named by content (data, tokenizer, prompt format), so a second run finds them and tokenizes nothing. However
the data is parted, the arrays are the same.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.actions import ActionTokensError
from orchestrator.data.actions import ActionCoding, coding_from_json
from orchestrator.data.arrays import COUNTS, join_arrays, load_arrays, save_arrays
from orchestrator.data.arrays import TokenizedDataset as TokenizedDataset
from orchestrator.data.arrays import is_prepared as is_prepared
from orchestrator.data.images.rendering import Rendering, join_pixels, render_part, rendering_of
from orchestrator.data.sources.containers import SPAN_BYTES
from orchestrator.data.sources.dataset import Block, Dataset, HeldBlock
from orchestrator.data.tokens import count
from orchestrator.data.tokens import tokenize as tokenize
from orchestrator.data.tune_split import TuneSplit
from orchestrator.errors import InputError
from orchestrator.results import read_json

if TYPE_CHECKING:
    from backbones.prompting.codec import Codec
    from backbones.spec import Vision

FORMAT = 3  # raise it when the meaning of an array changes
PARTS = 256  # of large data; of less, a part is a span
ROWS_A_SPAN = 4000  # of tables: their bytes are not known
SEEN_A_SPAN = 400  # rows with images, whatever holds them

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
    # Where learning rates are tuned: the training examples as trials code their actions, without having seen those that
    # they are scored on.
    trial_file: str | None = None
    trial_actions: ActionCoding | None = None

    @property
    def of_trials(self) -> "Prepared":
        """What trials learn from, and are scored on some of."""
        file, actions = self.trial_file or self.train_file, self.trial_actions or self.actions
        return replace(self, train_file=file, validation_file=file, actions=actions)


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
    codec: "Codec",
    train: Dataset,
    validation: Dataset,
    folder: Path,
    vision: "Vision | None" = None,
    tune: TuneSplit | None = None,
) -> tuple[Split, ...]:
    """What has to be there before a backbone can train: training data, held-out data, training data as trials code it.

    A robot's actions are counted in training data alone, in trials without those that they are scored on. `vision` is
    how the backbone sees images. Raises InputError where the tokenizer has no ids to spare for actions.
    """
    actions = _coding(codec, train)
    splits = [
        _split(codec, train, folder, False, actions, vision),
        _split(codec, validation, folder, True, actions, vision),
    ]
    if tune is not None and tune.actions is not None and actions is not None:
        splits.append(_split(codec, train, folder, False, replace(actions, statistics=tune.actions), vision))
    return tuple(splits)


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
    save_arrays(part, data, count(codec, data, work.actions), is_part=True)
    return part


def join(work: Work, parts: Sequence[Path]) -> None:
    """Makes one folder of all parts."""
    if isinstance(work, Rendering):
        join_pixels(work, parts)
    else:
        join_arrays(parts, work.folder, None if work.pixels is None else work.pixels.folder)


def prepared_of(
    backbone_id: str, codec: "Codec", train: Split, validation: Split, trials: Split | None = None
) -> Prepared:
    """Where the arrays of the splits are, and what was counted of them."""
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
        trial_file=None if trials is None else str(trials.folder),
        trial_actions=None if trials is None else trials.actions,
    )


def prepared_from_json(document: dict[str, Any]) -> Prepared:
    """The inverse of `dataclasses.asdict`; documents of earlier versions know nothing of actions."""
    codings = {key: document.get(key) for key in ("actions", "trial_actions")}
    read = {key: coding_from_json(coding) for key, coding in codings.items() if coding is not None}
    return Prepared(**{**document, **read})


def load_tokenized(file: str) -> TokenizedDataset:
    """Maps arrays that `prepare` wrote. No array holds objects: the files cannot run code."""
    return load_arrays(Path(file))


def _coding(codec: "Codec", train: Dataset) -> ActionCoding | None:
    if train.actions is None:
        return None
    try:
        return ActionCoding(codec.actions.end, train.actions, train.chunk)
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
    weights = [_weight(block, dataset.pictures is not None) for block in dataset.blocks]
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
        facts.append(actions.facts)
    pixels = None
    if vision is not None and dataset.pictures is not None:
        pixels = rendering_of(blocks, dataset.digest, vision.image_size, vision.resample, folder)
        facts.append(pixels.folder.name)
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return Split(folder / name, blocks, checks_round_trips, actions, pixels)


def _weight(block: Block | HeldBlock, has_images: bool) -> float:
    """How many spans' work a block is; what is in memory stays together."""
    if isinstance(block, HeldBlock):
        return 1.0
    if has_images:
        return block.count / SEEN_A_SPAN
    if block.span.suffix in (".jsonl", ".txt"):
        return (block.span.end - block.span.start) / (SPAN_BYTES * 0.9)  # a span but for its last, broken line
    return block.count / ROWS_A_SPAN
