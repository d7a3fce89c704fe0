"""An exported model as a version in MLflow's model registry: in a SQLite store and behind a real server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from product import free_port, wait_until_it_answers

from orchestrator.results import EvaluationPoint, read_json, write_json
from orchestrator.tracking.run import TrackedDataset, TrackedRun
from orchestrator.tracking.spool import SpoolWriter
from orchestrator.tracking.writer import RunWriter

NAME = "assistant"


@dataclass
class Launches:
    """What several launches of one finetune send, each with a writer of its own."""

    uri: str
    folder: Path
    runs: list[TrackedRun] = field(default_factory=list)

    def send(self, model: tuple[str, Path] | None, name: str = "cell-1", **more: Any) -> TrackedRun:
        tags = {"comparison_id": "job-1", "role": "finetune", "cell_id": name, "attempt": "1"}
        run = TrackedRun(name, self.folder / f"{name}.json", tags, {"p": "1"}, registered_model=model, **more)
        writer = RunWriter(self.uri, "backbones", self.folder / "artifacts")
        writer.track(run)
        writer.finish(run, "FINISHED")
        writer.start()
        assert writer.close(60) == [], writer.unreachable or writer.problems
        assert writer.problems == []
        self.runs.append(run)
        return run

    def send_scored(self, name: str, bits_per_byte: float, held_out: str = "a" * 32) -> None:
        """A finetune of its own, with its score and what it was scored on."""
        spool = SpoolWriter(self.folder / name / "spool", attempt=1)
        spool.evaluation(EvaluationPoint(5, 1.0, 200, 50, 0.5, bits_per_byte, 4.5))
        spool.close()
        data = (TrackedDataset("validation", "/data/validation.jsonl", held_out, 5, 700),)
        folder = export_folder(self.folder / f"{name}-exported")
        self.send((NAME, folder), name, spool_folder=self.folder / name / "spool", datasets=data)

    @property
    def champion(self) -> str:
        """The folder of the version with the alias."""
        version = MlflowClient(tracking_uri=self.uri).get_model_version_by_alias(NAME, "champion")
        return Path(version.tags["folder"]).name

    def versions(self) -> list[Any]:
        found = MlflowClient(tracking_uri=self.uri).search_model_versions(f"name = '{NAME}'")
        return sorted(found, key=lambda version: int(version.version))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export_folder(tmp_path / "exported")


def export_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "training_manifest.json").write_text('{"cell_id": "cell-1"}')
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def launches(tmp_path: Path) -> Launches:
    return Launches(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)


def test_a_registered_model_points_at_the_folder_and_is_registered_once(launches: Launches, exported: Path) -> None:
    run = launches.send((NAME, exported))
    launches.send((NAME, exported))

    (version,) = launches.versions()
    assert version.source == exported.as_uri()
    assert version.run_id == run.sent.run_id
    assert version.tags == {"folder": str(exported)}


def test_a_version_whose_acknowledgement_was_lost_is_not_made_twice(launches: Launches, exported: Path) -> None:
    run = launches.send((NAME, exported))
    write_json(run.state_file, {**read_json(run.state_file), "model": []})
    launches.send((NAME, exported))

    assert len(launches.versions()) == 1


def test_a_name_given_after_the_run_was_finished_is_registered_too(launches: Launches, exported: Path) -> None:
    launches.send(None)
    launches.send((NAME, exported))

    assert [version.source for version in launches.versions()] == [exported.as_uri()]


def test_an_export_to_another_folder_is_another_version_of_the_same_run(
    launches: Launches, exported: Path, tmp_path: Path
) -> None:
    other = export_folder(tmp_path / "other")
    launches.send((NAME, exported))
    launches.send((NAME, other))

    assert [version.source for version in launches.versions()] == [exported.as_uri(), other.as_uri()]
    assert len({version.run_id for version in launches.versions()}) == 1


def test_the_champion_is_the_best_on_the_same_held_out_data(launches: Launches) -> None:
    champions = []
    for name, score, held_out in (
        ("first", 2.5, "a" * 32),
        ("worse", 2.6, "a" * 32),
        ("incomparable", 1.0, "b" * 32),  # of other data: no reason to replace it
        ("better", 2.4, "a" * 32),
    ):
        launches.send_scored(name, score, held_out)
        champions.append(launches.champion)
    assert champions == ["first-exported", "first-exported", "first-exported", "better-exported"]


def test_a_champion_whose_run_is_gone_makes_room(launches: Launches) -> None:
    launches.send_scored("first", 2.5)
    client = MlflowClient(tracking_uri=launches.uri)
    client.delete_run(str(launches.runs[0].sent.run_id))
    collect = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", launches.uri]
    subprocess.run(collect, env={**os.environ, "MLFLOW_TRACKING_URI": launches.uri}, check=True, capture_output=True)
    launches.send_scored("second", 2.6)
    assert launches.champion == "second-exported"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "files")]
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.e2e
def test_a_server_which_refuses_folders_as_sources_gets_a_version_too(
    server: str, tmp_path: Path, exported: Path
) -> None:
    launches = Launches(server, tmp_path)
    run = launches.send((NAME, exported))
    launches.send((NAME, exported))

    (version,) = launches.versions()
    assert version.tags == {"folder": str(exported)}
    assert version.source == f"runs:/{run.sent.run_id}/export"
    client = MlflowClient(tracking_uri=server)
    assert run.sent.run_id is not None
    assert client.get_run(run.sent.run_id).info.status == "FINISHED"
    (manifest,) = client.list_artifacts(run.sent.run_id, "export")
    assert manifest.path == "export/training_manifest.json"
