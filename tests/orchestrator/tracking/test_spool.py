"""The spool: whole lines only, each step once, readable from any offset."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.layout import SPOOL_FILE
from orchestrator.results import EvaluationPoint, RolloutPoint, StepMetrics
from orchestrator.tracking.spool import SpoolWriter, read_from, read_spool


def metrics(step: int, loss: float = 1.0) -> StepMetrics:
    return StepMetrics(
        step=step,
        loss=loss,
        grad_norm=0.5,
        learning_rate=1e-3,
        train_bits_per_byte=2.0,
        examples_seen=8 * step,
        tokens_seen=100 * step,
        bytes_seen=300 * step,
        progress=step / 10,
        step_time_s=0.1,
        tokens_per_second_per_device=1000.0,
        peak_memory_gib=0.5,
    )


def point(step: int) -> EvaluationPoint:
    return EvaluationPoint(step, step / 10, 300 * step, 100 * step, 0.1 * step, 2.0, 3.0)


def write(folder: Path, attempt: int, steps: range, loss: float = 1.0) -> None:
    writer = SpoolWriter(folder, attempt)
    for step in steps:
        writer.step(metrics(step, loss))
    writer.close()


def steps_in(folder: Path) -> list[tuple[int, int]]:
    return [(entry.fields["step"], entry.attempt) for entry in read_spool(folder) if entry.kind == "step"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, attempt=3)
    writer.phase("training", step=0)
    writer.step(metrics(1))
    writer.evaluation(point(1))
    writer.close()

    phase, step, evaluation = read_spool(tmp_path)

    assert (phase.kind, phase.attempt, phase.fields) == ("phase", 3, {"phase": "training", "step": 0})
    assert StepMetrics(**step.fields) == metrics(1)
    assert EvaluationPoint(**evaluation.fields) == point(1)
    assert phase.time_ms <= step.time_ms <= evaluation.time_ms


def test_an_attempt_that_repeats_steps_writes_none_twice(tmp_path: Path) -> None:
    write(tmp_path, 1, range(1, 6), loss=1.0)
    before = (tmp_path / SPOOL_FILE).read_bytes()

    write(tmp_path, 2, range(3, 8), loss=2.0)

    assert steps_in(tmp_path) == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2)]
    assert (tmp_path / SPOOL_FILE).read_bytes().startswith(before)


def test_a_step_and_an_evaluation_of_the_same_step_are_two_things(tmp_path: Path) -> None:
    for attempt in (1, 2):
        writer = SpoolWriter(tmp_path, attempt)
        writer.step(metrics(4))
        writer.evaluation(point(4))
        writer.close()

    assert [entry.kind for entry in read_spool(tmp_path)] == ["step", "evaluation"]


def test_rollouts_of_a_step_are_told_once_for_each_request_and_shown_as_a_curve(tmp_path: Path) -> None:
    for attempt in (1, 2):
        writer = SpoolWriter(tmp_path, attempt)
        for digest, success in (("few", 0.5), ("many", 0.25)):
            writer.rollouts(RolloutPoint(4, 0.5, 300, 100, 0.1, success, 0.75, 6.5, digest))
        writer.close()

    few, many = read_spool(tmp_path)

    assert few.metrics == {"rollout/success": 0.5, "rollout/return": 0.75, "rollout/length": 6.5}
    assert (many.attempt, many.fields["step"], many.metrics["rollout/success"]) == (1, 4, 0.25)


def test_a_phase_is_written_by_every_attempt(tmp_path: Path) -> None:
    for attempt in (1, 2):
        writer = SpoolWriter(tmp_path, attempt)
        writer.phase("loading")
        writer.close()

    assert [entry.attempt for entry in read_spool(tmp_path)] == [1, 2]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(1, 400))
def test_a_line_that_was_torn_by_a_kill_is_written_again_by_the_next_attempt(cut: int, tmp_path: Path) -> None:
    (tmp_path / SPOOL_FILE).unlink(missing_ok=True)
    write(tmp_path, 1, range(1, 5))
    file = tmp_path / SPOOL_FILE
    os.truncate(file, max(file.stat().st_size - cut, 0))
    whole = steps_in(tmp_path)

    write(tmp_path, 2, range(1, 5))

    assert [step for step, _ in steps_in(tmp_path)] == [1, 2, 3, 4]
    assert steps_in(tmp_path)[: len(whole)] == whole
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_reader_leaves_a_line_that_is_being_written_for_later(tmp_path: Path) -> None:
    write(tmp_path, 1, range(1, 3))
    file = tmp_path / SPOOL_FILE
    line = file.read_bytes().splitlines(keepends=True)[1].replace(b'"step": 2', b'"step": 3')
    with open(file, "ab") as stream:
        stream.write(line[:50])
        stream.flush()
        assert [step for step, _ in steps_in(tmp_path)] == [1, 2]
        stream.write(line[50:])
    assert [step for step, _ in steps_in(tmp_path)] == [1, 2, 3]


def test_reading_goes_on_from_the_offset_of_the_last_entry(tmp_path: Path) -> None:
    write(tmp_path, 1, range(1, 4))
    first = list(read_from(tmp_path, 0))
    assert first[-1][1] == (tmp_path / SPOOL_FILE).stat().st_size

    for index, (_, offset) in enumerate(first):
        rest = [entry.fields["step"] for entry, _ in read_from(tmp_path, offset)]
        assert rest == [1, 2, 3][index + 1 :]

    write(tmp_path, 2, range(4, 6))
    assert [entry.fields["step"] for entry, _ in read_from(tmp_path, first[-1][1])] == [4, 5]


def test_there_is_nothing_to_read_before_the_first_attempt(tmp_path: Path) -> None:
    assert list(read_spool(tmp_path)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_kept_as_it_is(value: float, tmp_path: Path) -> None:
    write(tmp_path, 1, range(1, 2), loss=value)
    (entry,) = read_spool(tmp_path)
    assert repr(entry.fields["loss"]) == repr(value)


def test_a_full_disk_is_an_error_and_leaves_no_line_behind_half_of_another(tmp_path: Path) -> None:
    import resource
    import signal

    writer = SpoolWriter(tmp_path, 1)
    writer.step(metrics(1))
    size = (tmp_path / SPOOL_FILE).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, limits[1]))  # room for a part of the next line
        with pytest.raises(OSError, match="free some space"):
            writer.step(metrics(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    write(tmp_path, 2, range(1, 4))

    assert steps_in(tmp_path) == [(1, 1), (2, 2), (3, 2)]
