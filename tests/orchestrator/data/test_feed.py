"""The order of a run, packing and batches: every example once, in an order that no tokenizer decides."""

import dataclasses
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backbones.hf_causal import HFCausalLLMBackbone
from backbones.inputs import IGNORED, Inputs, make_inputs
from backbones.inputs import Example as Arrays
from backbones.registry import build, get_spec, load_codec
from orchestrator.data.examples import Example, Turn
from orchestrator.data.feed import Feed, StepWork
from orchestrator.data.prepare import TokenizedDataset, tokenize
from orchestrator.training.loss import token_nats

TINY = ("tiny-llama2", "tiny-mistral", "tiny-qwen")
PAD = 999
CPU = torch.device("cpu")

MASKED_IDS = st.lists(st.tuples(st.integers(0, 500), st.booleans()), min_size=2, max_size=12)
ROWS = st.lists(st.lists(MASKED_IDS, min_size=1, max_size=4), min_size=1, max_size=5)


# --- The order of a run -----------------------------------------------------------------------------------------------


def dataset(lengths: list[int]) -> TokenizedDataset:
    """Random ids; every token but the first of an example is learned and scored, and one byte long."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    learned = np.ones(total, np.bool_)
    learned[offsets[:-1]] = False
    ids = np.random.default_rng(0).integers(0, 500, total).astype(np.int32)
    bytes_ = np.array(lengths, np.int64) - 1
    return TokenizedDataset(ids, learned, learned, offsets, bytes_, np.ones(len(lengths), np.bool_))


def feed(lengths: list[int], **changes: Any) -> Feed:
    plain = Feed(
        data=dataset(lengths),
        kept=np.arange(len(lengths)),
        data_digest="digest",
        seed=0,
        global_batch_size=4,
        sequence_length=64,
        packing=False,
    )
    return dataclasses.replace(plain, **changes)


def order(stream: Feed, steps: int) -> list[int]:
    return [index for work in islice(stream.steps(), steps) for row in work.rows for index in row]


@given(st.lists(st.tuples(st.integers(2, 60), st.integers(2, 60)), min_size=4, max_size=40), st.integers(0, 5))
def test_two_tokenizers_read_the_same_examples_in_the_same_order(lengths: list[tuple[int, int]], seed: int) -> None:
    ours, theirs = (feed([pair[side] for pair in lengths], seed=seed) for side in (0, 1))
    assert order(ours, 20) == order(theirs, 20)


def test_packed_rows_hold_the_examples_of_an_epoch_before_those_of_the_next() -> None:
    lengths = [int(n) for n in np.random.default_rng(1).integers(2, 60, 100)]
    stream = feed(lengths, packing=True, global_batch_size=1)
    seen = order(stream, 200)
    assert sorted(seen[:100]) == list(range(100))
    assert sorted(seen[100:200]) == list(range(100))


def test_the_order_depends_on_data_seed_and_epoch_and_on_nothing_else() -> None:
    lengths = [10] * 40
    one = order(feed(lengths), 10)
    assert one == order(feed(lengths, global_batch_size=40), 1)
    assert one == order(feed(lengths, sequence_length=10), 10)
    others = [order(feed(lengths, seed=1), 10), order(feed(lengths, data_digest="other"), 10)]
    second_epoch = order(feed(lengths), 20)[40:]
    assert len({tuple(o) for o in (one, second_epoch, *others)}) == 4
    assert all(sorted(o) == list(range(40)) for o in (one, second_epoch, *others))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block holds 16 examples, so that a small epoch has many."""
    monkeypatch.setattr("orchestrator.data.feed.examples_of_a_block", lambda sequence_length, examples: 16)


SMALL_BLOCKS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@SMALL_BLOCKS
@given(lengths=st.lists(st.integers(2, 90), min_size=1, max_size=100), seed=st.integers(0, 5), size=st.integers(1, 5))
def test_every_example_is_in_one_row_of_an_epoch_and_no_row_is_overfull(
    small_blocks: None, lengths: list[int], seed: int, size: int
) -> None:
    stream = feed(lengths, packing=True, seed=seed, global_batch_size=size)
    rows = [row for work in islice(stream.steps(), 60) for row in work.rows]

    seen: list[int] = []
    for row in rows:
        assert sum(min(lengths[index], 64) for index in row) <= 64
        seen += row
    epochs = [seen[start : start + len(lengths)] for start in range(0, len(seen), len(lengths))]
    assert all(sorted(epoch) == list(range(len(lengths))) for epoch in epochs[:-1])
    assert len(set(epochs[-1])) == len(epochs[-1])


@SMALL_BLOCKS
@given(
    lengths=st.lists(st.integers(2, 60), min_size=3, max_size=80),
    packing=st.booleans(),
    start=st.integers(0, 60),
    size=st.integers(1, 4),
)
def test_a_feed_that_starts_later_goes_on_like_one_that_was_read_up_to_there(
    small_blocks: None, lengths: list[int], packing: bool, start: int, size: int
) -> None:
    stream = feed(lengths, packing=packing, global_batch_size=2 * size, ranks=2)
    assert list(islice(stream.steps(start), 5)) == list(islice(stream.steps(), start, start + 5))


@SMALL_BLOCKS
@given(
    pairs=st.lists(st.tuples(st.integers(2, 60), st.integers(2, 60)), min_size=40, max_size=80),
    dropped=st.sets(st.integers(0, 39), max_size=30),
)
def test_whatever_the_tokenizer_and_what_it_drops_a_block_holds_the_same_examples(
    small_blocks: None, pairs: list[tuple[int, int]], dropped: set[int]
) -> None:
    kept = np.array([index for index in range(len(pairs)) if index not in dropped])
    ours = feed([ours for ours, _ in pairs], packing=True, global_batch_size=1)
    theirs = feed([theirs for _, theirs in pairs], packing=True, global_batch_size=1, kept=kept)
    whole, rest = (order(stream, 120) for stream in (ours, theirs))

    read = 0
    for start in range(0, len(pairs), 16):
        block = whole[start : min(start + 16, len(pairs))]
        left = [index for index in block if index not in dropped]
        assert sorted(rest[read : read + len(left)]) == sorted(left)
        read += len(left)


def test_rows_leave_a_block_in_an_order_that_knows_no_length() -> None:
    drawn = np.random.default_rng(0).lognormal(4, 1, 12_000)
    lengths = np.clip(drawn.astype(np.int64), 2, 512).tolist()
    stream = feed(lengths, packing=True, global_batch_size=1, sequence_length=512)

    rows = [work.rows[0] for work in islice(stream.steps(), 2000)]

    turns = np.arange(len(rows))
    longest = [max(lengths[index] for index in row) for row in rows]
    for property_of_a_row in (longest, [len(row) for row in rows]):
        assert abs(np.corrcoef(turns, property_of_a_row)[0, 1]) < 0.08  # 3.6 standard deviations of no correlation


@given(lengths=st.lists(st.integers(2, 60), min_size=30, max_size=80), ranks=st.sampled_from([2, 3, 4, 6]))
def test_dealing_rows_to_ranks_changes_neither_a_steps_rows_nor_what_they_hold(lengths: list[int], ranks: int) -> None:
    plain, dealt = (feed(lengths, packing=True, global_batch_size=12, ranks=count) for count in (1, ranks))
    for one, other in zip(islice(plain.steps(), 4), islice(dealt.steps(), 4), strict=True):
        assert sorted(one.rows) == sorted(other.rows)
        assert dataclasses.replace(one, rows=()) == dataclasses.replace(other, rows=())


def test_rows_without_packing_keep_the_order_of_the_stream_on_any_number_of_ranks() -> None:
    lengths = [int(n) for n in np.random.default_rng(1).integers(2, 60, 100)]
    assert order(feed(lengths, ranks=4), 20) == order(feed(lengths), 20)


@given(st.sets(st.integers(0, 39), min_size=1, max_size=39))
def test_what_a_candidate_leaves_out_does_not_reorder_the_rest(dropped: set[int]) -> None:
    whole = order(feed([10] * 40, global_batch_size=1), 40)
    kept = [index for index in range(40) if index not in dropped]
    rest = order(feed([10] * 40, global_batch_size=1, kept=np.array(kept)), len(kept))
    assert rest == [index for index in whole if index not in dropped]


# --- Batches ----------------------------------------------------------------------------------------------------------


@given(rows=ROWS)
def test_positions_start_again_with_every_example_and_labels_never_cross_one(rows: Any) -> None:
    arrays = [[Arrays(np.array([i for i, _ in one]), np.array([m for _, m in one])) for one in row] for row in rows]

    batch = make_inputs(arrays, PAD)

    width = max(sum(map(len, row)) for row in rows)
    assert batch.input_ids_BT.shape == batch.position_ids_BT.shape == batch.labels_BT.shape == (len(rows), width)
    for line, row in enumerate(rows):
        expected_ids, expected_positions, expected_labels = [], [], []
        for example in row:
            expected_ids += [token for token, _ in example]
            expected_positions += range(len(example))
            expected_labels += [token if learned else IGNORED for token, learned in example[1:]] + [IGNORED]
        padding = width - len(expected_ids)
        assert batch.input_ids_BT[line].tolist() == expected_ids + [PAD] * padding
        assert batch.labels_BT[line].tolist() == expected_labels + [IGNORED] * padding
        last = expected_positions[-1]
        assert batch.position_ids_BT[line].tolist() == [*expected_positions, *range(last + 1, last + 1 + padding)]


@given(lengths=st.lists(st.integers(2, 90), min_size=4, max_size=60), packing=st.booleans())
def test_a_steps_work_is_what_its_batches_hold_also_of_examples_that_are_cut(lengths: list[int], packing: bool) -> None:
    stream = feed(lengths, packing=packing)
    for work in islice(stream.steps(), 5):
        batch = make_inputs(stream.examples(work.rows), PAD)
        learned = int((batch.labels_BT != IGNORED).sum())
        assert work.targets == work.learnable_bytes == learned
        assert work.tokens == int((batch.input_ids_BT != PAD).sum())
        assert work.examples == sum(map(len, work.rows))


def test_the_bytes_behind_a_cut_are_not_seen() -> None:
    codec = load_codec(get_spec("tiny-mistral"), max_length=64)  # a token is a byte
    turns = (Turn("user", "Say it."), Turn("assistant", "x" * 200))
    data = tokenize(codec, [Example("g", turns)])
    stream = feed([2], data=data, global_batch_size=1)

    (work,) = islice(stream.steps(), 1)

    _, _, is_scored = data.example(0)
    assert work.tokens == 64
    assert work.learnable_bytes == int(is_scored[:64].sum()) < 64
    assert int(is_scored.sum()) == 200


def test_a_step_has_the_rows_of_the_global_batch() -> None:
    works: list[StepWork] = list(islice(feed([10] * 30, global_batch_size=8, packing=True).steps(), 3))
    assert [len(work.rows) for work in works] == [8, 8, 8]


# --- Packed examples do not see each other ----------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("backbone_id", TINY)
def test_the_loss_of_packed_examples_is_the_sum_of_their_losses_alone(backbone_id: str, kernel: str) -> None:
    backbone = build(backbone_id, max_length=256, attention=kernel, compute_dtype=torch.float32)
    assert backbone.llm.config._attn_implementation == kernel
    texts = [
        "Where is it? 你好 😀",
        "A short one.",
        "And one that is a good deal longer, so that rows differ.",
    ]
    data = tokenize(backbone.codec, [Example("g", text=text) for text in texts])
    examples = [Arrays(ids, learned) for ids, learned, _ in map(data.example, range(3))]
    a, b, c = examples

    def nats(batch: Inputs) -> torch.Tensor:
        with torch.no_grad():
            return token_nats(backbone, batch, CPU)

    alone = [nats(make_inputs([[example]], backbone.pad_token_id))[0] for example in examples]
    packed = make_inputs([[a, b, c], [c, a], [b]], backbone.pad_token_id)
    together = nats(packed)

    for line, row in enumerate(([0, 1, 2], [2, 0], [1])):
        expected = torch.cat([alone[index] for index in row])
        torch.testing.assert_close(together[line, : len(expected)], expected, atol=1e-5, rtol=0)
        assert not together[line, len(expected) :].any()
    assert float(together.sum()) == pytest.approx(sum(float(alone[i].sum()) for i in (0, 1, 2, 2, 0, 1)), abs=1e-3)
    one_row = nats(packed.as_one_row())  # what flash attention gets
    torch.testing.assert_close(one_row.view_as(together), together, atol=1e-5, rtol=0)


@cache
def tiny_qwen() -> HFCausalLLMBackbone:
    return build("tiny-qwen", max_length=256, attention="sdpa", compute_dtype=torch.float32)


@settings(max_examples=12, deadline=None)
@given(rows=ROWS)
def test_however_examples_are_packed_their_total_loss_is_the_same(rows: Any) -> None:
    arrays = [[Arrays(np.array([i for i, _ in one]), np.array([m for _, m in one])) for one in row] for row in rows]
    batches = [make_inputs([[example]], 0) for row in arrays for example in row]
    with torch.no_grad():
        packed = float(token_nats(tiny_qwen(), make_inputs(arrays, 0), CPU).double().sum())
        alone = sum(float(token_nats(tiny_qwen(), batch, CPU).double().sum()) for batch in batches)
    assert packed == pytest.approx(alone, rel=1e-5, abs=1e-5)
