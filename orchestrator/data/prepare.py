"""Tokenizes a dataset once per backbone and writes flat arrays that every worker of every cell then maps.

Files are named by content (data, tokenizer, prompt format), so a second run finds them and tokenizes nothing.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data.examples import Example
from orchestrator.data.sources.dataset import Dataset
from orchestrator.results import read_json, write_json

if TYPE_CHECKING:
    from backbones.prompting.codec import Codec, Encoded

FORMAT = 2  # raise it when the meaning of an array changes


@dataclass(frozen=True)
class TokenizedDataset:
    """Examples as token ids, concatenated: example i is `input_ids[offsets[i]:offsets[i + 1]]`."""

    input_ids: np.ndarray  # (tokens,) int32
    is_target: np.ndarray  # (tokens,) bool: the model learns to predict this token
    is_scored: np.ndarray  # (tokens,) bool: counts in bits per byte
    offsets: np.ndarray  # (examples + 1,) int64
    learnable_bytes: np.ndarray  # (examples,) int64, UTF-8 bytes
    round_trips: np.ndarray  # (examples,) bool: the prompt format keeps the text, and decode(encode(x)) == x

    def __len__(self) -> int:
        return len(self.learnable_bytes)

    @property
    def lengths(self) -> np.ndarray:
        """(examples,) int64 tokens of each example."""
        return np.diff(self.offsets)

    @cached_property
    def targets(self) -> np.ndarray:
        """(examples,) int64 target tokens of each example. The first token has no predecessor: it is never a target."""
        counted = self.is_target.copy()
        counted[self.offsets[:-1]] = False
        return np.add.reduceat(counted.astype(np.int64), self.offsets[:-1])

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids, target mask and scored mask of one example."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.input_ids[part], self.is_target[part], self.is_scored[part]


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


def prepare(backbone_id: str, codec: "Codec", train: Dataset, validation: Dataset, folder: Path) -> Prepared:
    """Tokenizes both splits into `folder`, unless arrays of the same content are there. Returns where they are."""
    files = [folder / f"{_file_name(codec, dataset)}.npz" for dataset in (train, validation)]
    facts_file = folder / f"{files[0].stem}-{files[1].stem[:16]}.json"
    if not (facts_file.exists() and all(file.exists() for file in files)):
        tokenized = [tokenize(codec, dataset.read()) for dataset in (train, validation)]
        for file, arrays in zip(files, tokenized, strict=True):
            _save(file, arrays)
        write_json(facts_file, _facts(codec, tokenized[0]))
    return Prepared(
        backbone_id, str(files[0]), str(files[1]), codec.fingerprint, codec.prompt_example, **read_json(facts_file)
    )


def tokenize(codec: "Codec", examples: Iterable[Example]) -> TokenizedDataset:
    """Encodes every example, whole: nothing is cut here."""
    examples = tuple(examples)
    encoded = [_encode(codec, example) for example in examples]
    lengths = [len(one.input_ids) for one in encoded]
    return TokenizedDataset(
        input_ids=np.fromiter((token for one in encoded for token in one.input_ids), np.int32, sum(lengths)),
        is_target=np.fromiter((flag for one in encoded for flag in one.is_target), np.bool_, sum(lengths)),
        is_scored=np.fromiter((flag for one in encoded for flag in one.is_scored), np.bool_, sum(lengths)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        learnable_bytes=np.array([example.learnable_bytes for example in examples], np.int64),
        round_trips=np.array([_round_trips(codec, example) for example in examples], np.bool_),
    )


def load_tokenized(file: str) -> TokenizedDataset:
    """Reads arrays that `prepare` wrote. `allow_pickle` stays off: the file cannot run code."""
    with np.load(file, allow_pickle=False) as arrays:
        return TokenizedDataset(**{name: arrays[name] for name in arrays.files})


def _encode(codec: "Codec", example: Example) -> "Encoded":
    if example.turns:
        return codec.encode_conversation([(turn.role, turn.content) for turn in example.turns])
    return codec.encode_text(example.text)


def _round_trips(codec: "Codec", example: Example) -> bool:
    """Whether the tokens hold every byte that bits per byte divides by: some prompt formats leave `<image>` out."""
    answers = [turn.content for turn in example.turns if turn.role == "assistant"]
    clean = codec.prompt_builder("prismatic").clean
    return all(codec.round_trips(text) for text in answers or [example.text]) and all(
        clean(text) == text for text in answers
    )


def _facts(codec: "Codec", train: TokenizedDataset) -> dict[str, Any]:
    first, second = train.offsets[:-1], np.minimum(train.offsets[:-1] + 1, len(train.input_ids) - 1)
    bos, ends = codec.bos_token_id, (codec.eos_token_id, codec.text_eos_token_id)
    doubled = 0 if bos is None else int(np.sum((train.input_ids[first] == bos) & (train.input_ids[second] == bos)))
    # A chat template may go on behind the end of the answer, so it is the last target that must be an EOS.
    last = np.maximum.reduceat(np.where(train.is_target, np.arange(len(train.is_target)), -1), first)
    missing = int(np.sum((last < 0) | ~np.isin(train.input_ids[last], ends)))
    tokens = int(train.is_scored.sum())
    return {
        "doubled_bos": doubled,
        "missing_eos": missing,
        "tokens_per_byte": tokens / max(int(train.learnable_bytes.sum()), 1),
    }


def _file_name(codec: "Codec", dataset: Dataset) -> str:
    key = json.dumps([FORMAT, codec.fingerprint, dataset.digest])
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _save(file: Path, arrays: TokenizedDataset) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.stem}.{os.getpid()}.partial.npz")
    np.savez(partial, **asdict(arrays))
    os.replace(partial, file)
