"""The MLflow writer against a real SQLite store: what arrives, how often, and what a lost note or answer does.

Over 300 lines: every loss is shown against the same runs.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.results import EvaluationPoint, StepMetrics, read_json, write_json
from orchestrator.tracking.run import Point, TrackedDataset, TrackedRun, described_runs, without_password
from orchestrator.tracking.spool import STREAMED_METRICS, SpoolWriter
from orchestrator.tracking.system import read_samples, sample_files, sampling
from orchestrator.tracking.writer import RunWriter

STEPS = 130  # more than two batches of the writer


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    write_steps(folder, 1, STEPS)
    return folder


def write_steps(folder: Path, first: int, last: int, loss: float = 1.0) -> None:
    writer = SpoolWriter(folder, attempt=1)
    for step in range(first, last + 1):
        writer.step(
            StepMetrics(step, loss / step, 0.5, 1e-3, 2.0, step, 9 * step, 40 * step, step / last, 0.1, 90.0, 1.0)
        )
    writer.evaluation(EvaluationPoint(last, 1.0, 40 * last, 9 * last, 0.1 * last, 2.25, 4.5))
    writer.close()


def tracked(tmp_path: Path, spool: Path | None = None, **changes: Any) -> tuple[TrackedRun, TrackedRun]:
    """A parent and its child, as a new process would describe them."""
    common = {"comparison_id": "job-1", "backbone_id": "tiny-llama2", "seed": "0", "attempt": "1"}
    parent = TrackedRun(
        "job-1", tmp_path / "parent.json", {**common, "role": "comparison", "cell_id": "all"}, {"p": "1"}
    )
    child = TrackedRun(
        "cell-1",
        tmp_path / "child.json",
        {**common, "role": "cell", "cell_id": "cell-1"},
        {"recipe.precision": "bf16", "seed": "0"},
        datasets=(
            TrackedDataset("training", "/data/train.jsonl", "a" * 64, 20, 4000),
            TrackedDataset("validation", "hf-dataset:org/name@main#test", "b" * 32, 5, 700),
        ),
        spool_folder=spool,
        parent=parent,
        **changes,
    )
    return parent, child


def send(uri: str, *runs: TrackedRun, status: str | None = "FINISHED", timeout_s: float = 60) -> RunWriter:
    """One process's worth of tracking: start, track, finish, close."""
    writer = RunWriter(uri, "backbones", Path(uri.removeprefix("sqlite:///")).parent / "artifacts")
    for run in runs:
        writer.track(run)
    writer.start()
    for run in runs:
        if status is not None:
            writer.finish(run, status)
    assert writer.close(timeout_s) == []
    return writer


def points(uri: str, run: TrackedRun, key: str) -> list[tuple[int, float]]:
    assert run.sent.run_id is not None
    return sorted((m.step, m.value) for m in MlflowClient(uri).get_metric_history(run.sent.run_id, key))


def stored_runs(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def test_every_step_and_evaluation_arrives_once(uri: str, spool: Path, tmp_path: Path) -> None:
    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child)

    assert points(uri, child, "loss") == [(step, 1.0 / step) for step in range(1, STEPS + 1)]
    assert points(uri, child, "bytes_seen") == [(step, 40.0 * step) for step in range(1, STEPS + 1)]
    assert points(uri, child, "val_bits_per_byte") == [(STEPS, 2.25)]
    assert set(MlflowClient(uri).get_run(str(child.sent.run_id)).data.metrics) == set(STREAMED_METRICS)


def test_rows_sent_again_after_a_lost_note_are_stored_once(uri: str, spool: Path, tmp_path: Path) -> None:
    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child)
    note = read_json(child.state_file)
    # The process died after MLflow acknowledged everything, and before any of it was noted.
    write_json(child.state_file, {**note, "offset": 0, "params": False, "tags": {}, "status": "", "summary": {}})

    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child)

    assert child.sent.run_id == note["run_id"]
    assert points(uri, child, "loss") == [(step, 1.0 / step) for step in range(1, STEPS + 1)]
    assert points(uri, child, "val_bits_per_byte") == [(STEPS, 2.25)]
    assert len(stored_runs_by_name(uri)["cell-1"].inputs.dataset_inputs) == 2


def test_a_run_names_the_data_that_it_saw(uri: str, spool: Path, tmp_path: Path) -> None:
    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child)

    seen = {one.tags[0].value: one.dataset for one in stored_runs_by_name(uri)["cell-1"].inputs.dataset_inputs}
    assert {use: (one.name, one.digest) for use, one in seen.items()} == {
        "training": ("train.jsonl", "a" * 36),
        "validation": ("name@main#test", "b" * 32),
    }
    assert json.loads(seen["training"].profile) == {"examples": 20, "learnable_bytes": 4000}
    assert json.loads(seen["training"].source) == {"uri": "/data/train.jsonl"}
    assert seen["validation"].source_type == "hugging_face"


def test_a_run_whose_creation_was_not_noted_is_found_again(uri: str, spool: Path, tmp_path: Path) -> None:
    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child)
    note = read_json(child.state_file)
    write_json(child.state_file, {"uri": uri, "creation_id": note["creation_id"]})

    parent, child = tracked(tmp_path, spool)
    child.params["recipe.precision"] = "fp32"  # what MLflow has of a parameter it keeps; a change is refused there
    send(uri, parent, child)

    assert child.problem is None
    assert child.sent.run_id == note["run_id"]
    assert len(stored_runs(uri)) == 2
    assert len(points(uri, child, "loss")) == STEPS


def test_a_run_that_a_late_answer_created_twice_is_left_once(uri: str, tmp_path: Path) -> None:
    parent, child = tracked(tmp_path)
    child.state_file.parent.mkdir(exist_ok=True)
    write_json(child.state_file, {"uri": uri, "creation_id": "of a first try that got no answer"})
    writer = RunWriter(uri, "backbones", tmp_path / "artifacts")
    writer.track(parent)
    writer.track(child)
    writer.start()
    wait_for_run_id(child)
    client = MlflowClient(uri)
    twin = client.create_run(
        client.get_run(str(child.sent.run_id)).info.experiment_id, tags={"creation_id": child.sent.creation_id}
    )
    writer.finish(parent, "FINISHED")
    writer.finish(child, "FINISHED")
    assert writer.close(60) == []

    assert {run.info.run_id for run in stored_runs(uri)} == {parent.sent.run_id, child.sent.run_id}
    assert twin.info.run_id != child.sent.run_id


def wait_for_run_id(run: TrackedRun) -> None:
    deadline = time.monotonic() + 60
    while run.sent.status != "RUNNING":
        assert time.monotonic() < deadline, "the writer did not create the run"
        time.sleep(0.01)


def test_the_same_job_in_another_storage_gets_runs_of_its_own(uri: str, spool: Path, tmp_path: Path) -> None:
    """Two people run one spec against one server: neither must write into the other's curves."""
    mine, yours = tracked(tmp_path / "mine", spool), tracked(tmp_path / "yours", spool)
    send(uri, *mine)
    send(uri, *yours)

    assert len(stored_runs(uri)) == 4
    assert len(points(uri, mine[1], "loss")) == len(points(uri, yours[1], "loss")) == STEPS


def test_values_that_are_not_finite_stay_visible(uri: str, tmp_path: Path) -> None:
    write_steps(tmp_path / "spool", 1, 2, loss=float("nan"))
    parent, child = tracked(tmp_path, tmp_path / "spool")
    send(uri, parent, child, status="FAILED")
    write_json(child.state_file, {**read_json(child.state_file), "offset": 0, "status": ""})
    parent, child = tracked(tmp_path, tmp_path / "spool")
    send(uri, parent, child, status="FAILED")

    stored = points(uri, child, "loss")
    assert [step for step, _ in stored] == [1, 2]
    assert all(math.isnan(value) for _, value in stored)


def test_every_run_says_what_it_is_and_children_name_their_parent(uri: str, spool: Path, tmp_path: Path) -> None:
    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child)

    runs = {run.data.tags["role"]: run for run in stored_runs(uri)}
    assert set(runs) == {"comparison", "cell"}
    for run in runs.values():
        assert {"comparison_id", "cell_id", "backbone_id", "seed", "attempt"} <= set(run.data.tags)
    assert runs["cell"].data.tags["mlflow.parentRunId"] == runs["comparison"].info.run_id
    assert "mlflow.parentRunId" not in runs["comparison"].data.tags
    assert runs["cell"].data.params == {"recipe.precision": "bf16", "seed": "0"}


def test_a_resumed_cell_continues_its_run_and_its_status_follows(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    write_steps(folder, 1, 10)
    parent, child = tracked(tmp_path, folder)
    send(uri, parent, child, status="KILLED")
    run_id = child.sent.run_id
    assert {run.info.status for run in stored_runs(uri)} == {"KILLED"}

    write_steps(folder, 11, 20)
    parent, child = tracked(tmp_path, folder)
    child.tags["attempt"] = "2"
    writer = RunWriter(uri, "backbones", tmp_path / "artifacts")
    writer.track(parent)
    writer.track(child)
    writer.start()
    wait_for_run_id(child)
    assert {run.info.status for run in stored_runs(uri)} == {"RUNNING"}
    writer.finish(parent, "FINISHED")
    writer.finish(child, "FINISHED")
    assert writer.close(60) == []

    assert child.sent.run_id == run_id
    assert [step for step, _ in points(uri, child, "loss")] == list(range(1, 21))
    stored = MlflowClient(uri).get_run(str(run_id))
    assert (stored.info.status, stored.data.tags["attempt"]) == ("FINISHED", "2")


def test_a_finished_run_is_left_alone_and_mlflow_is_not_even_asked(uri: str, spool: Path, tmp_path: Path) -> None:
    parent, child = tracked(tmp_path, spool, summary={"mfu": 0.5}, summary_time_ms=1000)
    send(uri, parent, child)
    Path(uri.removeprefix("sqlite:///")).unlink()  # asking it would fail, or make a new one

    parent, child = tracked(tmp_path, spool, summary={"mfu": 0.5}, summary_time_ms=1000)
    for run in (parent, child):
        run.status = "FINISHED"
    send(uri, parent, child, timeout_s=5)

    assert not Path(uri.removeprefix("sqlite:///")).exists()


def test_a_changed_summary_shows_its_newest_value(uri: str, tmp_path: Path) -> None:
    """The ranking of a comparison that went on: MLflow shows the largest of values with one step and one time."""
    for value, moment in ((2.5, 1000), (2.0, 2000)):
        parent, _ = tracked(tmp_path)
        parent.summary, parent.summary_time_ms = {"val_bits_per_byte/a": value}, moment
        send(uri, parent)

    assert MlflowClient(uri).get_run(str(parent.sent.run_id)).data.metrics == {"val_bits_per_byte/a": 2.0}


def test_a_job_that_goes_on_with_another_database_sends_everything_anew(
    uri: str, empty_database: Path, spool: Path, tmp_path: Path
) -> None:
    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child, status="KILLED")
    shutil.copy(empty_database, tmp_path / "mlflow.db")

    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child)

    assert {run.info.status for run in stored_runs(uri)} == {"FINISHED"}
    assert len(points(uri, child, "loss")) == STEPS
    assert MlflowClient(uri).get_run(str(child.sent.run_id)).data.tags["mlflow.parentRunId"] == parent.sent.run_id


def test_a_cell_that_goes_on_loses_what_was_said_of_its_last_end(uri: str, tmp_path: Path) -> None:
    parent, child = tracked(tmp_path)
    child.tags |= {"failure": "a node died", "cell_status": "FAILED"}
    send(uri, parent, child, status="FAILED")
    noted = read_json(child.state_file)

    for _ in range(2):  # the second time as if the answers to the deletions had been lost
        parent, child = tracked(tmp_path)
        send(uri, parent, child)
        assert not {"failure", "cell_status"} & stored_runs_by_name(uri)["cell-1"].data.tags.keys()
        assert child.problem is None
        write_json(child.state_file, noted)


def stored_runs_by_name(uri: str) -> dict[str, Any]:
    return {run.info.run_name: run for run in stored_runs(uri)}


def test_a_run_that_is_sent_late_began_and_ended_when_it_did(uri: str, tmp_path: Path) -> None:
    parent, child = tracked(tmp_path, began_ms=1_000, ended_ms=5_000)
    send(uri, parent, child)

    run = stored_runs_by_name(uri)["cell-1"]
    assert (run.info.start_time, run.info.end_time) == (1_000, 5_000)


def test_a_description_says_all_that_its_process_knew(uri: str, spool: Path, tmp_path: Path) -> None:
    facts = {"summary": {"mfu": 0.5}, "summary_time_ms": 7, "artifacts": (spool / "steps.jsonl",)}
    facts["series"] = {"history/val_bits_per_byte/a": [Point(1, 10, 0.9), Point(2, 20, 0.8)]}
    parent, child = tracked(tmp_path, spool, registered_model=None, **facts)
    send(uri, parent, child, status="FAILED")
    assert points(uri, child, "history/val_bits_per_byte/a") == [(1, 0.9), (2, 0.8)]

    for run in (parent, child):
        run.sent = TrackedRun("", tmp_path, {}, {}).sent  # not part of it: the state file says what was sent
    assert described_runs(tmp_path) == [parent, child]


@pytest.mark.parametrize(
    ("uri_with_password", "shown"),
    [
        ("http://ada:pa@ss@host:5000/mlflow", "http://***@host:5000/mlflow"),
        (
            "postgresql://host/db?user=ada&password=canary&sslmode=x",
            "postgresql://host/db?user=ada&password=***&sslmode=x",
        ),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_no_password_is_left_in_an_address(uri_with_password: str, shown: str) -> None:
    assert without_password(uri_with_password) == shown


@pytest.fixture
def closed_port() -> Iterator[str]:
    import socket

    with socket.socket() as taken:  # bound and not listening: connections are refused, and nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_an_absent_server_costs_neither_data_nor_much_time(
    closed_port: str, uri: str, spool: Path, tmp_path: Path
) -> None:
    parent, child = tracked(tmp_path, spool)
    writer = RunWriter(closed_port, "backbones", tmp_path / "artifacts")
    for run in (parent, child):
        writer.track(run)
        writer.finish(run, "FINISHED")
    writer.start()
    started = time.monotonic()
    unsent = writer.close(timeout_s=3)

    assert time.monotonic() - started < 20
    assert unsent == [parent, child]
    assert writer.unreachable is not None
    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child)
    assert len(points(uri, child, "loss")) == STEPS


def test_an_absent_server_is_told_of_without_its_password(tmp_path: Path) -> None:
    writer = RunWriter("http://ada:canary-71@127.0.0.1:9", "backbones", tmp_path)
    writer.track(TrackedRun("cell-1", tmp_path / "child.json", {}, {}))
    writer.start()
    deadline = time.monotonic() + 60
    while writer.unreachable is None:
        assert time.monotonic() < deadline, "it noticed nothing"
        time.sleep(0.05)
    writer.expedite()
    writer.close(0.0)
    assert "127.0.0.1" in writer.unreachable
    assert "canary-71" not in writer.unreachable


def test_what_machines_did_arrives_once_also_after_a_lost_note(uri: str, spool: Path, tmp_path: Path) -> None:
    with sampling(spool, is_first_on_node=False):
        pass
    assert sample_files(spool) == {}
    for _ in range(2):  # attempts
        with sampling(spool, is_first_on_node=True, every_s=0.01):
            time.sleep(0.05)
    ((machine, file),) = sample_files(spool).items()
    file.write_bytes(file.read_bytes() + b'{"time_ms": 1, "st')  # a killed process
    with sampling(spool, is_first_on_node=True, every_s=60):
        pass
    samples = [sample for sample, _ in read_samples(file, 0)]
    assert [sample.step for sample in samples] == list(range(len(samples))) and len(samples) >= 5
    other = file.with_name("system-node-b.jsonl")
    other.write_bytes(file.read_bytes())

    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child)
    note = read_json(child.state_file)
    write_json(child.state_file, {**note, "samples": {}, "status": ""})
    parent, child = tracked(tmp_path, spool)
    send(uri, parent, child)
    for name in (machine, "node-b"):
        for key in ("cpu_utilization_percentage", "system_memory_usage_megabytes", "network_receive_megabytes"):
            expected = [(sample.step, sample.values[key]) for sample in samples]
            assert points(uri, child, f"system/{name}/{key}") == expected


def test_the_metric_that_is_told_first_is_the_score_before_training(uri: str, tmp_path: Path) -> None:
    """MLflow's page that compares runs draws the first one that it was told of."""
    spool = tmp_path / "spool"
    with sampling(spool, is_first_on_node=True, every_s=60):
        pass
    runs = tracked(tmp_path, spool)
    writer = RunWriter(uri, "backbones", tmp_path / "artifacts")
    for run in runs:
        writer.track(run)
    writer.start()
    deadline = time.monotonic() + 60
    while not runs[1].sent.params:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    writer.close(0.5)
    assert runs[1].sent.samples == {}

    first = SpoolWriter(spool, attempt=1)
    first.evaluation(EvaluationPoint(0, 0.0, 0, 0, 0.0, 8.25, 4.5))
    first.close()
    write_steps(spool, 1, 3)
    runs = tracked(tmp_path, spool)
    send(uri, *runs)
    keys = list(MlflowClient(uri).get_run(runs[1].sent.run_id).data.metrics)
    assert keys[0] == "val_bits_per_byte" and any(key.startswith("system/") for key in keys)


def test_a_run_that_ended_before_its_first_score_shows_what_its_machine_did(uri: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with sampling(spool, is_first_on_node=True, every_s=60):
        pass
    runs = tracked(tmp_path, spool)
    send(uri, *runs, status="FAILED")
    keys = list(MlflowClient(uri).get_run(runs[1].sent.run_id).data.metrics)
    assert keys and all(key.startswith("system/") for key in keys)
