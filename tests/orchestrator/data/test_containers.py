"""The same rows in any container and in any part of it: the same examples, the same digest, and every fault placed."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import png
from pyarrow import parquet
from test_sources import examples, load

from orchestrator.data.sources.containers import number_of_first_row, part_of, rows_of, spans_of
from orchestrator.data.sources.rows import RowError
from orchestrator.errors import SpecError

Row = dict[str, Any]
PAIRS: list[Row] = [
    {"prompt": "What?", "completion": 'a "quoted", answer\nof two lines'},
    {"prompt": "naïve 你好", "completion": "😀", "group": "other"},
    {"prompt": "NA", "completion": "1.50"},  # readers of tables take these for other things than text
]
CHATS: list[Row] = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    | ({"group": row["group"]} if "group" in row else {})
    for row in PAIRS
]


def write_jsonl(file: Path, rows: list[Row]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(file: Path, rows: list[Row]) -> None:
    file.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")


def write_csv(file: Path, rows: list[Row]) -> None:
    names = list(dict.fromkeys(key for row in rows for key in row))
    with open(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)


def write_parquet(file: Path, rows: list[Row]) -> None:
    names = list(dict.fromkeys(key for row in rows for key in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    parquet.write_table(table, file, row_group_size=2)


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("rows", "data_format"), [(PAIRS, "prompt_completion"), (CHATS, "messages")])
def test_the_same_rows_are_the_same_data_in_any_container(
    kind: str, rows: list[Row], data_format: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "expected.jsonl", PAIRS)
    WRITERS[kind](tmp_path / f"found.{kind}", rows)
    expected = load(tmp_path, "expected.jsonl", "prompt_completion")
    found = load(tmp_path, f"found.{kind}", data_format)
    assert found.digest == expected.digest
    assert found.learnable_bytes == expected.learnable_bytes
    assert [one.content_hash for one in found.read()] == [one.content_hash for one in expected.read()]


SHOWN = [{"type": "image", "text": None}, {"type": "image", "text": None}, {"type": "text", "text": "Which?"}]
SAID = [{"type": "text", "text": "That."}]
IMAGE_CHATS = [{"messages": [{"role": "user", "content": SHOWN}, {"role": "assistant", "content": SAID}]}] * 2


@pytest.fixture
def library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own cache, which is otherwise in the home folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "library"))


@pytest.mark.usefixtures("library_cache")
def test_the_same_rows_are_the_same_data_through_the_datasets_library(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "expected.jsonl", PAIRS)
    (tmp_path / "hub").mkdir()
    write_parquet(tmp_path / "hub" / "train.parquet", CHATS)
    write_parquet(tmp_path / "hub" / "test.parquet", CHATS[:2])
    expected = load(tmp_path, "expected.jsonl", "prompt_completion")
    found = load(tmp_path, "hf-dataset:./hub")  # the split that is called as ours
    assert found.digest == load(tmp_path, "hf-dataset:./hub#train").digest == expected.digest
    assert [one.content_hash for one in found.read()] == [one.content_hash for one in expected.read()]
    assert len(load(tmp_path, "hf-dataset:./hub#test")) == 2
    assert [one.turns[0].content for one in examples(tmp_path, "hf-dataset:./hub#train[1:]")] == ["naïve 你好", "NA"]


@pytest.mark.usefixtures("library_cache")
def test_images_of_the_datasets_library_are_the_bytes_that_it_stored(tmp_path: Path) -> None:
    import datasets

    rows = [row | {"images": [png(number), png(9)]} for number, row in enumerate(IMAGE_CHATS)]
    write_parquet(tmp_path / "expected.parquet", rows)
    expected = load(tmp_path, "expected.parquet")
    features = {"messages": datasets.Dataset.from_list(IMAGE_CHATS).features["messages"]}
    features["images"] = datasets.List(datasets.Image())
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(
        tmp_path / "hub" / "train.parquet"
    )
    found = load(tmp_path, "hf-dataset:./hub")
    assert (found.digest, found.pictures) == (expected.digest, expected.pictures)
    assert found.pictures is not None


@pytest.mark.usefixtures("library_cache")
@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("hf-dataset:org/name", "the revision is missing, and without one the rows may change; write hf-dataset:ORG"),
        ("hf-dataset:name", "write hf-dataset:ORG/NAME@REVISION#SPLIT, such as"),
        ("hf-dataset:./nowhere", "there is no folder ./nowhere"),
        ("hf-dataset:./hub#valid", "Unknown split .valid.. Should be one of"),
    ],
)
def test_a_hub_reference_that_names_no_rows_is_refused(reference: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    write_jsonl(tmp_path / "hub" / "train.jsonl", PAIRS)
    with pytest.raises(SpecError, match=rf"'recipe.data.train' is '{reference}': {sentence}"):
        load(tmp_path, reference, "prompt_completion")


def test_sharegpt_and_alpaca_rows_are_conversations(tmp_path: Path) -> None:
    said = [("system", "be kind"), ("human", "q"), ("gpt", "a")]
    write_jsonl(tmp_path / "share.jsonl", [{"conversations": [{"from": who, "value": what} for who, what in said]}])
    write_jsonl(
        tmp_path / "alpaca.jsonl",
        [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Go.", "input": "", "output": "Gone"}],
    )
    turns = [("system", "be kind"), ("user", "q"), ("assistant", "a")]
    same = [[{"role": role, "content": what} for role, what in turns]]
    same.append([{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}])
    same.append([{"role": "user", "content": "Go."}, {"role": "assistant", "content": "Gone"}])
    write_jsonl(tmp_path / "chat.jsonl", [{"messages": messages} for messages in same])
    expected = [one.content_hash for one in examples(tmp_path, "chat.jsonl")]
    found = [*examples(tmp_path, "share.jsonl", "sharegpt"), *examples(tmp_path, "alpaca.jsonl", "alpaca")]
    assert [one.content_hash for one in found] == expected


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"conversations": [{"from": "human", "value": "q"}]}, "sharegpt"),
        ({"instruction": "q", "output": "a"}, "alpaca"),
        ({"prompt": "q", "completion": "a"}, "prompt_completion"),
        ({"text": "q"}, "text"),
    ],
)
def test_rows_of_another_format_are_told_its_name(row: Row, right: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", [row])
    with pytest.raises(SpecError, match=f"'messages' is missing; set recipe.data.format to {right}"):
        load(tmp_path, "x.jsonl")


def test_columns_of_other_names_are_read_under_their_own(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "expected.jsonl", PAIRS)
    names = {"prompt": "question", "completion": "best answer"}
    write_csv(tmp_path / "x.csv", [{names.get(key, key): value for key, value in row.items()} for row in PAIRS])
    found = load(tmp_path, "x.csv", "prompt_completion", columns=names)
    assert found.digest == load(tmp_path, "expected.jsonl", "prompt_completion").digest
    with pytest.raises(SpecError, match=r"recipe.data.columns.completion is 'answer', which this row does not have"):
        load(tmp_path, "x.csv", "prompt_completion", columns={"completion": "answer"})


def test_a_folder_is_the_files_of_one_kind(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "b.parquet", PAIRS[2:])
    write_parquet(folder / "a.parquet", PAIRS[:2])
    write_json(folder / "notes.json", [{"about": "the tables"}])
    found = [one.turns[0].content for one in examples(tmp_path, "data", "prompt_completion")]
    assert found == [row["prompt"] for row in PAIRS]
    write_jsonl(folder / "z.jsonl", PAIRS[:1])  # a folder that has JSONL is its JSONL, whatever else lies there
    assert len(examples(tmp_path, "data", "prompt_completion")) == 1


LINES = st.lists(st.text(st.sampled_from('ab"\\ü\u2028 '), max_size=20), max_size=30)


@given(texts=LINES, size=st.integers(1, 80), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
@settings(max_examples=60)
def test_however_a_file_is_cut_its_rows_are_the_same(
    texts: list[str], size: int, end: str, last: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("cut") / "x.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) if text else "" for text in texts]
    file.write_bytes((end.join(lines) + (end if last else "")).encode())
    spans = spans_of(file, size)
    numbered = [(number_of_first_row(span) + number, row) for span in spans for number, row in rows_of(span)]
    assert numbered == [(number, {"text": text}) for number, text in enumerate(texts, 1) if text]


@given(lines=st.lists(st.sampled_from(["a", "b c", " ", "", "\t"]), max_size=30), size=st.integers(1, 20))
@settings(max_examples=60)
def test_however_a_text_is_cut_its_paragraphs_are_the_same(
    lines: list[str], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("cut") / "x.txt"
    text = "\n".join(lines)
    file.write_text(text, encoding="utf-8")
    found = [row["text"] for span in spans_of(file, size) for _, row in rows_of(span)]
    assert found == [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv", b"prompt,completion\nq,a\nq,a,b\n", "more cells than the header"),
        ("x.csv", b'prompt,completion\n"q,a\n', "not valid CSV"),
        ("x.csv", b"prompt,completion\n\xe9,a\n", "not UTF-8 text"),
        ("x.json", b'{"prompt": "q"}', "holds no list"),
        ("x.json", b"[{]", "not valid JSON"),
        ("x.parquet", b"nonsense", "no Parquet file"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=sentence):
        load(tmp_path, name, "prompt_completion")


def test_a_bad_row_of_a_table_is_named_by_its_number(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [*PAIRS, *PAIRS, {"prompt": "no answer", "completion": None}])
    with pytest.raises(SpecError, match=r"x.parquet:7: 'completion' is missing; add it"):
        load(tmp_path, "x.parquet", "prompt_completion")


def test_what_only_the_standard_library_reads_is_read_as_it_reads_it(tmp_path: Path) -> None:
    deep = "[" * 500 + "]" * 500
    (tmp_path / "x.jsonl").write_text(f'{{"text": "a", "more": {deep}}}\n', encoding="utf-8")
    assert [row for _, row in rows_of(spans_of(tmp_path / "x.jsonl")[0])] == [{"text": "a", "more": json.loads(deep)}]
    (tmp_path / "y.jsonl").write_text('{"text": "\\ud83d"}\n', encoding="utf-8")
    with pytest.raises(SpecError, match="half of a surrogate pair"):
        load(tmp_path, "y.jsonl", "text")


def test_a_part_changes_its_identity_when_its_file_may_have_changed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", PAIRS)
    first = part_of(tmp_path / "x.jsonl")
    assert part_of(tmp_path / "x.jsonl").identity == first.identity
    write_jsonl(tmp_path / "x.jsonl", random.Random(0).sample(PAIRS, 2))
    assert part_of(tmp_path / "x.jsonl").identity != first.identity


def test_a_row_that_cannot_be_read_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\nnonsense\n', encoding="utf-8")
    (_, row), (_, fault) = rows_of(spans_of(tmp_path / "x.jsonl")[0])
    assert row == {"text": "a"} and isinstance(fault, RowError)
