"""`recipe.data.actions.chunk`: an answer is the actions of a row and of those that follow it in its episode."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_actions_data import Row, plan, step, write

from backbones.registry import get_spec, load_codec
from orchestrator.data.parity import check_parity, compare_tokenizers
from orchestrator.data.prepare import load_tokenized, prepare, prepared_from_json, splits_of
from orchestrator.data.sources.cache import ScanCache
from orchestrator.data.sources.containers import part_of, spans_of
from orchestrator.data.sources.dataset import Dataset
from orchestrator.data.sources.load import load_split
from orchestrator.data.sources.scan import Reading, examples_of, scan
from orchestrator.errors import SpecError
from orchestrator.spec_files.source import SpecSource
from orchestrator.spec_files.spec import Actions, Data

Chunk = list[list[float]]
FOLDERS = ["f2cfd7a7966a71c5fb1b2d5cc0770a3b", "248624871bbd51424e482bf8de9a794c"]  # before there were chunks


def load(folder: Path, name: str, chunk: int, **data: Any) -> Dataset:
    source = SpecSource(str(folder / "spec.yaml"), "", {}, {"": 1})
    wanted = Data(train=name, validation=name, format="actions", actions=Actions(chunk=chunk), **data)
    return load_split(source, "train", wanted).dataset


def episodes_of(lengths: list[int], size: int = 2) -> list[Row]:
    draw = np.random.default_rng(0)
    rows = []
    for episode, length in enumerate(lengths):
        for number in range(length):
            action = draw.normal(size=size).round(6).tolist()
            rows.append({"episode": episode, "step": number, "instruction": f"task {episode}", "action": action})
    return rows


def chunks_by_hand(rows: list[Row], chunk: int) -> list[Chunk]:
    """Each row's action and those of the next rows of its episode; fewer at its end."""
    return [
        [one["action"] for one in rows[at : at + chunk] if one["episode"] == row["episode"]]
        for at, row in enumerate(rows)
    ]


def chunks_in(dataset: Dataset) -> list[Chunk]:
    return [[list(action) for action in example.actions] for example in dataset.read()]


# --- Which actions are an answer --------------------------------------------------------------------------------------


def test_an_answer_ends_with_its_episode(tmp_path: Path) -> None:
    rows = [{"episode": name, "instruction": "go", "action": [number]} for name, number in zip("aaabb", range(5))]
    write(tmp_path / "train.jsonl", rows)
    found = load(tmp_path, "train.jsonl", chunk=3)
    assert chunks_in(found) == [[[0], [1], [2]], [[1], [2]], [[2]], [[3], [4]], [[4]]]
    assert [example.learnable_bytes for example in found.read()] == [3, 2, 1, 2, 1]
    assert found.actions is not None
    assert (found.actions.mean, found.actions.num_transitions, found.actions.num_trajectories) == ((2.0,), 5, 2)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    chunk=st.integers(1, 12),
    span_bytes=st.sampled_from([1, 200, 10_000]),
    numbered=st.booleans(),
)
def test_answers_are_those_made_by_hand_however_the_file_is_parted(
    lengths: list[int], chunk: int, span_bytes: int, numbered: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = episodes_of(lengths)
    folder = tmp_path_factory.mktemp("parts")
    file = write(folder / "a.jsonl", [row if numbered else {**row, "step": None} for row in rows])
    reading = Reading("actions", (), chunk)
    found: list[Chunk] = []
    actions = []
    for span in spans_of(file, span_bytes):
        found += [[list(one) for one in example.actions] for _, example in examples_of(span, reading)]
        actions.append(scan(span, reading).actions)
    assert found == chunks_by_hand(rows, chunk)
    assert np.concatenate(actions).tolist() == [row["action"] for row in rows]  # statistics see each action once


@pytest.mark.parametrize("suffix", ["parquet", "json", "csv"])
def test_tables_have_the_same_answers(tmp_path: Path, suffix: str) -> None:
    rows = episodes_of([3, 1, 6])
    file = tmp_path / f"train.{suffix}"
    if suffix == "parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), file, row_group_size=2)
        assert len(spans_of(file)) == 5
    elif suffix == "json":
        file.write_text(json.dumps(rows))
    else:
        lines = [f'{row["episode"]},{row["instruction"]},"{json.dumps(row["action"])}"' for row in rows]
        file.write_text("\n".join(["episode,instruction,action", *lines]) + "\n")
    assert chunks_in(load(tmp_path, file.name, chunk=4)) == chunks_by_hand(rows, 4)


def test_a_step_that_is_left_out_ends_an_answer(tmp_path: Path) -> None:
    rows = episodes_of([6])
    write(tmp_path / "train.jsonl", [*rows[:2], *rows[3:]])
    expected = chunks_by_hand(rows[:2], 3) + chunks_by_hand(rows[3:], 3)
    assert chunks_in(load(tmp_path, "train.jsonl", chunk=3)) == expected


def test_an_episode_is_named_by_its_group_and_number(tmp_path: Path) -> None:
    rows = [{**row, "group": name} for name in "ab" for row in episodes_of([2])]
    write(tmp_path / "train.jsonl", rows)
    found = load(tmp_path, "train.jsonl", chunk=2)
    assert [len(one) for one in chunks_in(found)] == [2, 1, 2, 1]
    assert [example.group for example in found.read()] == ["a", "a", "b", "b"]


# --- Rows that are no chunks ------------------------------------------------------------------------------------------

ROWS = episodes_of([3, 3])
BAD: list[tuple[list[Row], int, str, str]] = [
    ([ROWS[0], ROWS[3], ROWS[1]], 3, "episode", "episode 0 is there again, after rows of others; chunks of actions"),
    (
        [ROWS[1], ROWS[0]],
        1,
        "step",
        "'step' is 1, and 0 in the next row of episode 0; chunks of actions are",
    ),
    ([ROWS[0], ROWS[0]], 1, "step", "'step' is 0, and 0 in the next row of episode 0; .* sort each episode's by step"),
    ([ROWS[0], {**ROWS[1], "step": None}], 1, "step", "'step' is 0, and null in the next row of episode 0"),
    ([{"group": "a", "instruction": "go", "action": [1.0]}], 1, "episode", "'episode' is missing; add the number or"),
    ([{**ROWS[0], "step": 0.5}], 1, "step", "'step' is 0.5; it must be a whole number: correct it, or leave it out"),
    (
        [{**ROWS[0], "action": [[1, 2], [3, 4]]}],
        1,
        "action",
        "a list of actions; write a row for each step with",
    ),
    ([{key: ROWS[0][key] for key in ("instruction", "episode")}], 1, "action", "'action' is missing; set recipe.data"),
    ([ROWS[0], {**ROWS[1], "action": [0.1]}], 2, "action", "'action' has 1 number, and those before it have 2; repair"),
]


@pytest.mark.parametrize(("rows", "line", "path", "message"), BAD)
def test_a_row_out_of_place_is_named_with_its_file_its_place_and_a_remedy(
    tmp_path: Path, rows: list[Row], line: int, path: str, message: str
) -> None:
    file = write(tmp_path / "train.jsonl", rows)
    with pytest.raises(SpecError, match=message) as caught:
        load(tmp_path, "train.jsonl", chunk=2)
    assert [(one.file, one.line, one.path) for one in caught.value.problems] == [(str(file), line, path)]


@pytest.mark.parametrize("first", [ROWS[:2], ROWS])  # it goes on, or files count from 0 each
def test_an_episode_in_two_files_is_refused(tmp_path: Path, first: list[Row]) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", first)
    file = write(tmp_path / "data" / "b.jsonl", ROWS[2:])
    message = "episode 0 is in another file too; chunks of .*: give each file's episodes their own names, or write"
    with pytest.raises(SpecError, match=message) as caught:
        load(tmp_path, "data", chunk=2)
    assert [(one.file, one.line) for one in caught.value.problems] == [(str(file), 1)]


# --- Recipes ----------------------------------------------------------------------------------------------------------


def test_single_actions_are_what_they_were_and_chunks_are_another_cell(tmp_path: Path) -> None:
    train, validation = [step(number) for number in range(20)], [step(number) for number in range(20, 25)]
    plain, one, two, three = (
        plan(tmp_path, train, validation, data={} if actions is None else {"actions": actions})
        for actions in (None, {"chunk": 1}, {"chunk": 2}, {"chunk": 3})
    )
    assert plain.cells == one.cells
    assert plain.cells[0].recipe.data.model_dump().keys() == {"train", "validation", "format", "parity"}
    assert plain.train.digest == "4dc24b2c9109032f9046febe888a2b72"
    splits = splits_of(load_codec(get_spec("tiny-llama2"), max_length=128), one.train, one.validation, tmp_path)
    assert [split.folder.name for split in splits] == FOLDERS
    assert len({planned.cells[0].cell_id for planned in (one, two, three)}) == 3
    assert len({planned.train.digest for planned in (one, two, three)}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"actions": {}}}, "'recipe.data.actions' .*it says nothing; write mask, chunk or both"),
        ({"data": {"actions": {"chunk": 0}}}, "'recipe.data.actions.chunk' is 0; it must be at least 1"),
        (
            {"data": {"actions": {"chunk": 20}}},
            "'recipe.sequence_length' is 128, but an answer of 20 actions takes 140 tokens, and none is cut; raise it "
            "above 140, or lower recipe.data.actions.chunk",
        ),
        (
            {"data": {"actions": {"chunk": 2}}, "evaluate": {"rollouts": {"environment": "metaworld:a", "execute": 3}}},
            "'recipe.evaluate.rollouts.execute' is 3, but the model answers with 2 actions; lower it, or raise",
        ),
        (
            {"evaluate": {"rollouts": {"environment": "metaworld:a", "execute": 2}}},
            "'recipe.evaluate.rollouts.execute' is 2, but the model answers with one action; lower it",
        ),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan(tmp_path, [step(0)], [step(1)], **changes)


# --- Arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone_id", ["tiny-llama2", "tiny-qwen"])
def test_prepared_ids_are_the_bins_of_one_step_after_the_other(tmp_path: Path, backbone_id: str) -> None:
    train, validation = [step(number) for number in range(30)], [step(number) for number in range(30, 37)]
    planned = plan(tmp_path, train, validation, data={"actions": {"chunk": 3}})
    codec = load_codec(get_spec(backbone_id), max_length=128)
    prepared = prepare(backbone_id, codec, planned.train, planned.validation, tmp_path / "prepared")
    actions = np.array([row["action"] for row in train])
    low, high = np.quantile(actions, 0.01, axis=0), np.quantile(actions, 0.99, axis=0)
    for rows, file in ((train, prepared.train_file), (validation, prepared.validation_file)):
        data = load_tokenized(file)
        for index, answer in enumerate(chunks_by_hand(rows, 3)):
            ids, is_target, is_scored = data.example(index)
            scaled = np.clip(2 * (np.array(answer) - low) / (high - low + 1e-8) - 1, -1, 1)
            expected = (codec.tokenizer.vocab_size - np.digitize(scaled, np.linspace(-1, 1, 256))).ravel().tolist()
            assert ids[is_scored].tolist() == expected
            # What would come behind the end of an episode nobody knows: not even that an answer ends there.
            assert ids[is_target].tolist() == expected + ([codec.eos_token_id] if len(answer) == 3 else [])
            assert data.learnable_bytes[index] == len(expected)
    assert (prepared.tokens_per_byte, prepared.missing_eos) == (1.0, 0)
    assert prepared.actions is not None
    assert prepared_from_json(json.loads(json.dumps(asdict(prepared)))) == prepared
    assert prepared.actions.as_openvla("robot")["robot"]["action_chunk"] == 3


@pytest.mark.parametrize("rule", ["intersection", "per_backbone"])
def test_answers_that_do_not_fit_take_the_ends_of_episodes_with_them(tmp_path: Path, rule: str) -> None:
    rows = [step(number, instruction="short" if number < 10 else "much longer than that") for number in range(20)]
    planned = plan(tmp_path, rows[:15], rows[5:], data={"actions": {"chunk": 3}})
    codec = load_codec(get_spec("tiny-qwen"), max_length=128)
    prepared = prepare("x", codec, planned.train, planned.validation, tmp_path / "prepared")
    lengths = load_tokenized(prepared.train_file).lengths
    assert len(planned.train) == 5  # the others are held out
    longest = int(lengths.max())
    fits, misses = (compare_tokenizers([prepared], length, rule) for length in (longest, longest - 1))
    check_parity(fits, "spec.yaml", longest)
    assert (fits.kept["x"].tolist(), fits.scored.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert lengths.tolist() == [longest, longest, longest, longest - 7, longest - 14]
    assert misses.dropped["too_long"] == 5
    message = (
        f"no training example with its answer of 21 tokens fits x at recipe.sequence_length {longest - 1}; raise it"
    )
    with pytest.raises(SpecError, match=message + ", or lower recipe.data.actions.chunk"):
        check_parity(misses, "spec.yaml", longest - 1)
    nothing = replace(fits, scored=np.array([], np.int64), dropped={"held_out_too_long": 5})
    with pytest.raises(SpecError, match=r"no held-out item fits recipe.sequence_length 9 whole, and none is parted"):
        check_parity(nothing, "spec.yaml", 9)


def test_a_single_action_that_does_not_fit_is_not_blamed_on_its_chunk(tmp_path: Path) -> None:
    planned = plan(tmp_path, [step(0)], [step(7)])
    codec = load_codec(get_spec("tiny-qwen"), max_length=128)
    prepared = prepare("x", codec, planned.train, planned.validation, tmp_path / "prepared")
    misses = compare_tokenizers([prepared], 9, "intersection")
    message = "no training example fits x at recipe.sequence_length 9; raise it, or set recipe.data.parity"
    with pytest.raises(SpecError, match=message):
        check_parity(misses, "spec.yaml", 9)


def test_episodes_of_one_step_have_other_arrays_for_other_chunks(tmp_path: Path) -> None:
    rows = [step(number, episode=number) for number in range(9)]
    codec = load_codec(get_spec("tiny-qwen"), max_length=128)
    plans = [plan(tmp_path, rows[:6], rows[6:], data={"actions": {"chunk": chunk}}) for chunk in (1, 2)]
    assert plans[0].train.digest == plans[1].train.digest
    prepared = [prepare("x", codec, one.train, one.validation, tmp_path / "prepared") for one in plans]
    assert prepared[0].train_file != prepared[1].train_file


def test_the_cache_of_large_data_keeps_chunks(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", ROWS)
    scans, reading = ScanCache(tmp_path / "scans", worth_keeping=0), Reading("actions", (), 2)
    first, second = (list(scans.scan([part_of(file)], reading)) for _ in range(2))
    assert [one.episodes for one in first] == [one.episodes for one in second] == [(("episode 0", 0), ("episode 1", 3))]
    dataset = load(tmp_path, "train.jsonl", chunk=2)
    scans.keep_split("key", dataset, 0)
    found = scans.find_split("key", reading)
    assert found is not None
    assert (found[0].chunk, chunks_in(found[0])) == (2, chunks_in(dataset))
    assert dataset.take([0, 4]).chunk == 2
