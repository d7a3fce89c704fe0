"""Checkpoints that are written while the training goes on: of the state as it was, and with nothing left behind.

Over 300 lines: the same small run is saved while each thing happens that may happen to it.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import xxhash
from gang import RankError, run_ranks
from small_jobs import curve, entries, make_job

from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob
from orchestrator.errors import CheckpointError
from orchestrator.layout import MANIFEST, CellFolder, checkpoint_folder
from orchestrator.parallel import Mesh, is_peer_lost
from orchestrator.training.checkpoints.checkpoint import find_latest, learned_state, load_checkpoint, state_bytes
from orchestrator.training.checkpoints.saver import CheckpointSaver
from orchestrator.training.checkpoints.staging import Staging
from orchestrator.training.trainee import build_trainee

EXACT = ("loss", "grad_norm", "learning_rate", "bytes_seen", "tokens_seen", "examples_seen", "progress")
CPU = torch.device("cpu")


def train(job: CellJob) -> None:
    (job.folder / f"pid-{dist.get_rank()}").write_text(str(os.getpid()))
    run_cell(job, CPU)


def checkpoint_error(job: CellJob) -> str:
    with pytest.raises(CheckpointError) as raised:
        train(job)
    return str(raised.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> CellJob:
    """12 steps on 2 ranks, with checkpoints at steps 6 and 12, never interrupted."""
    folder = tmp_path_factory.mktemp("run")
    budget, checkpoint = {"kind": "steps", "amount": 12}, {"every": 0.5, "keep": 2}
    job = make_job(folder, workers=2, budget=budget, checkpoint=checkpoint)
    job.folder.mkdir(parents=True)
    run_ranks(2, train, job)
    return job


@pytest.fixture
def begun(finished: CellJob, tmp_path: Path) -> CellJob:
    """The same cell, not yet trained."""
    job = replace(finished, folder=tmp_path / "cell")
    job.folder.mkdir()
    return job


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as opened:
        yield opened


def blocked(job: CellJob, step: int, rank: int) -> Path:
    """A pipe where a rank will write its shard: the write waits for somebody who reads."""
    pipe = checkpoint_folder(job.checkpoint_root, step, job.attempt) / f"__{rank}_0.distcp"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    return pipe


def await_step(job: CellJob, step: int, ranks: "Future[list[str]]", limit_s: float = 120.0) -> None:
    limit = time.monotonic() + limit_s
    while not ((job.spool_folder).exists() and len(curve(job)) >= step):
        assert not ranks.done() and time.monotonic() < limit
        time.sleep(0.02)


def weight_files(folder: Path) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in folder.glob("__*.distcp")}
    assert len(files) == 2
    return files


def test_training_goes_on_while_bytes_are_written_and_they_are_of_the_step_that_was_saved(
    finished: CellJob, begun: CellJob, pool: ThreadPoolExecutor
) -> None:
    pipe = blocked(begun, step=6, rank=0)
    ranks = pool.submit(run_ranks, 2, checkpoint_error, begun)
    await_step(begun, 11, ranks)
    assert not (pipe.parent / MANIFEST).exists()

    written = pipe.read_bytes()

    theirs = weight_files(checkpoint_folder(finished.checkpoint_root, 6, 1))
    assert written == theirs["__0_0.distcp"]
    assert (pipe.parent / "__1_0.distcp").read_bytes() == theirs["__1_0.distcp"]
    # A pipe cannot be made durable, so this checkpoint fails: both ranks hear of it when they come to the next one.
    assert all("step-00000006-attempt-001: " in error and "Invalid argument" in error for error in ranks.result())
    assert len(curve(begun)) == 12
    assert [folder.name for folder in begun.checkpoint_root.iterdir()] == ["step-00000006-attempt-001"]
    assert find_latest(begun.checkpoint_root)[0] is None


def test_no_update_is_made_before_the_state_is_copied(finished: CellJob, begun: CellJob) -> None:
    run_ranks(2, train_with_slow_copies, begun)

    half, theirs = (checkpoint_folder(job.checkpoint_root, 6, 1) for job in (begun, finished))
    assert weight_files(half) == weight_files(theirs)
    stalls = [entry.fields["stall_s"] for entry in entries(begun, "phase") if "stall_s" in entry.fields]
    assert stalls[0] > 0.2, "what the update waits for counts"


def train_with_slow_copies(job: CellJob) -> None:
    """Whatever updates the model within a second and a half after a save is in the copy."""
    copy = Staging.copy

    def late(*arguments: Any) -> dict[str, Any]:
        time.sleep(1.5)
        return copy(*arguments)

    Staging.copy = late  # type: ignore[method-assign]
    train(job)


def test_a_rank_killed_while_a_checkpoint_is_written_costs_one_interval_and_no_bit(
    finished: CellJob, begun: CellJob, pool: ThreadPoolExecutor
) -> None:
    checkpoint = begun.cell.recipe.checkpoint.model_copy(update={"every": 0.25})
    recipe = begun.cell.recipe.model_copy(update={"checkpoint": checkpoint})
    job = replace(begun, cell=replace(begun.cell, recipe=recipe))
    blocked(job, step=6, rank=1)
    ranks = pool.submit(run_ranks, 2, train, job)
    await_step(job, 8, ranks)

    os.kill(int((job.folder / "pid-1").read_text()), signal.SIGKILL)

    with pytest.raises(RankError):
        ranks.result()
    found, rejected = find_latest(job.checkpoint_root)
    assert found is not None and found.step == 3 and len(rejected) == 1
    again = replace(job, attempt=2)
    run_ranks(2, train, again)
    resumed = [entry.fields["step"] for entry in entries(again, "phase") if entry.fields["phase"] == "resumed"]
    assert resumed == [3]
    for metric in EXACT:
        assert curve(again, metric) == curve(finished, metric), metric
    last, theirs = checkpoint_folder(again.checkpoint_root, 12, 2), checkpoint_folder(finished.checkpoint_root, 12, 1)
    assert weight_files(last) == weight_files(theirs)


def test_a_disk_that_is_full_is_an_error_on_every_rank_and_leaves_the_checkpoint_before(
    finished: CellJob, begun: CellJob
) -> None:
    half = checkpoint_folder(finished.checkpoint_root, 6, 1)
    shutil.copytree(half, begun.checkpoint_root / half.name)
    job = replace(begun, attempt=2)
    folder = checkpoint_folder(job.checkpoint_root, 12, attempt=2)
    folder.mkdir()
    (folder / "__1_0.distcp").symlink_to("/dev/full")

    for error in run_ranks(2, checkpoint_error, job):
        assert "No space left on device" in error
        assert "GiB are free there; free some space or set storage to another folder" in error

    found, _ = find_latest(job.checkpoint_root)
    assert found is not None
    assert found.folder.name == half.name


def test_the_spool_says_when_a_checkpoint_counts_how_large_it_is_and_what_it_cost(finished: CellJob) -> None:
    phases = [entry.fields for entry in entries(finished, "phase")]
    committed = [fields for fields in phases if "committed_after_s" in fields]

    assert [fields["step"] for fields in committed] == [6, 12]
    for fields in committed:
        folder = checkpoint_folder(finished.checkpoint_root, fields["step"], 1)
        files = [file.stat().st_size for file in folder.iterdir() if file.name != MANIFEST]
        assert fields["checkpoint_bytes"] == sum(files)
    stalls = [fields["stall_s"] for fields in committed]
    measurement = json.loads(CellFolder(finished.folder).measurement.read_text())
    assert measurement["metrics"]["checkpoint_stall_s"] == pytest.approx(sum(stalls) / 2)
    assert stalls[1] > committed[1]["committed_after_s"], "the last one is waited for"


def test_a_cell_leaves_no_thread_and_no_process_group_behind(begun: CellJob, tmp_path: Path) -> None:
    jobs = [replace(begun, folder=tmp_path / name) for name in "abcd"]
    for job in jobs:
        job.folder.mkdir()

    for first, *later in run_ranks(2, what_is_left, jobs):
        assert all((names, groups) == (first[0], first[2]) for names, _, groups in later)
        # Libraries start and end a thread of their own now and then; a leak would be one a cell.
        assert max(threads for _, threads, _ in later) <= first[1] + 1


def what_is_left(jobs: list[CellJob]) -> list[tuple[list[str], int, int]]:
    """After each cell: threads of Python, number of the process's threads, number of process groups."""
    left = []
    for job in jobs:
        run_cell(job, CPU)
        names = sorted(thread.name for thread in threading.enumerate())
        groups = len(dist.distributed_c10d._world.pg_map)
        left.append((names, len(os.listdir("/proc/self/task")), groups))
    return left


def test_a_rank_that_fails_before_it_saves_does_not_keep_the_others_waiting(begun: CellJob) -> None:
    assert run_ranks(2, save_alone, begun) == [True, None]


def save_alone(job: CellJob) -> bool | None:
    trainee = build_trainee(job, Mesh.build(CPU, job.cell.placement.parallel))
    with closing(CheckpointSaver(job.checkpoint_root, 1, 1, trainee.mesh)) as saver:
        if not trainee.mesh.is_main:
            return None
        with pytest.raises(RuntimeError) as raised:
            saver.save(1, trainee.backbone, trainee.optimizers, {}, is_last=True)
    return is_peer_lost(raised.value)


def test_a_saver_whose_group_was_taken_away_does_not_hide_why(begun: CellJob) -> None:
    """Ray Train ends all groups of a worker that outlived another, while the worker still tells what it met."""
    assert run_ranks(1, lose_all_groups, begun) == [("Connection closed by peer", True)]


def lose_all_groups(job: CellJob) -> tuple[str, bool]:
    try:
        with closing(CheckpointSaver(job.checkpoint_root, 1, 1, Mesh.build(CPU))):
            dist.destroy_process_group()
            raise RuntimeError("Connection closed by peer")
    except Exception as error:  # whichever it is that comes out
        came_out = str(error)
    with pytest.raises(ValueError, match="process group") as raised:
        dist.barrier()  # as a rank that hears of the death only now
    return came_out, is_peer_lost(raised.value)


def test_what_is_reserved_is_enough_and_the_predicted_size_is_that_of_the_files(begun: CellJob) -> None:
    for reserved, staged, predicted in run_ranks(2, sizes, begun):
        assert staged <= reserved < 1.5 * staged
        files = checkpoint_folder(begun.checkpoint_root, 1, 1).glob("__*")
        assert predicted == pytest.approx(sum(file.stat().st_size for file in files), rel=0.15)


def sizes(job: CellJob) -> tuple[int, int, int]:
    trainee = build_trainee(job, Mesh.build(CPU, job.cell.placement.parallel))
    predicted, reserved = state_bytes(trainee.backbone, job.cell.recipe.optimizer.state_bytes)
    with closing(CheckpointSaver(job.checkpoint_root, 1, 1, trainee.mesh, reserved)) as saver:
        saver.save(1, trainee.backbone, trainee.optimizers, {}, is_last=True)
        staged = saver._staging.used_bytes
    return reserved, staged, predicted


def test_a_checkpoint_of_the_synchronous_version_resumes_to_the_same_bits(finished: CellJob, begun: CellJob) -> None:
    half = checkpoint_folder(begun.checkpoint_root, 6, 1)
    trainer = json.loads((checkpoint_folder(finished.checkpoint_root, 6, 1) / MANIFEST).read_text())["trainer"]

    run_ranks(2, write_synchronously, finished, half, trainer)
    run_ranks(2, train, replace(begun, attempt=2))

    assert curve(begun) == curve(finished)[6:]
    last, theirs = checkpoint_folder(begun.checkpoint_root, 12, 2), checkpoint_folder(finished.checkpoint_root, 12, 1)
    assert weight_files(last) == weight_files(theirs)


def write_synchronously(job: CellJob, folder: Path, trainer: dict[str, object]) -> None:
    """Step 6 of a finished run as the version before wrote it: DCP, digests of the files, the manifest."""
    trainee = build_trainee(job, Mesh.build(CPU, job.cell.placement.parallel))
    found, _ = find_latest(job.checkpoint_root)
    assert found is not None
    half = replace(found, folder=checkpoint_folder(job.checkpoint_root, 6, 1))
    load_checkpoint(half, trainee.backbone, trainee.optimizers)
    dcp.save(learned_state(trainee.backbone, trainee.optimizers), checkpoint_id=folder)
    if trainee.mesh.is_main:
        contents = {file.name: file.read_bytes() for file in (*folder.glob("__*"), folder / ".metadata")}
        files = {name: [len(content), xxhash.xxh3_128(content).hexdigest()] for name, content in contents.items()}
        manifest = {"format": 1, "state": "COMMITTED", "step": 6, "trainer": trainer, "files": files}
        digest = xxhash.xxh3_128(json.dumps(manifest).encode()).hexdigest()
        (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": digest}))
    trainee.mesh.barrier()


def test_a_cell_whose_checkpoints_have_no_room_is_refused_before_its_first_step(begun: CellJob) -> None:
    checkpoint = begun.cell.recipe.checkpoint.model_copy(update={"every": 1e-9, "keep": 10**9})
    recipe = begun.cell.recipe.model_copy(update={"checkpoint": checkpoint})
    job = replace(begun, cell=replace(begun.cell, recipe=recipe))

    for error in run_ranks(2, checkpoint_error, job):
        assert "GiB are free. Up to 1000000000 of" in error
        assert "free some space or set storage to another folder, or lower recipe.checkpoint.keep" in error
    assert curve(job) == []

    # What the cell has written before will go, so it is room too: here it is a file with a hole.
    job.checkpoint_root.mkdir()
    with open(job.checkpoint_root / "large", "wb") as stream:
        stream.truncate(10**13)
    assert run_ranks(2, require, job) == [None, None]


def require(job: CellJob) -> None:
    from orchestrator.training.checkpoints.saver import require_room

    mesh = Mesh.build(CPU, job.cell.placement.parallel)
    require_room(job.checkpoint_root, 10**12, 10, mesh)
    with pytest.raises(CheckpointError):
        require_room(job.checkpoint_root, 10**13, 10, mesh)
