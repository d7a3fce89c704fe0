"""What damage or a sudden end leaves of a result that is taken over: never half of one that looks whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compared import LLAMA, MISTRAL, QWEN, Compare, comparing_in, ids, trained

from jobs.driver.cell_jobs import find_finished
from orchestrator.layout import CellFolder
from orchestrator.results import CellResult, CellStatus, save_cell_result, write_json
from orchestrator.tracking.spool import note_phase


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    return comparing_in(tmp_path, monkeypatch)


def cut_the_spool(folder: CellFolder) -> None:
    file = folder.spool / "steps.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if '"step": 2' not in line))


def damage_the_scores(folder: CellFolder) -> None:
    content = bytearray(folder.items.read_bytes())
    content[len(content) // 2] ^= 0xFF
    folder.items.write_bytes(content)


def change_the_measurement(folder: CellFolder) -> None:
    document = json.loads(folder.measurement.read_text())
    document["metrics"]["val_loss"] += 1
    folder.measurement.write_text(json.dumps(document))


def halve_the_result(folder: CellFolder) -> None:
    folder.result.write_text(folder.result.read_text()[:200])


@pytest.mark.parametrize(
    "damage",
    [
        cut_the_spool,
        damage_the_scores,
        change_the_measurement,
        halve_the_result,
        lambda folder: folder.items.unlink(),
        lambda folder: folder.measurement.unlink(),
    ],
)
def test_a_damaged_cell_is_not_taken_over_and_is_named(damage: Callable[[CellFolder], None], compare: Compare) -> None:
    first = trained(compare(LLAMA, QWEN, seeds=1))
    damaged = first.folder(first.plan.cells[0])
    damage(damaged)
    grown = compare(LLAMA, QWEN, MISTRAL, seeds=1)
    assert ids(grown.adopt()) == ids(grown.cells(QWEN))
    assert grown.said[0].startswith(f"{damaged.path.name} is finished, but its result cannot be taken over: ")
    assert grown.said[1:] == ["1 of 3 cells is taken over from earlier comparisons, which saw the same data"]
    assert not grown.folder(grown.cells(LLAMA)[0]).adoption.exists()


@pytest.mark.parametrize("number", range(12))
def test_a_taking_over_that_is_cut_off_anywhere_is_no_result_and_is_made_anew(
    number: int, compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies before the n-th file gets its name; beyond the last one nothing is cut off."""
    trained(compare(LLAMA, QWEN, seeds=1))
    grown = compare(LLAMA, QWEN, MISTRAL, seeds=1)
    cell, named = grown.cells(LLAMA)[0], 0
    replace = os.replace

    def die(source: Any, target: Any) -> None:
        nonlocal named
        if grown.plan.cell_folder(cell) in Path(target).parents or Path(target).stem == cell.cell_id:
            named += 1
            if named > number:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", die)
    cut_off = False
    try:
        grown.adopt()
    except KeyboardInterrupt:
        cut_off = True
    monkeypatch.setattr(os, "replace", replace)
    assert cut_off == (find_finished(grown.plan, cell) is None)
    if number >= 10:
        assert not cut_off, "the test covers every file"
    again = compare(LLAMA, QWEN, MISTRAL, seeds=1)
    assert {*ids(again.adopt())} == {*ids(again.cells(LLAMA, QWEN))}
    found = find_finished(again.plan, cell)
    assert found is not None and found.measurement is not None


def test_what_was_cut_off_is_gone_before_the_cell_trains(compare: Compare, tmp_path: Path) -> None:
    first = trained(compare(LLAMA, QWEN, seeds=1))
    grown = compare(LLAMA, QWEN, MISTRAL, seeds=1)
    cell = grown.cells(LLAMA)[0]
    grown.adopt()
    grown.folder(cell).result.unlink()
    for source in first.plan.cells:
        first.folder(source).result.unlink()
    for folder in (grown.folder(cell), grown.folder(grown.cells(QWEN)[0])):
        folder.result.unlink(missing_ok=True)
    assert grown.adopt() == []
    left = {path.name for path in grown.plan.cell_folder(cell).iterdir()}
    assert left <= {"lock"}


def test_a_cell_that_began_by_itself_is_replaced_and_told_to_mlflow_anew(compare: Compare) -> None:
    trained(compare(LLAMA, QWEN, seeds=1))
    grown = compare(LLAMA, QWEN, MISTRAL, seeds=1)
    cell = grown.cells(LLAMA)[0]
    folder = grown.folder(cell)
    note_phase(folder.spool, 1, "starting")
    (folder.checkpoints / "step-00000001-attempt-001").mkdir(parents=True)
    save_cell_result(folder.path, CellResult(cell.cell_id, LLAMA, 0, CellStatus.CANCELLED))
    state = grown.plan.files.child_run(cell.cell_id)
    write_json(state, {"offset": 10})
    assert cell.cell_id in ids(grown.adopt())
    assert not state.exists()
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000003-attempt-001"]
    assert '"starting"' not in (folder.spool / "steps.jsonl").read_text()


def test_where_links_are_refused_the_checkpoints_stay_behind(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    trained(compare(LLAMA, QWEN, seeds=1))
    grown = compare(LLAMA, QWEN, MISTRAL, seeds=1)
    monkeypatch.setattr(os, "link", refuse)
    adopted = grown.adopt()
    assert len(adopted) == 2 and not CellFolder(Path(adopted[0].folder)).checkpoints.exists()
