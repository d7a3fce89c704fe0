"""The held-out items of a cell as a table in MLflow."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from scored_cells import grouped_job, trained

from jobs.tracking.runs import Tracking
from jobs.tracking.tables import COLUMNS, LOGGED_TABLES, MOST_ITEMS, ItemTables
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import load_comparison
from orchestrator.results import Measurement
from orchestrator.training.measurement import load_item_scores

FIRST, SECOND = "tiny-llama2", "tiny-mistral"
MEASURED = Measurement({"steps": 3.0}, [], {"workers": 1}, {}, "items.parquet")


def test_mlflow_loads_the_items_of_both_runs_as_one_table(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    job = grouped_job(tmp_path, backbones=[FIRST, SECOND], seeds=1, tracking__uri=uri)
    plan = load_comparison(job.spec)
    results = trained(plan, plan.cells, {FIRST: 2.0, SECOND: 3.0})
    tracking = Tracking(plan, "backbone compare", None)
    for result in results:
        tracking.finish_child(replace(result, measurement=MEASURED))
    tracking.finish_parent({}, "a tie", results, (), "FINISHED")
    assert tracking.close(60) == []

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # load_table searches there
    client = MlflowClient()
    experiment = client.get_experiment_by_name(plan.job.tracking.experiment)
    table = client.load_table(experiment.experiment_id, "items.json", extra_columns=["run_id"])
    assert list(table.columns) == [*COLUMNS, "run_id"] and len(table) == 2 * len(plan.validation)
    assert set(table["text"]) == {example.turns[1].content for example in plan.validation.read()}
    for result, run in zip(results, tracking.run_ids(0).values(), strict=True):
        own, scores = table[table["run_id"] == run], load_item_scores(Path(result.folder))
        assert list(own["bits_per_byte"]) == pytest.approx(scores.each_bits_per_byte.tolist())
        assert list(own["group"])[:3] == ["g0", "g1", "g2"]
        assert json.loads(client.get_run(run).data.tags[LOGGED_TABLES]) == [{"path": "items.json", "type": "table"}]


def test_a_table_has_the_first_items_and_is_written_once(tmp_path: Path) -> None:
    plan = load_comparison(grouped_job(tmp_path, backbones=[FIRST], seeds=1).spec)
    (result,) = trained(plan, plan.cells, {FIRST: 2.0})
    (tmp_path / "validation.jsonl").write_text("")  # its texts cannot be read again
    ItemTables(plan.validation).write(result)
    file = CellFolder(Path(result.folder)).item_table
    rows = json.loads(file.read_text())["data"]
    assert len(rows) == len(plan.validation) <= MOST_ITEMS and {row[2] for row in rows} == {None}
    file.write_text("{}")
    ItemTables(plan.validation).write(result)
    assert file.read_text() == "{}"
