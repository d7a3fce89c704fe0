"""A comparison that grows: seeds and backbones join it, and nothing is trained that was trained before."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from product import CellFolder, Job, histories, sqlite_uri, tracked_runs, wait_for

pytestmark = pytest.mark.e2e

LLAMA, MISTRAL, QWEN = "tiny-llama2", "tiny-mistral", "tiny-qwen"
SMALL: dict[str, Any] = {
    "recipe__data__parity": "intersection",
    "recipe__budget": {"kind": "steps", "amount": 8},
    "recipe__evaluate": {"every": 0.5},
    "recipe__checkpoint": {"every": 0.5},
    "placement__workers": 1,
}


@pytest.fixture
def grow(new_job: Callable[..., Job]) -> Callable[..., Job]:
    """Writes the one comparison anew, with other backbones and seeds; its held-out rows come from eight sources."""

    def write(backbones: list[str], seeds: int, **changes: Any) -> Job:
        job = new_job(backbones=backbones, seeds=seeds, **(SMALL | changes))
        file = job.folder / "validation.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row | {"group": f"g{n % 8}"}) + "\n" for n, row in enumerate(rows)))
        return job

    return write


def run(job: Job, *options: str) -> tuple[str, dict[str, Any]]:
    """What a launch says, and the report that it writes."""
    launch = job.start("compare", "--no-certificate", *options)
    assert launch.wait() == 0, launch.output
    return launch.output, report_of(launch.output)


def report_of(output: str) -> dict[str, Any]:
    (line,) = [line for line in output.splitlines() if line.startswith("report: ")]
    document: dict[str, Any] = json.loads(Path(line.removeprefix("report: ")).with_suffix(".json").read_text())
    return document


def trained(job: Job) -> set[str]:
    """The cells that had workers."""
    return {cell.path.name for cell in job.cells() if (cell.path / "workers").exists()}


def test_seeds_and_backbones_join_a_comparison_and_only_they_train(grow: Callable[..., Job]) -> None:
    job = grow([LLAMA, MISTRAL], 1)
    _, first = run(job)
    before = trained(job)
    assert len(before) == 2 and first["verdict"]["outcome"] == "no verdict"

    said, second = run(grow([LLAMA, MISTRAL], 2))
    assert "4 cells, 2 already finished" in said
    assert trained(job) > before and len(trained(job)) == 4
    assert second["verdict"]["look"]["number"] == 1

    before = trained(job)
    said, third = run(grow([LLAMA, MISTRAL, QWEN], 2))
    assert "4 of 6 cells are taken over from earlier comparisons, which saw the same data" in said
    assert {name[: len(QWEN)] for name in trained(job) - before} == {QWEN} and len(trained(job)) == 6
    origins = {cell["cell_id"]: cell["adoption"]["adopted_from"] for cell in third["cells"] if "adoption" in cell}
    assert {*origins.values()} == before
    for cell_id, origin in origins.items():
        for name in ("measurement.json", "items.parquet"):
            new, old = ((job.storage / "cells" / one / name).read_bytes() for one in (cell_id, origin))
            assert new == old, name
    assert third["verdict"]["look"]["number"] == 2
    assert "Look 1 was at tiny-llama2 and tiny-mistral." in third["verdict"]["notes"]
    page = (job.storage / third["comparison"]["id"] / "report.html").read_text()
    assert "Look 2, a verdict over these runs, after looks at 2 seeds" in page
    assert "4 of 6 runs were taken over from earlier comparisons" in page

    uri = sqlite_uri(job)
    runs = [one for one in tracked_runs(uri) if one.data.tags["comparison_id"] == third["comparison"]["id"]]
    assert [one.info.status for one in runs] == ["FINISHED"] * 7
    assert all(one.info.start_time <= one.info.end_time for one in runs)
    assert {one.data.tags["cell_id"]: one.data.tags.get("adopted_from") for one in runs} == {
        "all": None,
        **{cell["cell_id"]: origins.get(cell["cell_id"]) for cell in third["cells"]},
    }
    losses = [histories(uri, cell_id, ["loss", "val_bits_per_byte"]) for cell_id in (*origins,)]
    assert all([step for step, _ in one["loss"]] == [*range(1, 9)] for one in losses)

    said, again = run(job)
    assert "6 cells, 6 already finished" in said and "starting Ray" not in said
    assert again["cells"] == third["cells"] and again["verdict"] == third["verdict"]


@pytest.mark.chaos  # its parts are proved elsewhere: by hand
def test_a_backbone_that_drops_examples_says_so_and_leaves_the_choice(grow: Callable[..., Job]) -> None:
    """Interrupted after it was told, the same command with the option keeps what was finished, and marks it."""
    cut = {"recipe__sequence_length": 114, "recipe__packing": False, "recipe__budget": {"kind": "steps", "amount": 24}}
    job = grow([LLAMA, QWEN], 1, **cut)
    run(job)
    before = trained(job)

    grow([LLAMA, QWEN, MISTRAL], 1, **cut)
    launch = job.start("compare", "--no-certificate")
    warning = "training examples that the finished cells of tiny-llama2, tiny-qwen learned from, so their 2 cells train"
    wait_for(lambda: warning in launch.output, "the choice", alive=launch.process)
    assert "running" not in launch.output, "it is told before anything trains"
    assert "tiny-mistral drops " in launch.output and "run again with --keep-finished" in launch.output

    def find_anew() -> CellFolder | None:
        return next((one for one in job.cells() if one.path.name not in before and one.step), None)

    began = wait_for(find_anew, "a step of a cell that trains anew", alive=launch.process)
    launch.interrupt_as_a_terminal()
    assert launch.wait() == 130, launch.output

    said, report = run(job, "--keep-finished")
    assert "their 2 cells are taken over all the same, marked" in said
    marked = {cell["backbone_id"]: cell["adoption"] for cell in report["cells"] if "adoption" in cell}
    assert {*marked} == {LLAMA, QWEN}
    dropped = report["data"]["dropped"]["too_long"]
    assert all(one["learned_more"] == dropped > 0 and one["adopted_from"] in before for one in marked.values())
    note = f"tiny-llama2 and tiny-qwen learned from {dropped} training examples more than this comparison keeps"
    assert any(one.startswith(note) for one in report["verdict"]["notes"])
    page = (job.storage / report["comparison"]["id"] / "report.html").read_text()
    assert note in page and "2 of them on <strong>other training examples</strong>" in page
    for cell in report["cells"]:
        run_id, points = cell["mlflow_run_id"], [step for step, _ in cell["loss_curve"]]
        assert points == [*range(1, 25)], cell["cell_id"]
        (tracked,) = [one for one in tracked_runs(sqlite_uri(job)) if one.info.run_id == run_id]
        assert tracked.info.status == "FINISHED"
    assert began.step == 24
