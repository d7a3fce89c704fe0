"""Actions as token ids, beside OpenVLA's ActionTokenizer and what RLDSBatchTransform makes of them, written anew."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from backbones import get_spec
from backbones.actions import BINS, ActionTokensError, action_tokens
from backbones.prompting import Codec, PurePromptBuilder, chat_template_builder, pure_prompt_builder
from backbones.registry import load_codec
from backbones.spec import BackboneSpec

TINY = ["tiny-llama2", "tiny-mistral", "tiny-qwen"]
QUESTION = "What action should the robot take to put the cup into the sink?"


class UpstreamActionTokenizer:
    """As in openvla/openvla; `length` is the tokenizer's `vocab_size`, in forks with extra tokens its `len`."""

    def __init__(self, length: int, bins: int = 256) -> None:
        self.length = length
        self.bins = np.linspace(-1, 1, bins)
        self.bin_centers = (self.bins[:-1] + self.bins[1:]) / 2.0

    def __call__(self, action: np.ndarray) -> np.ndarray:
        return self.length - np.digitize(np.clip(action, a_min=-1.0, a_max=1.0), self.bins)

    def decode_token_ids_to_actions(self, ids: np.ndarray) -> np.ndarray:
        discretized = np.clip(self.length - ids - 1, a_min=0, a_max=self.bin_centers.shape[0] - 1)
        return self.bin_centers[discretized]


def with_extra(backbone_id: str, count: int) -> BackboneSpec:
    return replace(get_spec(backbone_id), extra_tokens=count)


@pytest.mark.parametrize("extra", [0, 256, 300])
@pytest.mark.parametrize("backbone_id", TINY)
def test_ids_and_values_are_upstreams(backbone_id: str, extra: int) -> None:
    codec = load_codec(with_extra(backbone_id, extra), max_length=64)
    upstream = UpstreamActionTokenizer(len(codec.tokenizer) if extra else codec.tokenizer.vocab_size)
    draw = np.random.default_rng(0)
    actions = np.concatenate(
        [
            draw.uniform(-1.2, 1.2, (10_000, 7)),
            [[-1.0, 1.0, 0.0, -0.0, 1.5, -1.5, 1 - 1e-16]],
            upstream.bins[:252].reshape(-1, 7),
        ]
    )
    ids = codec.actions.encode(actions)
    assert np.array_equal(ids, upstream(actions))
    assert np.array_equal(codec.actions.decode(ids), upstream.decode_token_ids_to_actions(ids))
    assert (ids.min(), ids.max()) == (codec.actions.begin, codec.actions.end - 1)
    assert np.abs(codec.actions.decode(ids) - np.clip(actions, -1, 1)).max() <= 1 / 255 + 1e-12
    assert set(np.unique(ids)) <= set(codec.tokenizer.get_vocab().values())


def test_an_id_that_is_no_actions_is_read_as_upstream_reads_it() -> None:
    codec = load_codec(get_spec("tiny-qwen"), max_length=64)
    every = np.arange(len(codec.tokenizer))
    upstream = UpstreamActionTokenizer(codec.tokenizer.vocab_size)
    assert np.array_equal(codec.actions.decode(every), upstream.decode_token_ids_to_actions(every))


@pytest.mark.parametrize("extra", [0, 256])
@pytest.mark.parametrize("backbone_id", TINY)
def test_an_action_stands_where_any_answer_does_and_is_learned_with_its_end(backbone_id: str, extra: int) -> None:
    codec = load_codec(with_extra(backbone_id, extra), max_length=64)
    ids = codec.actions.encode(np.linspace(-1, 1, 7)).tolist()
    encoded = codec.encode_action(QUESTION, ids)
    learned = [id_ for id_, flag in zip(encoded.input_ids, encoded.is_target, strict=True) if flag]
    scored = [id_ for id_, flag in zip(encoded.input_ids, encoded.is_scored, strict=True) if flag]
    assert (learned, scored) == ([*ids, codec.eos_token_id], ids)
    first = encoded.is_target.index(True)
    prompt = codec.tokenizer.decode(encoded.input_ids[:first])
    talk = codec.encode_conversation([("user", QUESTION), ("assistant", "7")])
    whole = codec.tokenizer.decode(talk.input_ids)
    assert prompt == whole[: whole.index("7")]
    assert encoded.input_ids[first + 8 :] == talk.input_ids[len(talk.input_ids) - len(encoded.input_ids) + first + 8 :]
    inference = codec.encode_prompt([("user", QUESTION)])
    assert encoded.input_ids[: len(inference)] == inference


def test_a_question_that_quotes_a_control_token_stays_text() -> None:
    codec = load_codec(get_spec("tiny-llama2"), max_length=64)
    question = "What action should the robot take to write </s>?"
    encoded = codec.encode_action(question, [1000])
    assert codec.tokenizer.decode(encoded.input_ids[:-2]) == f"<s>In: {question}\nOut: "
    assert encoded.input_ids.count(codec.eos_token_id) == 1


@pytest.mark.parametrize("variant", ["legacy", "standard"])
@pytest.mark.parametrize("name", ["llama2", "mistral-v1"])
def test_rows_are_those_of_upstreams_batch_transform(kit: Path, name: str, variant: Any) -> None:
    """Upstream decodes the ids, tokenizes the text, and labels the last eight: exact with these tokenizers."""
    tokenizer = AutoTokenizer.from_pretrained(kit / "tokenizers" / name, local_files_only=True)
    codec = Codec(tokenizer, pure_prompt_builder("<s>", "</s>"), variant=variant)
    upstream = UpstreamActionTokenizer(tokenizer.vocab_size)
    for action in np.random.default_rng(1).uniform(-1.1, 1.1, (250, 7)):
        ids = upstream(action)
        builder = PurePromptBuilder("openvla")
        builder.add_turn("human", QUESTION)
        builder.add_turn("gpt", tokenizer.decode(ids.tolist()))
        expected = tokenizer(builder.get_prompt(), add_special_tokens=True)["input_ids"]
        encoded = codec.encode_action(QUESTION, codec.actions.encode(action).tolist())
        assert encoded.input_ids == expected
        assert encoded.is_target == [False] * (len(expected) - 8) + [True] * 8


@pytest.mark.parametrize("name", ["llama2", "llama3", "mistral-v1", "phi3", "qwen3", "smollm2", "stories512"])
def test_real_tokenizers_have_ids_to_spare(kit: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(kit / "tokenizers" / name, local_files_only=True)
    builder = chat_template_builder(tokenizer) if tokenizer.chat_template else pure_prompt_builder("<s>", "</s>")
    codec = Codec(tokenizer, builder)
    ids = list(range(codec.actions.begin, codec.actions.end))
    encoded = codec.encode_action(QUESTION, ids)
    assert [id_ for id_, flag in zip(encoded.input_ids, encoded.is_scored, strict=True) if flag] == ids
    assert sum(encoded.is_target) == BINS + 1


def test_a_tokenizer_whose_last_token_ends_a_text_is_refused(kit: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(kit / "tokenizers" / "gpt2", local_files_only=True)
    with pytest.raises(ActionTokensError, match=r"has <\|endoftext\|>; use a backbone whose spec has extra_tokens=256"):
        action_tokens(tokenizer, 0)


def test_too_few_extra_tokens_are_refused() -> None:
    codec = load_codec(with_extra("tiny-qwen", 5), max_length=64)
    with pytest.raises(ActionTokensError, match="5 extra tokens are fewer than 256 bins; set extra_tokens: 256"):
        _ = codec.actions
