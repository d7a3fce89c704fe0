"""Which job `backbone mlflow` shows, and what it refuses. No MLflow."""

import json
import re
from pathlib import Path

import pytest

from jobs.cli.tables import out
from jobs.tracking.page import find_job, show
from orchestrator.errors import ClusterError, InputError
from orchestrator.layout import RUN_SUFFIX, Storage

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing answers there


def track(storage: Path, name: str, cells: dict[str, str | None], address: str = NOBODY) -> None:
    """A job's tracking folder, as its writer leaves it: a run that MLflow never acknowledged has no id."""
    folder = Storage(storage).job(name)
    folder.tracking.mkdir(parents=True)
    states = {folder.parent_run: f"{name}-parent"} | {folder.child_run(cell): run for cell, run in cells.items()}
    for file, run_id in states.items():
        file.write_text(json.dumps({"uri": address, "run_id": run_id}), encoding="utf-8")
        file.with_suffix(RUN_SUFFIX).write_text("{}", encoding="utf-8")


def test_the_newest_job_is_found_or_the_one_that_is_named(tmp_path: Path) -> None:
    track(tmp_path, "first-1", {"a": "run-a", "b": None})
    track(tmp_path, "second-2", {"c": "run-c"})
    assert find_job(tmp_path, None).name == "second-2"
    first = find_job(tmp_path, "first-1")
    assert (first.parent, first.cells, first.address) == ("first-1-parent", ("run-a",), NOBODY)


def test_a_job_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`backbone compare SPEC` runs one"):
        find_job(tmp_path, None)
    track(tmp_path, "first-1", {})
    with pytest.raises(InputError, match="has no job other that MLflow has heard of; it has first-1"):
        find_job(tmp_path, "other")


def test_a_server_that_is_away_is_named_and_no_other_started(tmp_path: Path) -> None:
    track(tmp_path, "first-1", {})
    with pytest.raises(ClusterError, match=f"MLflow at {NOBODY} does not answer"):
        show(tmp_path, None, None, False, out)


@pytest.mark.parametrize("address", ["postgresql://***@db.example/mlflow", "sqlite:////gone/mlflow.db"])
def test_a_database_that_is_not_here_is_named_and_none_made(address: str, tmp_path: Path) -> None:
    track(tmp_path, "first-1", {}, address)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ClusterError, match=rf"the runs of first-1 are in {re.escape(address)}; a server of that"):
        show(tmp_path, None, None, False, out)
    assert sorted(tmp_path.rglob("*")) == before
