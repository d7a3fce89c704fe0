"""Tokenizing on the cluster: parts are tasks of their own, and the arrays are those that one process makes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import yaml
from pyarrow import parquet
from small_jobs import WORDS

from backbones.registry import load_codec
from jobs.driver.preparation import Preparation, _gather, find_preparation, prepare_data
from orchestrator.data.arrays import load_arrays
from orchestrator.data.prepare import tokenize
from orchestrator.data.sources.dataset import DataChangedError
from orchestrator.planning.plan import Plan, load_comparison

ARRAYS = ("input_ids", "is_target", "is_scored", "offsets", "learnable_bytes", "targets", "first_targets")


def write_rows(file: Path, first: int, count: int, word: str = "ship") -> None:
    """Short rows in row groups of 700: two parts have more than 4000 rows, the last one a few."""
    rows = [
        {"prompt": f"{number}? {word}", "completion": " ".join(WORDS[number % 20 :][:4]) or "so"}
        for number in range(first, first + count)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=700)


def make_plan(folder: Path, **recipe: Any) -> Plan:
    write_rows(folder / "train.parquet", 0, 9000)
    write_rows(folder / "validation.parquet", 8990, 20)  # ten of them are in the training data
    data = {"train": "train.parquet", "validation": "validation.parquet", "format": "prompt_completion"}
    settings = {"data": data, "sequence_length": 64, "global_batch_size": 2, "budget": {"kind": "steps", "amount": 1}}
    spec = {"name": "x", "backbones": ["tiny-llama2", "tiny-qwen"], "recipe": settings | recipe}
    (folder / "x.yaml").write_text(yaml.safe_dump(spec | {"storage": str(folder / "storage")}))
    return load_comparison(folder / "x.yaml")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[Plan, Preparation, list[str]]:
    said: list[str] = []
    plan = make_plan(tmp_path_factory.mktemp("preparation"))
    return plan, prepare_data(plan, said.append), said


def test_arrays_made_by_many_tasks_are_those_of_one_process(prepared: tuple[Plan, Preparation, list[str]]) -> None:
    plan, preparation, _ = prepared
    assert len(plan.train.blocks) == 13 and len(plan.train) == 8990
    for spec in plan.backbones:
        codec = load_codec(spec, max_length=64)
        one = preparation.prepared[spec.backbone_id]
        for split, folder in ((plan.train, one.train_file), (plan.validation, one.validation_file)):
            found, expected = load_arrays(Path(folder)), tokenize(codec, split.read())
            for name in ARRAYS:
                assert np.array_equal(getattr(found, name), getattr(expected, name)), name
        assert load_arrays(Path(one.validation_file)).round_trips.all()


def test_every_row_and_every_token_is_accounted_for(prepared: tuple[Plan, Preparation, list[str]]) -> None:
    _, preparation, _ = prepared
    facts = preparation.facts
    assert facts["rows_read"] == {"train": 9000, "validation": 20}
    dropped = facts["dropped"]
    assert dropped["in_validation"] == 10
    assert facts["kept"] + dropped["in_validation"] + dropped["too_long"] + dropped["no_target"] == 9000
    for backbone_id, one in preparation.prepared.items():
        counted = facts["backbones"][backbone_id]
        assert counted["tokens"] == len(load_arrays(Path(one.train_file)).input_ids)
        assert counted["tokens"] == counted["tokens_kept"] + counted["tokens_cut"] + counted["tokens_dropped"]


def test_nothing_but_whole_arrays_is_left_behind(prepared: tuple[Plan, Preparation, list[str]]) -> None:
    plan, preparation, _ = prepared
    kept = {Path(file) for one in preparation.prepared.values() for file in (one.train_file, one.validation_file)}
    assert set((plan.storage / "prepared").iterdir()) == kept
    assert find_preparation(plan) == preparation


def test_data_that_changed_after_it_was_planned_is_an_error_that_says_so(tmp_path: Path, local_ray: None) -> None:
    plan = make_plan(tmp_path)
    write_rows(tmp_path / "train.parquet", 0, 9000, word="boat")
    with pytest.raises(DataChangedError, match=r"train.parquet changed since the job was planned; run the command"):
        prepare_data(plan)
    left = list((tmp_path / "storage" / "prepared").iterdir())
    assert {len(load_arrays(folder)) for folder in left} <= {20}, "held-out arrays alone, whole, and no parts of others"


def test_what_a_node_cannot_find_is_read_on_the_drivers(tmp_path: Path, local_ray: None) -> None:
    def read_where_it_is(file: Path, number: int) -> int:
        """Found at the second try only: as a file of the driver's node is, by a task that began on another."""
        if number == 2 and not file.exists():
            file.touch()
            raise FileNotFoundError(2, "no such file", str(file))
        return number

    calls = [(tmp_path / "mark", number) for number in range(4)]
    assert _gather(read_where_it_is, calls, print) == [0, 1, 2, 3]
