"""A resumed run proves that it goes on where the last one stood: by the rows it plans and by steps that it remakes."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from gang import RankError, run_ranks
from hypothesis import given
from hypothesis import strategies as st
from small_jobs import curve, entries, make_job

from orchestrator.attempt.failure import account_of
from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob
from orchestrator.data.feed import Feed
from orchestrator.data.prepare import TokenizedDataset
from orchestrator.errors import ResumeError
from orchestrator.layout import MANIFEST
from orchestrator.results import CellStatus, StepMetrics
from orchestrator.tracking.spool import SpoolWriter
from orchestrator.training.checkpoints.resumption import KEPT, find_remade, order_after, prove_order

CPUS = {"workers": 2, "machines": "2 x CPU of one kind, 1 threads, torch 2.13.0"}
OTHER_CPUS = {**CPUS, "machines": "2 x CPU of another kind, 1 threads, torch 2.13.0"}
ONE_CPU = {**CPUS, "workers": 1}
GPUS = {"workers": 2, "machines": "2 x NVIDIA H100, 1 threads, torch 2.13.0"}


# --- The rows ---------------------------------------------------------------------------------------------------------


def feed(seed: int, ranks: int = 1) -> Feed:
    lengths = np.random.default_rng(0).integers(2, 60, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    learned = np.ones(offsets[-1], np.bool_)
    data = TokenizedDataset(learned, learned, learned, offsets, lengths, np.ones(200, np.bool_))
    return Feed(data, np.arange(200), "digest", seed, 8, 64, packing=True, ranks=ranks)


def order_of(stream: Feed, steps: int) -> tuple[str, ...]:
    """What a run has in its position after some steps."""
    order: tuple[str, ...] = ()
    for work, following in pairwise(islice(stream.steps(), steps + 1)):
        order = order_after(order, work, following)
    return order


@given(steps=st.integers(1, 40), ranks=st.sampled_from([1, 2, 4, 8]))
def test_the_rows_around_a_checkpoint_are_planned_again_on_any_number_of_ranks(steps: int, ranks: int) -> None:
    order = order_of(feed(seed=0), steps)
    assert len(order) == min(steps + 1, KEPT)
    compared = prove_order(feed(seed=0, ranks=ranks), order, steps, Path("checkpoints/step"))
    assert compared == f"the rows of steps {max(steps - 2, 1)} to {steps + 1}"


@given(steps=st.integers(KEPT, 40), off=st.sampled_from([-1, 1]))
def test_a_run_that_would_repeat_or_skip_one_step_is_stopped(steps: int, off: int) -> None:
    order = order_of(feed(seed=0), steps)
    with pytest.raises(ResumeError, match="would repeat or skip examples"):
        prove_order(feed(seed=0), order, steps + off, Path("cell/checkpoints/step"))


def test_other_rows_are_named_by_step_and_both_digests_and_the_remedy() -> None:
    ours, theirs = order_of(feed(seed=0), 2), order_of(feed(seed=1), 2)
    sentence = (
        rf"cell/checkpoints/step: .* step 1 .* {ours[0]} there and {theirs[0]} as planned now.* or delete cell to"
    )
    with pytest.raises(ResumeError, match=sentence):
        prove_order(feed(seed=1), ours, 2, Path("cell/checkpoints/step"))


def test_a_checkpoint_of_a_version_that_kept_no_digests_resumes_and_it_is_said() -> None:
    assert prove_order(feed(seed=0), (), 7, Path("checkpoints/step")).startswith("nothing:")


# --- The steps that are made again ------------------------------------------------------------------------------------


def metrics(step: int, loss: float = 2.0, **changes: Any) -> StepMetrics:
    counts = {"examples_seen": 8 * step, "tokens_seen": 100 * step, "bytes_seen": 300 * step} | changes
    rest = dict.fromkeys(("grad_norm", "learning_rate", "train_bits_per_byte", "progress", "step_time_s"), 0.5)
    return StepMetrics(step=step, loss=loss, **counts, **rest, tokens_per_second_per_device=1.0, peak_memory_gib=1.0)


def spool(folder: Path, *attempts: tuple[dict[str, Any] | None, range]) -> Path:
    """Steps with a loss of 2.0, each made by an attempt under known conditions, or under none."""
    for number, (conditions, steps) in enumerate(attempts, start=1):
        writer = SpoolWriter(folder, attempt=number)
        writer.phase("training", **({} if conditions is None else {"conditions": conditions}))
        for step in steps:
            writer.step(metrics(step))
        writer.close()
    return folder


NEXT = math.nextafter(2.0, 3.0)


@pytest.mark.parametrize(
    ("before", "now", "precision", "step", "passes", "stops"),
    [
        (CPUS, CPUS, "fp32", 5, 2.0, NEXT),
        (CPUS, CPUS, "fp32", 8, 2.0, NEXT),  # every step that is made again, not the first alone
        (CPUS, OTHER_CPUS, "fp32", 5, 2.0001, 2.001),
        (GPUS, GPUS, "fp32", 5, 2.0001, 2.001),
        (CPUS, CPUS, "bf16", 5, 2.005, 2.05),
        (CPUS, CPUS, "fp32", 5, 2.0, math.nan),
        (GPUS, GPUS, "bf16", 6, 9.0, None),  # rounding has moved the weights apart by then
        (CPUS, ONE_CPU, "fp32", 5, 9.0, None),
        (None, CPUS, "fp32", 5, 9.0, None),
    ],
)
def test_a_loss_agrees_as_closely_as_the_same_sums_do(
    before: Any, now: Any, precision: str, step: int, passes: float, stops: float | None, tmp_path: Path
) -> None:
    remade = find_remade(spool(tmp_path, (before, range(1, 9))), 4, now, precision)

    remade.prove(metrics(step, passes), tmp_path)
    if stops is not None:
        with pytest.raises(
            ResumeError, match=rf"step {step} was recorded with loss 2\.0 and made again with {stops!r}"
        ):
            remade.prove(metrics(step, stops), tmp_path)


@pytest.mark.parametrize("count", ["examples_seen", "tokens_seen", "bytes_seen"])
@pytest.mark.parametrize("conditions", [None, ONE_CPU], ids=["of unknown workers", "of other workers"])
def test_what_was_read_is_the_same_whoever_reads(conditions: Any, count: str, tmp_path: Path) -> None:
    remade = find_remade(spool(tmp_path, (conditions, range(1, 9))), 4, CPUS, "bf16")
    with pytest.raises(ResumeError, match=rf"step 6 was recorded with {count} \d+ and made again with 1;.* exactly"):
        remade.prove(metrics(6, **{count: 1}), tmp_path)


def test_each_step_is_held_against_the_attempt_that_recorded_it(tmp_path: Path) -> None:
    remade = find_remade(spool(tmp_path, (CPUS, range(1, 6)), (GPUS, range(4, 9))), 3, CPUS, "fp32")
    assert (remade.tolerances, sorted(remade.recorded)) == ({4: 0.0, 5: 0.0}, [4, 5, 6, 7, 8])


def test_steps_up_to_the_checkpoint_and_new_ones_are_held_against_nothing(tmp_path: Path) -> None:
    remade = find_remade(spool(tmp_path, (CPUS, range(1, 9))), 4, CPUS, "fp32")
    remade.prove(metrics(4, 7.0, examples_seen=1), tmp_path)
    remade.prove(metrics(9, 7.0, examples_seen=1), tmp_path)


def test_a_run_that_lost_its_place_is_not_tried_again() -> None:
    account = account_of(0, ResumeError("other rows"))
    assert (account.kind, account.retriable, account.status) == ("ResumeError", False, CellStatus.FAILED)


# --- In a cell --------------------------------------------------------------------------------------------------------


def train(job: CellJob) -> None:
    run_cell(job, torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> CellJob:
    """A run of 6 steps on 2 ranks with a checkpoint after each half."""
    settings = {"budget": {"kind": "steps", "amount": 6}, "checkpoint": {"every": 0.5, "keep": 2}}
    job = make_job(tmp_path_factory.mktemp("run"), workers=2, **settings)
    run_ranks(2, train, job)
    return job


@pytest.fixture
def interrupted(finished: CellJob, tmp_path: Path) -> CellJob:
    """The next attempt at a copy of it, as if it had died after step 5 of 6, with a checkpoint of step 3."""
    folder = tmp_path / "cell"
    shutil.copytree(finished.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000006-attempt-001")
    edit_spool(folder, lambda entry: None if entry["fields"].get("step") == 6 else entry)
    return replace(finished, folder=folder, attempt=2)


def edit_spool(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    file = folder / "spool" / "steps.jsonl"
    edited = [change(json.loads(line)) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in edited if entry is not None))


def phases(job: CellJob, name: str) -> list[dict[str, Any]]:
    found = [entry.fields for entry in entries(job, "phase") if entry.attempt == job.attempt]
    return [fields for fields in found if fields["phase"] == name]


def test_a_resumed_run_says_which_rows_it_compared_and_remakes_steps_bit_for_bit(
    finished: CellJob, interrupted: CellJob
) -> None:
    run_ranks(2, train, interrupted)

    assert [phase["compared"] for phase in phases(interrupted, "resumed")] == ["the rows of steps 1 to 4"]
    assert phases(interrupted, "training")[0]["conditions"]["workers"] == 2
    assert curve(interrupted) == curve(finished)


def test_a_run_whose_first_remade_step_has_another_loss_stops_before_it_writes_anything(interrupted: CellJob) -> None:
    recorded = curve(interrupted)[3]

    def nudged(entry: dict[str, Any]) -> dict[str, Any]:
        if entry["kind"] == "step" and entry["fields"]["step"] == 4:
            entry["fields"]["loss"] = math.nextafter(recorded, 9.0)
        return entry

    edit_spool(interrupted.folder, nudged)

    with pytest.raises(RankError, match=rf"ResumeError: .*step 4 was recorded with loss .* again with {recorded!r};"):
        run_ranks(2, train, interrupted)

    assert [folder.name for folder in interrupted.checkpoint_root.iterdir()] == ["step-00000003-attempt-001"]
    assert len(curve(interrupted)) == 5


def test_a_run_over_data_in_another_order_stops_before_its_first_step(interrupted: CellJob) -> None:
    other = replace(interrupted, cell=replace(interrupted.cell, train_digest="of other data"))

    with pytest.raises(RankError, match=r"ResumeError: .*the rows of step 1 have the digest"):
        run_ranks(2, train, other)

    assert not phases(other, "training")


def test_a_manifest_without_digests_resumes_and_the_spool_says_that_nothing_was_compared(interrupted: CellJob) -> None:
    file = interrupted.checkpoint_root / "step-00000003-attempt-001" / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["trainer"]["order"], manifest["digest"]
    digest = xxhash.xxh3_128(json.dumps(manifest).encode()).hexdigest()
    file.write_text(json.dumps({**manifest, "digest": digest}))

    run_ranks(2, train, interrupted)

    (resumed,) = phases(interrupted, "resumed")
    assert resumed["compared"].startswith("nothing:")
    newest = interrupted.checkpoint_root / "step-00000006-attempt-002" / MANIFEST
    assert len(json.loads(newest.read_text())["trainer"]["order"]) == KEPT


# --- On a budget of time ----------------------------------------------------------------------------------------------

DEVICE_SECONDS = 8.0


def test_gpu_hours_end_every_rank_at_one_step_and_steps_made_again_take_their_old_time(tmp_path: Path) -> None:
    budget = {"kind": "gpu_hours", "amount": DEVICE_SECONDS / 3600}
    settings = {"budget": budget, "checkpoint": {"every": 0.25, "keep": 4}, "evaluate": {"every": 0.25}}
    first = make_job(tmp_path, workers=2, **settings)
    run_ranks(2, train, first)

    shares, rates, times = (curve(first, metric) for metric in ("progress", "learning_rate", "step_time_s"))
    assert shares[-1] == 1.0 > shares[-2]
    assert all(before < after for before, after in pairwise(shares))
    assert 2 * sum(times) >= DEVICE_SECONDS > 2 * sum(times[:-2])  # a reading comes before the update of its step
    assert max(rates) < 1e-3 and rates[-1] < 1e-4 and min(rates) > 0
    points = [entry.fields for entry in entries(first, "evaluation")]
    assert [points[0]["progress"], points[-1]["progress"]] == [0.0, 1.0]

    again = replace(first, folder=tmp_path / "again", attempt=2)
    shutil.copytree(first.folder, again.folder)
    left, *later = sorted(again.checkpoint_root.iterdir())
    for checkpoint in later:  # as if the attempt had died in its last step
        shutil.rmtree(checkpoint)
    end = len(shares)
    edit_spool(again.folder, lambda entry: None if entry["fields"].get("step") == end else entry)
    run_ranks(2, train, again)

    (resumed,) = phases(again, "resumed")
    assert resumed["step"] < end - 2, left  # of two that are made again the second stands on the rate of the first
    assert curve(again)[: end - 1] == curve(first)[: end - 1]
    assert curve(again, "progress")[-1] == 1.0
