"""Tokenizing a dataset once: what is kept of each example, what is counted, and what is not done twice."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.prompting import Codec, PurePromptBuilder
from backbones.registry import get_spec, load_codec
from orchestrator.data.arrays import join_arrays, load_arrays, save_arrays
from orchestrator.data.examples import Example, Turn
from orchestrator.data.prepare import load_tokenized, prepare, tokenize
from orchestrator.data.sources.dataset import held
from orchestrator.results import read_json

TINY = ("tiny-llama2", "tiny-mistral", "tiny-qwen")
CONVERSATION = Example(
    "g",
    (
        Turn("user", "What is 2 + 2?"),
        Turn("assistant", "It is 4."),
        Turn("user", "And 你好?"),
        Turn("assistant", "naïve 😀"),
    ),
)
TEXT = Example("g", text="A text of its own, with 😀 and </s> in it.")
TRAIN = held("train", (CONVERSATION, TEXT))
VALIDATION = held("validation", (Example("g", text="held out"),))


def codec_of(backbone_id: str) -> Codec:
    return load_codec(get_spec(backbone_id), max_length=128)


@pytest.mark.parametrize("backbone_id", TINY)
def test_the_learned_tokens_are_the_answers_and_their_ends(backbone_id: str) -> None:
    codec = codec_of(backbone_id)
    data = tokenize(codec, TRAIN.read())
    assert len(data) == 2
    for index, expected in enumerate((("It is 4.", "naïve 😀"), (TEXT.text,))):
        ids, is_target, is_scored = data.example(index)
        scored = codec.tokenizer.decode(ids[is_scored], skip_special_tokens=False)
        # The space between prompt and answer may be part of the answer's first token; it is scored then.
        assert re.fullmatch(" ?".join(["", *map(re.escape, expected)]), scored)
        ends = np.isin(ids[is_target & ~is_scored], (codec.eos_token_id, codec.text_eos_token_id))
        assert ends.sum() == len(expected)
        assert data.learnable_bytes[index] == sum(len(text.encode()) for text in expected)
        assert data.targets[index] == is_target.sum()
    assert data.round_trips.tolist() == [True, True]
    assert data.lengths.sum() == len(data.input_ids)


def test_arrays_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    codec = codec_of("tiny-llama2")
    first = prepare("tiny-llama2", codec, TRAIN, VALIDATION, tmp_path)
    made = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}

    second = prepare("tiny-llama2", codec, TRAIN, VALIDATION, tmp_path)

    assert second == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == made
    assert Path(first.train_file).parent == Path(first.validation_file).parent == tmp_path


def test_what_is_read_back_is_what_was_tokenized(tmp_path: Path) -> None:
    codec = codec_of("tiny-qwen")
    prepared = prepare("tiny-qwen", codec, TRAIN, VALIDATION, tmp_path)
    ours, theirs = load_tokenized(prepared.train_file), tokenize(codec, TRAIN.read())
    for name in ("input_ids", "is_target", "is_scored", "offsets", "learnable_bytes", "targets", "first_targets"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert len(load_tokenized(prepared.validation_file)) == 1


@given(cuts=st.lists(st.integers(0, 7), max_size=3))
@settings(max_examples=20)
def test_however_a_split_is_parted_its_arrays_are_the_same(
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, codec = tmp_path_factory.mktemp("parts"), codec_of("tiny-llama2")
    examples = [CONVERSATION, TEXT, *(Example("g", text="word " * n) for n in range(1, 6))]
    places = [0, *sorted(cuts), len(examples)]
    parts = [folder / f"{number}" for number in range(len(places) - 1)]
    for part, first, last in zip(parts, places, places[1:], strict=False):
        save_arrays(part, tokenize(codec, examples[first:last]), {"rows": last - first})
    join_arrays(parts, folder / "whole")

    found, expected = load_arrays(folder / "whole"), tokenize(codec, examples)

    for name in ("input_ids", "is_target", "is_scored", "offsets", "learnable_bytes", "round_trips"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    for index, (_, is_target, _) in enumerate(map(expected.example, range(len(examples)))):
        places_of_targets = [place for place, flag in enumerate(is_target) if flag and place > 0]
        assert found.targets[index] == expected.targets[index] == len(places_of_targets)
        assert found.first_targets[index] == expected.first_targets[index] == places_of_targets[0]
    assert read_json(folder / "whole" / "counts.json") == {"rows": len(examples)}


def test_what_a_rank_maps_cannot_be_written_to(tmp_path: Path) -> None:
    data = load_tokenized(prepare("tiny-qwen", codec_of("tiny-qwen"), TRAIN, VALIDATION, tmp_path).train_file)
    with pytest.raises(ValueError, match="read-only"):
        data.input_ids[0] = 1


def test_files_are_named_by_tokenizer_prompt_format_and_data(tmp_path: Path) -> None:
    llama = codec_of("tiny-llama2")
    asking = type("Asking", (PurePromptBuilder,), {"wrap_human": lambda _, message: f"Q: {message}\nA: "})
    other_format = Codec(llama.tokenizer, asking)
    other_data = held("train", (TEXT,))
    made = [
        prepare("tiny-llama2", llama, TRAIN, VALIDATION, tmp_path),
        prepare("tiny-llama2", other_format, TRAIN, VALIDATION, tmp_path),
        prepare("tiny-qwen", codec_of("tiny-qwen"), TRAIN, VALIDATION, tmp_path),
        prepare("tiny-llama2", llama, other_data, VALIDATION, tmp_path),
    ]
    assert len({one.train_file for one in made}) == 4
    assert made[0].validation_file == made[3].validation_file


@pytest.mark.parametrize("backbone_id", TINY)
def test_every_answer_and_every_text_ends_and_none_has_two_starts(backbone_id: str, tmp_path: Path) -> None:
    prepared = prepare(backbone_id, codec_of(backbone_id), TRAIN, VALIDATION, tmp_path)
    assert (prepared.doubled_bos, prepared.missing_eos) == (0, 0)


def test_doubled_starts_are_counted(tmp_path: Path) -> None:
    twice = type("Twice", (PurePromptBuilder,), {"wrap_first_human": lambda _, m: f"<s><s>In: {m}\nOut: "})
    codec = Codec(codec_of("tiny-llama2").tokenizer, twice)
    assert prepare("tiny-llama2", codec, TRAIN, VALIDATION, tmp_path).doubled_bos == 1


def test_tokens_per_byte_count_the_text_alone(tmp_path: Path) -> None:
    byte_by_byte = prepare("tiny-mistral", codec_of("tiny-mistral"), TRAIN, VALIDATION, tmp_path)
    pairs = prepare("tiny-qwen", codec_of("tiny-qwen"), TRAIN, VALIDATION, tmp_path)
    assert byte_by_byte.tokens_per_byte == 1.0
    assert 0 < pairs.tokens_per_byte < 1.0


def test_an_answer_that_the_prompt_format_shortens_does_not_round_trip() -> None:
    answer = "Look: <image> is a tag."
    example = Example("g", (Turn("user", "What?"), Turn("assistant", answer)))
    kept = {backbone_id: tokenize(codec_of(backbone_id), [example]).round_trips[0] for backbone_id in TINY}
    assert kept == {"tiny-llama2": False, "tiny-mistral": False, "tiny-qwen": True}
