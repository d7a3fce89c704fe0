"""Gangs on real Ray Train workers: who serves the next cell, what ends a gang, and that a cell notices none of it."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_jobs import curve, make_job

from backbones.registry import build
from orchestrator.attempt import gangs as gangs_module
from orchestrator.attempt.failure import WORKER_DIED, Failure
from orchestrator.attempt.gangs import Gangs
from orchestrator.cell_job import CellJob
from orchestrator.layout import CellFolder
from orchestrator.results import CellStatus, read_json
from orchestrator.training.measurement import find_measurement, load_item_scores

WORKERS = 2
STEPS = {"kind": "steps", "amount": 6}
LONG = {"kind": "steps", "amount": 5000}


@pytest.fixture(scope="module")
def gangs(local_ray: None) -> Iterator[Gangs]:
    """Of all tests here: where one leaves a gang behind, the next begins with warm workers."""
    with Gangs() as opened:
        yield opened


def job_of(folder: Path, backbone: str = "tiny-llama2", **recipe: object) -> CellJob:
    return make_job(folder, backbone, workers=WORKERS, **{"budget": STEPS, **recipe})


def attempt(gangs: Gangs, job: CellJob) -> Failure | None:
    return gangs.run_attempt(job, job.cell.placement)


def workers(job: CellJob) -> list[int]:
    """The processes that attempted a cell, by rank."""
    return [read_json(CellFolder(job.folder).worker(rank))["pid"] for rank in range(WORKERS)]


def begin(gangs: Gangs, job: CellJob) -> tuple[list[Failure | None], threading.Thread]:
    """Attempts a cell in a thread, until a step is made; what it comes to will stand in the list."""
    came_to: list[Failure | None] = []
    thread = threading.Thread(target=lambda: came_to.append(attempt(gangs, job)))
    thread.start()
    wait_until(lambda: job.spool_folder.exists() and curve(job))
    return came_to, thread


def wait_until(holds: Callable[[], object], limit_s: float = 240.0) -> None:
    limit = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    return (
        Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    )


def measured(job: CellJob) -> tuple[list[float], list[float], dict[str, list[float]], dict[str, str]]:
    """What a cell leaves that does not measure the machine: losses, norms, scores, the bytes of its checkpoint."""
    scores = {name: column.tolist() for name, column in vars(load_item_scores(job.folder)).items()}
    (manifest,) = job.checkpoint_root.glob("*/manifest.json")
    files = {name: digest for name, digest in read_json(manifest)["files"].items() if name != ".metadata"}  # has an id
    return curve(job), curve(job, "grad_norm"), scores, files


def test_a_cell_on_a_warm_gang_measures_bitwise_what_it_measures_on_a_cold_one(tmp_path: Path, gangs: Gangs) -> None:
    dropout = {"kind": "lora", "rank": 4, "dropout": 0.2}
    cold, warm = (job_of(tmp_path / name, adaptation=dropout) for name in ("cold", "warm"))
    first = job_of(tmp_path / "first", "tiny-mistral")
    with Gangs() as others:
        assert attempt(others, cold) is None
    assert attempt(gangs, first) is None
    assert attempt(gangs, warm) is None
    assert workers(warm) == workers(first) != workers(cold)
    assert measured(warm) == measured(cold)


def test_what_all_ranks_meet_alike_ends_a_cell_and_not_the_gang(tmp_path: Path, gangs: Gangs) -> None:
    broken = build("tiny-llama2", seed=5)
    with torch.no_grad():
        broken.llm.get_input_embeddings().weight.fill_(float("nan"))
    broken.llm.save_pretrained(tmp_path / "model")
    broken.tokenizer.save_pretrained(tmp_path / "model")
    wild = job_of(tmp_path / "wild", f"hf:{tmp_path / 'model'}")
    diverged = attempt(gangs, wild)
    assert diverged is not None and diverged.status is CellStatus.DIVERGED
    late = replace(job_of(tmp_path / "late"), deadline=time.time() - 1)
    timed_out = attempt(gangs, late)
    assert timed_out is not None and timed_out.status is CellStatus.TIMED_OUT
    sound = job_of(tmp_path / "sound")
    assert attempt(gangs, sound) is None
    assert workers(sound) == workers(late) == workers(wild)


def test_peaks_of_memory_are_of_one_cell(tmp_path: Path, gangs: Gangs) -> None:
    """A cell that needs a GiB goes before a small one, on the same workers."""
    rows = {"global_batch_size": 64, "micro_batch_size": 32, "sequence_length": 512}
    large = job_of(tmp_path / "large", **rows, budget={"kind": "steps", "amount": 1})
    small = job_of(tmp_path / "small")
    peaks = []
    for job in (large, small):
        assert attempt(gangs, job) is None
        measurement = find_measurement(job.folder)
        assert measurement is not None
        peaks.append(measurement.metrics["peak_memory_gib"])
    assert workers(large) == workers(small)
    assert peaks[1] < peaks[0] - 0.4


def test_a_gang_that_lost_a_worker_is_over_and_the_next_attempt_has_a_new_one(tmp_path: Path, gangs: Gangs) -> None:
    job = job_of(tmp_path / "long", budget=LONG)
    came_to, thread = begin(gangs, job)
    before = workers(job)
    os.kill(before[1], signal.SIGKILL)
    thread.join(60)
    (failure,) = came_to
    assert failure is not None and (failure.kind, failure.rank) == (WORKER_DIED, 1)
    other = job_of(tmp_path / "other")
    assert attempt(gangs, other) is None
    assert set(workers(other)).isdisjoint(before)


def test_a_gang_leaves_after_a_wait_in_vain_and_where_another_needs_its_room(
    tmp_path: Path, gangs: Gangs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job_of(tmp_path / "first")
    assert attempt(gangs, first) is None
    assert all(map(is_alive, workers(first))), "it waits for the next cell"
    alone = make_job(tmp_path / "alone", workers=1, budget=STEPS)
    monkeypatch.setattr(gangs_module, "IDLE_S", 1.0)
    assert attempt(gangs, alone) is None
    assert not any(map(is_alive, workers(first))), "Ray may have put the two in the same place"
    (pid,) = (read_json(CellFolder(alone.folder).worker(0))["pid"],)
    wait_until(lambda: not is_alive(pid), 15)


def test_a_cell_that_was_stopped_gives_its_workers_back_before_it_says_so(tmp_path: Path, gangs: Gangs) -> None:
    job = job_of(tmp_path / "long", budget=LONG)
    came_to, thread = begin(gangs, job)
    job.stop_file.touch()
    thread.join(60)
    (failure,) = came_to
    assert failure is not None and failure.status is CellStatus.CANCELLED
    wait_until(lambda: not any(map(is_alive, workers(job))), 5)
    assert not list((job.folder / "gangs").glob("*"))
