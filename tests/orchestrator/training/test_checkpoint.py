"""Checkpoints: an exact resume, on as many ranks or fewer, and from damaged ones always the newest that is whole."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from gang import RankError, run_ranks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_jobs import curve, entries, make_job

from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob
from orchestrator.layout import checkpoint_folder
from orchestrator.parallel import Mesh
from orchestrator.training.checkpoints.checkpoint import MANIFEST, SCORE, find_latest, prune, write_manifest
from orchestrator.training.measurement import load_item_scores
from orchestrator.training.trainee import build_trainee

HALF = "step-00000006-attempt-001"
WHOLE = "step-00000012-attempt-001"
EXACT = ("loss", "grad_norm", "learning_rate", "bytes_seen", "tokens_seen", "examples_seen", "progress")


def train(job: CellJob) -> None:
    run_cell(job, torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> CellJob:
    """A run of 12 steps on 2 ranks that wrote checkpoints at steps 6 and 12 and was never interrupted."""
    job = make_job(
        tmp_path_factory.mktemp("run"),
        workers=2,
        budget={"kind": "steps", "amount": 12},
        checkpoint={"every": 0.5, "keep": 2},
        evaluate={"every": 0.5},
    )
    run_ranks(2, train, job)
    return job


@pytest.fixture
def interrupted(finished: CellJob, tmp_path: Path) -> CellJob:
    """The next attempt at a copy of the finished run, as if it had died after step 8 while writing a checkpoint."""
    folder = tmp_path / "cell"
    shutil.copytree(finished.folder / "checkpoints", folder / "checkpoints")
    (folder / "checkpoints" / WHOLE / MANIFEST).unlink()
    (folder / "spool").mkdir()
    lines = (finished.spool_folder / "steps.jsonl").read_text().splitlines(keepends=True)
    until = next(index for index, line in enumerate(lines) if '"step": 9,' in line)
    (folder / "spool" / "steps.jsonl").write_text("".join(lines[:until]))
    return replace(finished, folder=folder, attempt=2)


@pytest.fixture
def checkpoints(finished: CellJob, tmp_path: Path) -> Path:
    """A copy of the two checkpoints."""
    return Path(shutil.copytree(finished.checkpoint_root, tmp_path / "checkpoints"))


def test_six_steps_a_resume_and_six_more_equal_twelve_steps_bit_for_bit(
    finished: CellJob, interrupted: CellJob
) -> None:
    run_ranks(2, train, interrupted)

    for metric in EXACT:
        assert curve(interrupted, metric) == curve(finished, metric), metric
    ours, theirs = (vars(load_item_scores(job.folder)) for job in (interrupted, finished))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ("items", "nats", "tokens", "bytes"))
    last = interrupted.checkpoint_root / "step-00000012-attempt-002"
    assert weight_files(last) == weight_files(finished.checkpoint_root / WHOLE)


def weight_files(folder: Path) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in folder.glob("__*.distcp")}
    assert len(files) == 2
    return files


def test_a_resume_says_what_it_passed_over_and_where_it_went_on(interrupted: CellJob) -> None:
    run_ranks(2, train, interrupted)

    phases = [entry.fields for entry in entries(interrupted, "phase") if entry.attempt == 2]
    rejected = [phase["reason"] for phase in phases if phase["phase"] == "rejected"]
    assert rejected == [f"{WHOLE}: it was never committed, or its manifest is damaged; it is passed over"]
    assert [phase["step"] for phase in phases if phase["phase"] == "resumed"] == [6]


def test_steps_that_an_attempt_repeats_are_written_once(finished: CellJob, interrupted: CellJob) -> None:
    run_ranks(2, train, interrupted)

    steps = entries(interrupted, "step")
    assert [entry.fields["step"] for entry in steps] == list(range(1, 13))
    assert [entry.attempt for entry in steps] == [1] * 8 + [2] * 4


def test_a_checkpoint_of_two_ranks_loads_on_one(finished: CellJob, interrupted: CellJob) -> None:
    placement = interrupted.cell.placement.model_copy(update={"workers": 1})

    run_ranks(1, train, replace(interrupted, cell=replace(interrupted.cell, placement=placement)))

    assert curve(interrupted) == pytest.approx(curve(finished), abs=1e-5)
    assert entries(interrupted, "step")[8].attempt == 2


def truncate(folder: Path) -> None:
    file = folder / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def change_the_manifest(folder: Path) -> None:
    file = folder / MANIFEST
    file.write_text(file.read_text().replace('"steps": 12', '"steps": 11'))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "uncommitted": (lambda folder: (folder / MANIFEST).unlink(), "never committed"),
    "half a manifest": (lambda folder: (folder / MANIFEST).write_text('{"state": "COMM'), "never committed"),
    "no manifest at all": (lambda folder: (folder / MANIFEST).write_text("[]"), "never committed"),
    "another manifest": (change_the_manifest, "its manifest is damaged"),
    "truncated": (truncate, "__1_0.distcp is damaged"),
    "bit flipped": (flip_a_bit, "__0_0.distcp is damaged"),
    "file missing": (lambda folder: (folder / "__1_0.distcp").unlink(), "__1_0.distcp is missing"),
    "index missing": (lambda folder: (folder / ".metadata").unlink(), ".metadata is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one_and_it_is_said(damage: str, checkpoints: Path) -> None:
    spoil, reason = DAMAGES[damage]
    newest, _ = find_latest(checkpoints)
    assert newest is not None
    assert newest.folder.name == WHOLE

    spoil(checkpoints / WHOLE)

    found, sentences = find_latest(checkpoints)
    assert found is not None
    assert (found.folder.name, found.step, found.trainer["seen"]["steps"]) == (HALF, 6, 6)
    assert len(sentences) == 1
    assert WHOLE in sentences[0]
    assert reason in sentences[0]


def test_with_every_checkpoint_damaged_none_is_found(checkpoints: Path) -> None:
    flip_a_bit(checkpoints / WHOLE)
    truncate(checkpoints / HALF)

    found, sentences = find_latest(checkpoints)

    assert found is None
    assert len(sentences) == 2


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), data=st.data())
def test_no_checkpoint_with_a_flipped_bit_anywhere_is_accepted(
    finished: CellJob, place: float, bit: int, data: st.DataObject
) -> None:
    folder = finished.checkpoint_root / WHOLE
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    original = file.read_bytes()
    content = bytearray(original)
    content[int(place * len(content))] ^= 1 << bit
    file.write_bytes(content)
    try:
        found, _ = find_latest(finished.checkpoint_root)
    finally:
        file.write_bytes(original)
    assert found is not None
    assert found.folder.name == HALF


def copies(checkpoints: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(checkpoints / HALF, checkpoints / name)


def commit(root: Path, step: int, score: float | None) -> str:
    folder = checkpoint_folder(root, step, attempt=1)
    folder.mkdir(parents=True)
    write_manifest(folder, step, {} if score is None else {SCORE: score}, {})
    return folder.name


SCORES = st.lists(st.none() | st.sampled_from([0.5, 1.0, 1.5]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(scores=SCORES, keep=st.integers(1, 4))
@example(scores=[None, None, None], keep=1)  # of cells that are scored at other steps, and of earlier versions
@example(scores=[0.5, 1.0, 1.5], keep=1)
def test_pruning_keeps_the_newest_and_the_best(scores: list[float | None], keep: int) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        names = [commit(root, step, score) for step, score in enumerate(scores)]

        prune(root, keep)

        known = [score for score in scores if score is not None]
        best = {names[step] for step, score in enumerate(scores) if known and score == min(known)}
        kept = {path.name for path in root.iterdir()}
        assert kept >= set(names[-keep:])
        assert len(kept - set(names[-keep:])) == (bool(best) and not best & set(names[-keep:]))
        assert kept <= {*names[-keep:], *best}


def test_pruning_removes_what_was_never_committed_once_something_newer_was(checkpoints: Path) -> None:
    (checkpoints / HALF / MANIFEST).unlink()

    prune(checkpoints, keep=5)

    assert [folder.name for folder in checkpoints.iterdir()] == [WHOLE]


def test_pruning_after_a_damaged_checkpoint_was_passed_over_keeps_the_one_written_since(checkpoints: Path) -> None:
    flip_a_bit(checkpoints / WHOLE)
    copies(checkpoints, "step-00000008-attempt-002")

    prune(checkpoints, keep=1)

    found, _ = find_latest(checkpoints)
    assert found is not None
    assert found.folder.name == "step-00000008-attempt-002"


def test_a_checkpoint_that_cannot_be_written_is_an_error_on_every_rank_that_names_the_remedy(
    finished: CellJob, tmp_path: Path
) -> None:
    job = replace(finished, folder=tmp_path / "cell")
    job.folder.mkdir()
    job.checkpoint_root.write_text("a file where the folder should be")

    for rank_error in run_ranks(2, checkpoint_error, job):
        assert "cannot write the checkpoint" in rank_error
        assert "free some space or set storage to another folder" in rank_error


def checkpoint_error(job: CellJob) -> str:
    from orchestrator.errors import CheckpointError
    from orchestrator.training.checkpoints.saver import CheckpointSaver

    trainee = build_trainee(job, Mesh.build(torch.device("cpu"), job.cell.placement.parallel))
    saver = CheckpointSaver(job.checkpoint_root, 1, 1, trainee.mesh)
    with closing(saver), pytest.raises(CheckpointError) as raised:
        saver.save(1, trainee.backbone, trainee.optimizers, {}, is_last=True)
    return str(raised.value)


def test_a_request_to_stop_is_obeyed_after_a_checkpoint(finished: CellJob, tmp_path: Path) -> None:
    job = replace(finished, folder=tmp_path / "cell")
    job.folder.mkdir()
    job.stop_file.touch()

    with pytest.raises(RankError, match="CancelledError: stopped on request; a checkpoint was kept at step 1"):
        run_ranks(2, train, job)

    found, _ = find_latest(job.checkpoint_root)
    assert found is not None
    assert found.step == 1
    assert json.loads((found.folder / MANIFEST).read_text())["state"] == "COMMITTED"


def test_a_cell_out_of_time_stops_after_a_checkpoint(finished: CellJob, tmp_path: Path) -> None:
    job = replace(finished, folder=tmp_path / "cell", deadline=0.0)
    job.folder.mkdir()

    with pytest.raises(RankError, match=r"TimedOutError: policy.timeout is used up; a checkpoint was kept at step 1"):
        run_ranks(2, train, job)

    assert find_latest(job.checkpoint_root)[0] is not None
