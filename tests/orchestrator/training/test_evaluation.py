"""Bits per byte: one ruler for every tokenizer.

The oracle: a scorer that gives each token 8 bits per byte of the scored text that it covers must come out at exactly
8, whatever the tokenizer, since every byte is then charged once. Which bytes a token covers is worked out here from the
tokenizer's vocabulary alone; a token that covers none of the text costs so much that scoring it could not go unseen.
The one exception is a space of its own in front of the text, which some tokenizers put there: it costs nothing.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gang import run_ranks
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from backbones.inputs import IGNORED, Inputs, make_inputs
from backbones.prompting import Codec, chat_template_builder, pure_prompt_builder
from backbones.registry import build, get_spec, load_codec
from orchestrator.data.examples import Example, Turn
from orchestrator.data.prepare import TokenizedDataset, tokenize
from orchestrator.parallel import Mesh
from orchestrator.training.evaluation import evaluate, windows
from orchestrator.training.loss import token_nats
from orchestrator.training.measurement import ItemScores, bits_per_byte

KIT = Path(__file__).parents[3].parent / "shared" / "kit" / "tokenizers"
TINY = ["tiny-llama2", "tiny-mistral", "tiny-qwen"]
PURE = ["llama2", "mistral-v1", "gpt2"]
CHAT = ["qwen3", "phi3", "smollm2", "llama3"]
CODECS = [*TINY, *PURE, *CHAT]
CPU = torch.device("cpu")
PAD = 0
NEVER_SCORED = 1e6  # bits


def talk(*contents: str) -> Example:
    roles = ("user", "assistant") * len(contents)
    return Example("g", tuple(Turn(role, content) for role, content in zip(roles, contents, strict=False)))


LONG = " ".join(f"{number} is not {number * number}, said the 猫 to 😀." for number in range(30))
ITEMS = [
    talk("What is 2 + 2?", "It is 4."),
    talk("Two at once?", "First this.", "And then?", "then the second"),
    talk("And in Chinese?", "你好,世界"),
    talk("A face?", "😀 and 👩‍👩‍👧 too"),
    talk("Accents?", "naïve façade — “so”"),
    talk("Some code?", "def f(x):\n    return  x\n\n\tprint( f(1) )"),
    talk("One letter?", "x"),
    talk("Is it marked?", "it ends with </s> and <|im_end|> in the text"),
    talk("A long one?", LONG),
    Example("g", text="A text, not a talk: 12,345 things."),
    Example("g", text="你好"),
    Example("g", text="😀"),
    Example("g", text=LONG[::-1]),
]


@cache
def codec_of(name: str) -> Codec:
    if name in TINY:
        return load_codec(get_spec(name), max_length=512)
    if not KIT.is_dir():
        pytest.skip(f"the kit of real tokenizers is not at {KIT}")
    tokenizer = AutoTokenizer.from_pretrained(KIT / name, local_files_only=True)
    if name in CHAT:
        return Codec(tokenizer, chat_template_builder(tokenizer))
    return Codec(tokenizer, pure_prompt_builder(tokenizer.bos_token or "", tokenizer.eos_token))


@pytest.fixture(scope="module", autouse=True)
def single_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def score(scorer: Callable[[Inputs], torch.Tensor], data: TokenizedDataset, items: Any, **changes: Any) -> ItemScores:
    options = {
        "sequence_length": 64,
        "rows": 3,
        "collate": partial(make_inputs, pad_token_id=PAD),
        "mesh": Mesh.build(CPU),
    } | changes
    return evaluate(scorer, data, np.asarray(items, np.int64), **options)


# --- The oracle -------------------------------------------------------------------------------------------------------


# Byte-level BPE spells bytes that are printable in Latin-1 as themselves, the others from U+0100 on, in order.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_OF_CHARACTER = {chr(byte): byte for byte in PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(OTHERS)}


def token_bytes(codec: Codec, token_id: int) -> bytes:
    """The text of one token, from its spelling in the vocabulary."""
    piece = codec.tokenizer.convert_ids_to_tokens(int(token_id))
    if token_id in codec.tokenizer.added_tokens_decoder:
        return piece.encode()
    if codec.tokenizer.convert_tokens_to_ids("▁") not in (None, codec.tokenizer.unk_token_id):
        # SentencePiece: ▁ for a space, <0xE4> for a byte.
        is_byte = len(piece) == 6 and piece.startswith("<0x")
        return bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("▁", " ").encode()
    return bytes(BYTE_OF_CHARACTER[character] for character in piece)


def covered_bytes(codec: Codec, data: TokenizedDataset, index: int, texts: list[str]) -> np.ndarray:
    """How many bytes of the item's texts each token covers, or -1 where it must not be scored.

    Looks for the texts in what the tokens spell.
    """
    ids, _, _ = data.example(index)
    spelled = [token_bytes(codec, token_id) for token_id in ids]
    ends = np.cumsum([len(part) for part in spelled])
    starts = np.concatenate([[0], ends[:-1]])
    whole = b"".join(spelled)
    covered = np.full(len(ids), -1)
    searched_from = 0 if ITEMS[index].text else whole.index(b"?")
    for text in texts:
        begin = whole.index(text.encode(), searched_from)
        end = begin + len(text.encode())
        overlap = np.minimum(ends, end) - np.maximum(starts, begin)
        covered = np.where(overlap > 0, overlap, covered)
        covered[(ends == begin) & np.array([part == b" " for part in spelled])] = 0
        searched_from = end
    return covered


def oracle(codec: Codec, data: TokenizedDataset) -> Callable[[Inputs], torch.Tensor]:
    """Nats of 8 bits a byte for each label; finds out from the row's tokens alone where it stands."""
    texts = [[turn.content for turn in item.turns if turn.role == "assistant"] or [item.text] for item in ITEMS]
    examples = [(data.example(index)[0], covered_bytes(codec, data, index, texts[index])) for index in range(len(data))]

    def nats(batch: Inputs) -> torch.Tensor:
        result = np.zeros(batch.labels_BT.shape)
        for row, (ids, labels) in enumerate(zip(batch.input_ids_BT, batch.labels_BT, strict=True)):
            places = np.flatnonzero(labels != IGNORED)
            if len(places):
                covered = _find(ids[: places[-1] + 2], examples)[places + 1]
                result[row, places] = np.where(covered < 0, NEVER_SCORED, 8 * covered) * math.log(2)
        return torch.from_numpy(result)

    return nats


def _find(part: np.ndarray, examples: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The covered bytes of a run of tokens, which must occur in one place alone (or cover the same in each)."""
    found = []
    for ids, covered in examples:
        for start in range(len(ids) - len(part) + 1):
            if ids[start] == part[0] and np.array_equal(ids[start : start + len(part)], part):
                found.append(covered[start : start + len(part)])
    assert found
    assert all(np.array_equal(found[0][1:], other[1:]) for other in found)
    return found[0]


@pytest.mark.parametrize("sequence_length", [16, 64, 4096])
@pytest.mark.parametrize("name", CODECS)
def test_eight_bits_for_every_byte_are_eight_bits_per_byte(name: str, sequence_length: int) -> None:
    codec = codec_of(name)
    data = tokenize(codec, ITEMS)
    assert data.round_trips.all()

    scores = score(oracle(codec, data), data, range(len(data)), sequence_length=sequence_length)

    for item, nats, size in zip(ITEMS, scores.nats, scores.bytes, strict=True):
        assert bits_per_byte(nats, int(size)) == pytest.approx(8.0, abs=1e-9), item
    assert scores.bits_per_byte == pytest.approx(8.0, abs=1e-9)
    texts = ["".join(t.content for t in item.turns if t.role == "assistant") or item.text for item in ITEMS]
    assert scores.bytes.tolist() == [len(text.encode()) for text in texts]


@pytest.mark.parametrize("name", CODECS)
def test_the_first_token_of_a_text_is_scored_given_a_start_or_an_end(name: str) -> None:
    codec = codec_of(name)
    data = tokenize(codec, [Example("g", text="Hello there")])
    (window,) = windows(data, np.array([0]), 64)
    context = codec.bos_token_id if codec.bos_token_id is not None else codec.text_eos_token_id
    assert window.input_ids[0] == context
    assert window.is_scored[:2].tolist() == [False, True]
    assert token_bytes(codec, window.input_ids[1]).strip().startswith(b"H")


def test_bits_per_byte_weighs_items_by_their_bytes() -> None:
    items = ItemScores(np.arange(2), np.array([3, 5]) * math.log(2), np.array([2, 2]), np.array([1, 15]))
    assert items.bits_per_byte == pytest.approx(0.5)
    assert items.loss == pytest.approx(2 * math.log(2))


# --- Rolling windows --------------------------------------------------------------------------------------------------


def rising(lengths: list[int]) -> TokenizedDataset:
    """Items whose ids are their own positions; all but the first token is scored."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    return TokenizedDataset(ids, ids > 0, ids > 0, offsets, np.array(lengths) - 1, np.ones(len(lengths), np.bool_))


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5), size=st.integers(8, 70))
def test_every_scored_token_is_in_one_window_that_fits_and_has_context(lengths: list[int], size: int) -> None:
    parts = list(windows(rising(lengths), np.arange(len(lengths)), size))

    for item, length in enumerate(lengths):
        mine = [window for window in parts if window.item == item]
        assert len(mine) == max(math.ceil((length - 1) / (size - 1)), 1)
        scored = np.concatenate([window.input_ids[window.is_scored] for window in mine])
        assert scored.tolist() == list(range(1, length))
        for window in mine:
            assert len(window.input_ids) <= size
            assert not window.is_scored[0]
            assert np.array_equal(np.diff(window.input_ids), np.ones(len(window.input_ids) - 1))
        if length > size:  # the last window has as much context as fits
            assert [len(window.input_ids) for window in mine] == [size] * len(mine)


def test_a_long_item_is_cut_as_lm_evaluation_harness_does() -> None:
    parts = [(w.input_ids.tolist(), w.input_ids[w.is_scored].tolist()) for w in windows(rising([12]), np.array([0]), 8)]
    assert parts == [
        ([0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]),
        ([4, 5, 6, 7, 8, 9, 10, 11], [8, 9, 10, 11]),
    ]


# --- Over ranks, and with a real model --------------------------------------------------------------------------------


def label_nats(batch: Inputs) -> torch.Tensor:
    """A scorer for which a token's nats are its id."""
    return torch.from_numpy(np.where(batch.labels_BT == IGNORED, 0, batch.labels_BT))


def score_rising(lengths: list[int], items: list[int]) -> tuple[list[float], list[int], list[int]]:
    scores = score(label_nats, rising(lengths), items, sequence_length=16, rows=2)
    return scores.nats.tolist(), scores.tokens.tolist(), scores.bytes.tolist()


@pytest.mark.parametrize("items", [[1], [0, 2], [0, 1, 2, 3, 4, 5, 6]], ids=["one batch", "two items", "all"])
def test_the_scores_do_not_depend_on_the_number_of_ranks_even_with_fewer_batches_than_ranks(items: list[int]) -> None:
    lengths = [9, 3, 40, 1, 17, 2, 100]
    expected = (
        [sum(range(lengths[item])) for item in items],
        [lengths[i] - 1 for i in items],
        [lengths[i] - 1 for i in items],
    )

    assert score_rising(lengths, items) == expected
    assert run_ranks(3, score_rising, lengths, items) == [expected] * 3


def test_an_item_without_a_scored_token_adds_nothing_and_disturbs_nobody() -> None:
    nats, tokens, _ = score_rising([1, 5, 1], [0, 1, 2])
    assert nats == [0, 10, 0]
    assert tokens == [0, 4, 0]


@pytest.mark.parametrize("name", TINY)
def test_a_models_score_is_the_same_item_by_item_and_in_padded_batches(name: str) -> None:
    backbone = build(name, max_length=64, attention="sdpa", compute_dtype=torch.float32)
    data = tokenize(backbone.codec, ITEMS)

    def model(batch: Inputs) -> torch.Tensor:
        with torch.no_grad():
            return token_nats(backbone, batch, CPU)

    one, many = (score(model, data, range(len(data)), rows=rows, collate=backbone.collate) for rows in (1, 5))

    assert many.nats == pytest.approx(one.nats, rel=1e-6)
    assert many.tokens.tolist() == one.tokens.tolist() == [int(data.example(i)[2].sum()) for i in range(len(data))]
    assert 0.5 < one.bits_per_byte < 50
