"""Reading examples: formats, folders, groups, and a digest that says what the data is, not where it lies."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.examples import Example, Turn
from orchestrator.data.sources.dataset import Dataset
from orchestrator.data.sources.load import load_split
from orchestrator.errors import SpecError
from orchestrator.spec_files.source import SpecSource
from orchestrator.spec_files.spec import Data


def source_in(folder: Path) -> SpecSource:
    return SpecSource(str(folder / "spec.yaml"), "", {}, {"": 1})


def load(folder: Path, reference: str, data_format: str = "messages", **more: Any) -> Dataset:
    data = Data.model_validate({"train": reference, "validation": reference, "format": data_format, **more})
    return load_split(source_in(folder), "train", data).dataset


def examples(folder: Path, reference: str, data_format: str = "messages", **more: Any) -> list[Example]:
    return list(load(folder, reference, data_format, **more).read())


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **more}


def test_the_three_formats_are_read_as_written(tmp_path: Path) -> None:
    write(
        tmp_path / "chat.jsonl", {"messages": [{"role": "system", "content": "be kind"}, *chat("q", " a ")["messages"]]}
    )
    write(tmp_path / "pairs.jsonl", {"prompt": "q", "completion": "a"}, {"prompt": "q", "response": "b"})
    write(tmp_path / "text.jsonl", {"text": "all of it"})
    (tmp_path / "book.txt").write_text("one\nparagraph\n\n\n\ntwo\n", encoding="utf-8")
    [conversation] = examples(tmp_path, "chat.jsonl")
    assert conversation.turns == (Turn("system", "be kind"), Turn("user", "q"), Turn("assistant", "a"))
    pairs = examples(tmp_path, "pairs.jsonl", "prompt_completion")
    assert [pair.turns[1].content for pair in pairs] == ["a", "b"]
    assert [example.text for example in examples(tmp_path, "text.jsonl", "text")] == ["all of it"]
    assert [example.text for example in examples(tmp_path, "book.txt", "text")] == ["one\nparagraph", "two"]


def test_only_what_a_model_learns_is_counted_in_bytes(tmp_path: Path) -> None:
    write(tmp_path / "chat.jsonl", chat("a long question", "grün"))
    assert load(tmp_path, "chat.jsonl").learnable_bytes == len("grün".encode()) == 5


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / "data" / f"{name}.jsonl", chat(name, name))
    (tmp_path / "data" / "README.md").write_text("not data", encoding="utf-8")
    assert [example.group for example in examples(tmp_path, "data")] == ["a.jsonl", "b.jsonl"]


def test_a_path_is_looked_up_beside_the_spec_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "specs" / "x.jsonl", chat("q", "beside the spec"))
    write(tmp_path / "cwd" / "x.jsonl", chat("q", "in the working directory"))
    write(tmp_path / "cwd" / "y.jsonl", chat("q", "only there"))
    monkeypatch.chdir(tmp_path / "cwd")
    assert examples(tmp_path / "specs", "x.jsonl")[0].turns[1].content == "beside the spec"
    assert examples(tmp_path / "specs", "y.jsonl")[0].turns[1].content == "only there"


def test_the_digest_follows_content_and_grouping_and_nothing_else(tmp_path: Path) -> None:
    rows = [chat("q", "a"), chat("r", "b")]
    write(tmp_path / "one.jsonl", *rows)
    write(tmp_path / "far" / "away" / "two.jsonl", *[{"note": "ignored", **row} for row in rows])
    write(tmp_path / "named.jsonl", *[{**row, "group": "all"} for row in rows])
    write(tmp_path / "grouped.jsonl", {**rows[0], "group": "x"}, {**rows[1], "group": "y"})
    write(tmp_path / "turned.jsonl", *reversed(rows))
    digests = {
        name: load(tmp_path, f"{name}.jsonl").digest for name in ("one", "far/away/two", "named", "grouped", "turned")
    }
    assert digests["one"] == digests["far/away/two"] == digests["named"]
    assert len({digests["one"], digests["grouped"], digests["turned"]}) == 3


def test_examples_that_are_held_out_are_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", chat("q", "a"), chat("r", "b"), chat("q", "a", group="copy"))
    write(tmp_path / "held.jsonl", chat(" q", "a "))
    data = Data(train="train.jsonl", validation="held.jsonl")
    held_out = load_split(source_in(tmp_path), "validation", data)
    train = load_split(source_in(tmp_path), "train", data, held_out.digests)
    assert train.removed == 2
    assert [example.turns[0].content for example in train.dataset.read()] == ["r"]
    write(tmp_path / "rest.jsonl", chat("r", "b"))
    assert train.dataset.digest == load(tmp_path, "rest.jsonl").digest


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    text = "\n" + json.dumps(chat("q", "a")) + "\r\n\n"
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(examples(tmp_path, "x.jsonl")) == 1


def test_ten_bad_rows_stop_the_reading_of_a_file_of_any_size(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(chat("q", "a")) + "\n" + "nonsense\n" * 500, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load(tmp_path, "x.jsonl")
    assert [problem.line for problem in caught.value.problems] == [*range(2, 12), 1]
    assert "correct these 10 rows first (490 more in what was read)" in str(caught.value)
