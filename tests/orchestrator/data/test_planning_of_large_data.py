"""Planning data of any size: what was found is kept, several processes find the same, and nothing is read twice."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_jobs import write_conversations

from orchestrator.data.examples import Example, Turn
from orchestrator.data.sources.cache import ScanCache
from orchestrator.data.sources.containers import Span, part_of, spans_of
from orchestrator.data.sources.dataset import DataChangedError, Summary, block_of, held, occur_in
from orchestrator.data.sources.load import load_split
from orchestrator.data.sources.scan import DIGEST, Reading, Scanned, scan, scan_examples
from orchestrator.data.sources.scanners import WORTH_A_PROCESS, scan_all
from orchestrator.planning.plan import Plan, load_comparison
from orchestrator.spec_files.source import SpecSource
from orchestrator.spec_files.spec import Data

CHATS = Reading("messages")


def write_spec(folder: Path, **data: str) -> Path:
    write_conversations(folder / "train.jsonl", 150, seed=1)
    write_conversations(folder / "validation.jsonl", 13, seed=2)
    with open(folder / "train.jsonl", "a", encoding="utf-8") as stream:
        stream.writelines((folder / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[3:6])
    recipe = {
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"} | data,
        "sequence_length": 256,
        "global_batch_size": 8,
        "budget": {"kind": "steps", "amount": 20},
        "packing": False,  # packed rows have an order of their own, which is part of a cell's name
    }
    spec = {"name": "x", "backbones": ["tiny-llama2", "tiny-qwen"], "recipe": recipe, "placement": {"workers": 1}}
    (folder / "x.yaml").write_text(yaml.safe_dump(spec))
    return folder / "x.yaml"


def test_what_cells_were_called_before_rows_were_streamed_they_are_called_still(tmp_path: Path) -> None:
    plan = load_comparison(write_spec(tmp_path))
    assert plan.job_id == "x-3743e042a0"
    assert [cell.cell_id for cell in plan.cells] == [
        "tiny-llama2-s0-e619c59e77",
        "tiny-qwen-s0-17af7d01f8",
        "tiny-llama2-s1-67f64f9655",
        "tiny-qwen-s1-45c29814e4",
    ]
    assert plan.train.digest == "c22ad8f47ff3351e1fd9390ca50dff53"
    assert plan.validation.digest == "95b38a2b50e0f46b037e52e7c006e8bf"
    assert (len(plan.train), plan.train.learnable_bytes, plan.train_in_validation) == (150, 8018, 3)


def test_a_plan_holds_no_rows(tmp_path: Path) -> None:
    plan: Plan = load_comparison(write_spec(tmp_path))
    assert "winter" not in repr([block for split in (plan.train, plan.validation) for block in split.blocks])
    assert [example.group for example in plan.validation.read()] == plan.validation.items.groups_of(np.arange(13))


def scanned(file: Path, size: int = 1000) -> list[Scanned]:
    return [scan(span, CHATS) for span in spans_of(file, size)]


def same(ours: Sequence[Scanned], theirs: Sequence[Scanned]) -> bool:
    return len(ours) == len(theirs) and all(
        (one.span, one.groups, one.faults, one.more_faults) == (two.span, two.groups, two.faults, two.more_faults)
        and np.array_equal(one.digests, two.digests)
        and np.array_equal(one.learnable_bytes, two.learnable_bytes)
        and np.array_equal(one.group_numbers, two.group_numbers)
        for one, two in zip(ours, theirs, strict=True)
    )


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    write_conversations(tmp_path / "x.jsonl", 200, seed=3)
    with open(tmp_path / "x.jsonl", "a", encoding="utf-8") as stream:
        stream.write("nonsense\n" * 40)
    spans = spans_of(tmp_path / "x.jsonl", 1000)
    assert len(spans) > 20
    found = list(scan_all(spans, CHATS, WORTH_A_PROCESS))
    assert same(found, scanned(tmp_path / "x.jsonl"))
    assert sum(len(one.faults) + one.more_faults for one in found) == 40
    assert found[-1].problems()[-1].line == 210


def test_a_process_that_ends_before_its_time_is_no_end_of_the_data(tmp_path: Path) -> None:
    gone = [Span(str(tmp_path / "gone.jsonl"), start, start + 1) for start in range(2)]
    with pytest.raises(OSError, match=r"gone.jsonl"):
        list(scan_all(gone, CHATS, WORTH_A_PROCESS))


# --- What is kept -----------------------------------------------------------------------------------------------------


def cached(folder: Path, file: Path) -> list[Scanned]:
    return list(ScanCache(folder / "cache", worth_keeping=1).scan([part_of(file)], CHATS))


def forge(file: Path) -> None:
    """Other content under the same size and time: only who reads the file can tell."""
    before = os.stat(file)
    file.write_bytes(b" " * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    write_conversations(file, 50, seed=3)
    first = cached(tmp_path, file)
    forge(file)
    assert same(cached(tmp_path, file), first)
    os.utime(file, ns=(0, 0))
    assert sum(map(len, cached(tmp_path, file))) == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_entry_is_made_again(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    write_conversations(file, 50, seed=3)
    first = cached(tmp_path, file)
    (entry,) = (tmp_path / "cache").iterdir()
    whole = entry.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    entry.write_bytes({"cut": whole[:-30], "flipped": flipped, "empty": b""}[damage])
    assert same(cached(tmp_path, file), first)
    assert entry.read_bytes() == whole


def test_faults_are_found_again_and_never_kept(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("nonsense\n", encoding="utf-8")
    for _ in range(2):
        (found,) = cached(tmp_path, file)
        assert len(found.faults) == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_written_keeps_nothing_and_stops_nobody(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    write_conversations(file, 50, seed=3)
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert sum(map(len, cached(tmp_path, file))) == 50


def test_the_second_plan_reads_neither_rows_nor_what_was_found_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The split is kept beside the scans: without it the second plan of large data would add up all rows again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_conversations(tmp_path / "train.jsonl", 10_000, seed=1, longest=200)
    write_conversations(tmp_path / "held.jsonl", 100, seed=1, longest=200)  # the first hundred of them
    source, data = (
        SpecSource(str(tmp_path / "x.yaml"), "", {}, {"": 1}),
        Data(train="train.jsonl", validation="held.jsonl"),
    )

    def train() -> Any:
        held_out = load_split(source, "validation", data)
        return load_split(source, "train", data, held_out.digests)

    first = train()
    assert first.removed == 100
    for entry in (tmp_path / "cache").rglob("*.scan"):
        entry.unlink()
    forge(tmp_path / "train.jsonl")
    second = train()
    assert second.dataset == first.dataset and second.removed == 100
    write_conversations(tmp_path / "held.jsonl", 101, seed=1, longest=200)
    with pytest.raises(Exception, match="holds no rows"):  # other items are held out: the (forged) file is read
        train()


# --- What is held out, and what changed -------------------------------------------------------------------------------


@given(train=st.lists(st.integers(0, 9), max_size=30), out=st.sets(st.integers(0, 9)), size=st.integers(1, 7))
def test_the_digest_is_that_of_the_rows_that_are_left(train: list[int], out: set[int], size: int) -> None:
    def examples(numbers: Sequence[int]) -> list[Example]:
        return [Example(f"g{number % 3}", text=f"text {number}") for number in numbers]

    others = held("-", examples(sorted(out)))
    assert others.items is not None
    digests = np.sort(np.array([example.content_digest for example in others.read()], DIGEST))
    summary = Summary(held_out=digests)
    for start in range(0, len(train), size):
        part = held("-", examples(train[start : start + size]))
        summary.add(scan_examples(part.read()))
    expected = held("-", examples([number for number in train if number not in out]))
    found = summary.dataset("-", expected.blocks)
    assert (found.digest, len(found), found.learnable_bytes) == (
        expected.digest,
        len(expected),
        expected.learnable_bytes,
    )
    assert summary.removed == len(train) - len(expected)


CONTENT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@given(turns=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENT), max_size=4), text=CONTENT)
def test_a_content_hash_is_that_of_the_json_of_the_content(turns: list[tuple[Any, str]], text: str) -> None:
    content: Any = [[role, said] for role, said in turns] or text
    expected = hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:32]
    example = Example("g", tuple(Turn(role, said) for role, said in turns), "" if turns else text)
    assert example.content_hash == expected


@given(ours=st.lists(st.binary(min_size=16, max_size=16), max_size=20), shared=st.integers(0, 20))
def test_digests_are_compared_whole_zeros_and_all(ours: list[bytes], shared: int) -> None:
    others = [*ours[:shared], b"\0" * 16, b"a" + b"\0" * 15]
    found = occur_in(np.array(ours, DIGEST), np.sort(np.array(others, DIGEST)))
    assert found.tolist() == [one in others for one in ours]


def test_a_block_gives_again_what_was_planned_or_says_that_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    write_conversations(file, 50, seed=3)
    (span,) = spans_of(file)
    found = scan(span, CHATS)
    summary = Summary(held_out=np.sort(found.digests[[7, 30]]))
    block = block_of(found, CHATS, *summary.add(found))
    whole = [example.content_digest for example in block_of(found, CHATS, 50, b"").read()]
    assert [example.content_digest for example in block.read()] == [*whole[:7], *whole[8:30], *whole[31:]]
    file.write_text(file.read_text(encoding="utf-8").replace("winter", "summer"), encoding="utf-8")
    with pytest.raises(DataChangedError, match=r"x.jsonl changed since the job was planned"):
        list(block.read())


def test_examples_are_taken_from_the_blocks_that_hold_them(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    write_conversations(file, 50, seed=3)
    summary, blocks = Summary(), []
    for found in scanned(file):
        blocks.append(block_of(found, CHATS, *summary.add(found)))
    data = summary.dataset("-", blocks)
    listed = list(data.read())
    assert len(blocks) > 5 and len(data) == len(listed) == 50
    assert list(data.take([0, 9, 10, 49]).read()) == [listed[place] for place in (0, 9, 10, 49)]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """80 MB of rows: the process and each that it starts stay far below what the rows alone would take."""
    row = {"messages": [{"role": "user", "content": "q" * 500}, {"role": "assistant", "content": "a" * 500}]}
    line = (json.dumps(row) + "\n").encode()
    with open(tmp_path / "train.jsonl", "wb") as stream:
        for number in range(80):
            stream.write(line.replace(b"qqq", b"%03d" % number, 1) * 1000)
    (tmp_path / "held.jsonl").write_bytes(line)
    program = (
        "import resource, sys\n"
        "from orchestrator.data.sources.load import load_split\n"
        "from orchestrator.spec_files.source import SpecSource\n"
        "from orchestrator.spec_files.spec import Data\n"
        "source = SpecSource(sys.argv[1] + '/x.yaml', '', {}, {'': 1})\n"
        "data = Data(train='train.jsonl', validation='held.jsonl')\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "held = load_split(source, 'validation', data)\n"
        "before = peak()\n"
        "found = load_split(source, 'train', data, held.digests)\n"
        "children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(len(found.dataset), peak() - before, children)\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    rows, grown_kib, child_kib = map(int, done.stdout.split())
    assert rows == 80_000
    assert grown_kib < 40_000
    assert child_kib < 150_000
