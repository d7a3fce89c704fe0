"""Success on the way: rollouts between steps change nothing of what is trained, and attempts share one curve."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from gang import run_ranks
from small_jobs import curve, entries, make_job

from orchestrator.attempt.failure import account_of
from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob, RolloutRequest
from orchestrator.environments.demonstrations import HELD_OUT, TRAIN, record_demonstrations
from orchestrator.faults import parse_faults
from orchestrator.layout import CellFolder
from orchestrator.results import CellStatus, read_json
from orchestrator.training.checkpoints.checkpoint import find_latest
from orchestrator.training.measurement import find_measurement
from orchestrator.training.pulse import Pulse

pytest.importorskip("minigrid", reason="MiniGrid is not installed: pip install 'backbone-orchestrator[minigrid]'")

ROOM, STEPS = "minigrid:BabyAI-GoToLocalS5N2-v0", 4


@dataclass
class Stopping(Pulse):
    """Has the job stopped once it rolls out after a step; counts its beats while it rolls out."""

    file: Path = Path()
    at: int | None = None
    rolling: Counter[int | None] = field(default_factory=Counter)

    def rest(self, doing: str, step: int | None = None) -> None:
        super().rest(doing, step)
        if doing == "rolling out":
            self.rolling[step] += 1
            if step == self.at:
                self.file.touch()


def attempt(job: CellJob, stop_at: int | None = None) -> str:
    """What became of an attempt on this rank."""
    pulse = Stopping(file=job.stop_file, at=stop_at)
    try:
        run_cell(job, torch.device("cpu"), pulse)
    except Exception as error:
        return str(account_of(torch.distributed.get_rank(), error, None).status)
    assert job.rollouts is not None and job.rollouts.max_steps is not None
    assert min(pulse.rolling.values()) > job.rollouts.max_steps  # before each action, that no long episode looks hung
    return str(CellStatus.SUCCEEDED)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> CellJob:
    """Rolls out at the end alone; adapters with dropout, which draws at random."""
    folder = tmp_path_factory.mktemp("job")
    record_demonstrations(ROOM, 20, 0, folder / "data", lambda *_: None)
    data = {"train": str(folder / "data" / TRAIN), "validation": str(folder / "data" / HELD_OUT), "format": "actions"}
    job = make_job(
        folder,
        "tiny-smolvlm",
        sequence_length=64,
        data=data,
        budget={"kind": "steps", "amount": STEPS},
        adaptation={"kind": "lora", "dropout": 0.3},
        evaluate={"every": 0.5},
        optimizer={"learning_rate": 0.03},
    )
    job = replace(job, rollouts=RolloutRequest(ROOM, 16, 0, max_steps=12))
    assert run_ranks(1, attempt, job) == [CellStatus.SUCCEEDED]
    return job


def curved(job: CellJob, folder: Path) -> CellJob:
    """The same cell in a folder of its own, rolled out before training and half-way too."""
    assert job.rollouts is not None
    return replace(job, folder=folder, rollouts=replace(job.rollouts, every=0.5))


def weights(job: CellJob) -> dict[str, bytes]:
    newest, _ = find_latest(job.checkpoint_root)
    assert newest is not None and newest.step == STEPS
    return {file.name: file.read_bytes() for file in newest.folder.glob("__*.distcp")}


def assert_trained_alike(job: CellJob, other: CellJob) -> None:
    for metric in ("loss", "grad_norm", "learning_rate", "tokens_seen"):
        assert curve(job, metric) == curve(other, metric), metric
    bits = [[entry.fields["val_bits_per_byte"] for entry in entries(each, "evaluation")] for each in (job, other)]
    assert bits[0] == bits[1]
    assert weights(job) == weights(other)
    assert read_json(CellFolder(job.folder).rollouts) == read_json(CellFolder(other.folder).rollouts)


def test_rollouts_on_the_way_change_nothing_and_attempts_share_one_curve(plain: CellJob, tmp_path: Path) -> None:
    whole = curved(plain, tmp_path / "whole")
    assert run_ranks(1, attempt, whole) == [CellStatus.SUCCEEDED]
    assert_trained_alike(whole, plain)
    points = [entry.fields for entry in entries(whole, "rollouts")]
    assert [(point["step"], point["progress"]) for point in points] == [(0, 0.0), (2, 0.5), (4, 1.0)]
    assert len({json.dumps([point["total_reward"], point["success"], point["length"]]) for point in points}) > 1
    measurement = find_measurement(whole.folder)
    assert measurement is not None and measurement.data["rollouts"] == points[-1]["digest"]
    assert measurement.metrics["rollout/success"] == points[-1]["success"]
    assert [entry.fields["step"] for entry in entries(plain, "rollouts")] == [STEPS]

    # Stopped while the episodes after step 2 are played, which the next attempt plays, and struck in step 4.
    broken = replace(curved(plain, tmp_path / "broken"), faults=parse_faults("raise@rank0:step4@attempt2"))
    assert run_ranks(1, attempt, broken, 2) == [CellStatus.CANCELLED]
    broken.stop_file.unlink()
    newest, _ = find_latest(broken.checkpoint_root)
    assert newest is not None and newest.step == 2
    assert run_ranks(1, attempt, replace(broken, attempt=2)) == [CellStatus.FAILED]
    assert run_ranks(1, attempt, replace(broken, attempt=3)) == [CellStatus.SUCCEEDED]
    assert_trained_alike(broken, plain)
    played = entries(broken, "rollouts")
    assert [entry.fields | {"train_time_s": 0} for entry in played] == [p | {"train_time_s": 0} for p in points]
    assert [entry.attempt for entry in played] == [1, 2, 3]
