"""A tracker beside MLflow: one class and one `register`, and specs take its URIs, the writer sends to it."""

import csv
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.results import StepMetrics
from orchestrator.spec_files.spec import Tracking
from orchestrator.tracking.run import TrackedRun
from orchestrator.tracking.spool import SpoolWriter, read_from
from orchestrator.tracking.tracker import Refused, register
from orchestrator.tracking.writer import RunWriter


class CsvTracker:
    """A folder of tables, one a run: `csv:///shared/tables`."""

    def __init__(self, uri: str, experiment: str, artifacts: Path):
        self._folder = Path(uri.removeprefix("csv://")) / experiment

    def bring_up_to_date(self, run: TrackedRun) -> None:
        if "secret" in run.tags:
            raise Refused("no secrets in tables")
        status, tags, summary = run.status, run.tags.copy(), run.summary.copy()
        self._folder.mkdir(parents=True, exist_ok=True)
        entries = [] if run.spool_folder is None else list(read_from(run.spool_folder, 0))
        with open(self._folder / f"{run.name}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            for entry, _ in entries:
                rows.writerows((entry.fields["step"], key, value) for key, value in entry.metrics.items())
            rows.writerows(("", key, value) for key, value in {"status": status, **tags, **summary}.items())
        sent = run.sent
        sent.run_id, sent.status, sent.tags, sent.summary = run.name, status, tags, summary
        sent.offset = entries[-1][1] if entries else 0


register(CsvTracker, "csv://")


def send(folder: Path, run: TrackedRun) -> RunWriter:
    writer = RunWriter(f"csv://{folder}", "backbones", folder)
    writer.track(run)
    writer.finish(run, "FINISHED")
    writer.start()
    assert writer.close(20) == []
    return writer


def table(folder: Path, run: TrackedRun) -> list[list[str]]:
    with open(folder / "backbones" / f"{run.name}.csv", newline="") as file:
        return list(csv.reader(file))


def test_every_step_is_in_its_table(tmp_path: Path) -> None:
    spool = SpoolWriter(tmp_path / "spool", attempt=1)
    for step in (1, 2):
        spool.step(StepMetrics(step, 1 / step, 0.5, 1e-3, 2.0, step, 9 * step, 40 * step, step / 2, 0.1, 90.0, 1.0))
    spool.phase("train")
    spool.close()
    run = TrackedRun("cell-1", tmp_path / "state.json", {"seed": "0"}, {}, spool_folder=tmp_path / "spool")

    writer = send(tmp_path / "tables", run)

    rows = table(tmp_path / "tables", run)
    assert [row for row in rows if row[1] == "loss"] == [["1", "loss", "1.0"], ["2", "loss", "0.5"]]
    assert ["", "status", "FINISHED"] in rows
    assert ["", "seed", "0"] in rows
    assert writer.problems == []


def test_what_a_tracker_refuses_is_said_once_and_not_sent_again(tmp_path: Path) -> None:
    run = TrackedRun("cell-1", tmp_path / "state.json", {"secret": "7"}, {})
    assert send(tmp_path / "tables", run).problems == ["cell-1: no secrets in tables"]


def test_a_spec_takes_the_uris_of_every_tracker_and_no_others() -> None:
    assert Tracking(uri="csv:///shared/tables").uri == "csv:///shared/tables"
    with pytest.raises(ValidationError, match="write a URL such as http://mlflow:5000"):
        Tracking(uri="ftp://shared/tables")


def test_two_trackers_cannot_answer_for_one_uri() -> None:
    with pytest.raises(ValueError, match="choose another scheme"):
        register(CsvTracker, "sqlite://tables/")
