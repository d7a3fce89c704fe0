"""How actions are coded: dimensions that stay as they are, and statistics that trials may know."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_actions_data import Row, plan, step, write

from backbones.registry import get_spec, load_codec
from orchestrator.data.actions import count_statistics
from orchestrator.data.prepare import load_tokenized, make_here, prepare, prepared_from_json, prepared_of, splits_of
from orchestrator.errors import SpecError

numbers = st.floats(-1, 1, allow_subnormal=False)


def gripping(number: int, grip: float, size: int = 7) -> Row:
    row = step(number, size)
    return row | {"action": [*row["action"][:-1], grip]}


TUNING = {"learning_rate": [1e-3, 1e-2], "rungs": 1}
ROWS = [gripping(number, number % 2) for number in range(30)]
HELD_OUT = [gripping(number, number % 2) for number in range(30, 36)]


@given(rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9), mask=st.tuples(st.booleans(), st.booleans()))
def test_a_dimension_that_is_left_out_is_coded_as_it_is_and_comes_back(
    rows: list[tuple[float, float]], mask: tuple[bool, bool]
) -> None:
    actions = np.array(rows)
    plain = count_statistics(actions, episodes=1)
    masked = type(plain)(**{**vars(plain), "mask": mask})
    changes = actions.min(0) != actions.max(0)
    expected = np.where(mask, plain.normalise(actions), np.where(changes, actions, 0.0))
    assert np.array_equal(masked.normalise(actions), expected)
    kept = changes & ~np.array(mask)
    assert np.array_equal(masked.restore(expected)[:, kept], actions[:, kept])
    assert np.array_equal(masked.restore(expected)[:, mask], plain.restore(expected)[:, mask])
    assert masked.as_openvla("x")["x"]["action"]["mask"] == list(mask)
    assert plain.as_openvla("x")["x"]["action"]["mask"] == [True, True]


@pytest.mark.parametrize("mask", ["auto", [True] * 6 + [False]])
def test_openvlas_gripper_is_left_as_it_is_in_arrays_and_export(tmp_path: Path, mask: Any) -> None:
    planned = plan(tmp_path, ROWS, HELD_OUT, data={"actions": {"mask": mask}})
    assert planned.train.actions is not None
    assert planned.train.actions.mask == (True,) * 6 + (False,)
    codec = load_codec(get_spec("tiny-llama2"), max_length=128)
    prepared = prepare("tiny-llama2", codec, planned.train, planned.validation, tmp_path / "prepared")
    ids, _, is_scored = load_tokenized(prepared.train_file).example(1)
    assert ids[is_scored][-1] == codec.actions.encode(np.array(1.0))
    assert prepared.actions is not None
    assert prepared.actions.statistics.mask == planned.train.actions.mask
    assert prepared_from_json({**vars(prepared), "actions": {"end": 1, "statistics": vars(planned.train.actions)}})


def test_another_mask_is_another_cell_and_other_arrays(tmp_path: Path) -> None:
    plans = [plan(tmp_path, ROWS, HELD_OUT), plan(tmp_path, ROWS, HELD_OUT, data={"actions": {"mask": "auto"}})]
    assert plans[0].cells[0].cell_id != plans[1].cells[0].cell_id
    codec = load_codec(get_spec("tiny-llama2"), max_length=128)
    files = [prepare("x", codec, one.train, one.validation, tmp_path / "prepared").train_file for one in plans]
    assert files[0] != files[1]


@pytest.mark.parametrize(
    ("rows", "mask", "message"),
    [
        (
            [step(number, 3) for number in range(3)],
            "auto",
            "is auto, which is for 7 or 10 dimensions, and",
        ),
        (ROWS, [True, False], "lists 2 dimensions, and actions have 7; list each of them"),
        (
            [gripping(0, 255), gripping(1, 0)],
            "auto",
            "leaves dimension 6 as it is, but in 'train.jsonl' it goes from",
        ),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path, rows: list[Row], mask: Any, message: str) -> None:
    held_out = [dict(rows[0]) | {"instruction": "other"}]
    with pytest.raises(SpecError, match=f"'recipe.data.actions.mask' {message}"):
        plan(tmp_path, rows, held_out, data={"actions": {"mask": mask}})


def test_masks_belong_to_actions(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="it belongs to format actions only; remove it"):
        plan(tmp_path, ROWS, HELD_OUT, data={"actions": {"mask": "auto"}, "format": "messages"})


def test_trials_code_actions_without_those_that_they_are_scored_on(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    planned = plan(tmp_path, ROWS, HELD_OUT, data={"actions": {"mask": "auto"}}, tuning=TUNING)
    assert planned.tune is not None and planned.tune.actions is not None and planned.train.actions is not None
    actions = np.array([row["action"] for row in ROWS])
    learned = np.delete(actions, planned.tune.excluded, axis=0)
    assert 0 < len(learned) < len(actions)
    assert np.array_equal(planned.tune.actions.q99, np.quantile(learned, 0.99, axis=0))
    assert np.array_equal(planned.train.actions.q99, np.quantile(actions, 0.99, axis=0))
    assert planned.tune.actions.num_trajectories == len({row["episode"] for row in ROWS}) - planned.tune.groups
    assert planned.tune.actions.mask == planned.train.actions.mask
    codec = load_codec(get_spec("tiny-llama2"), max_length=128)
    splits = splits_of(codec, planned.train, planned.validation, tmp_path / "prepared", tune=planned.tune)
    (tmp_path / "prepared").mkdir()
    for split in splits:
        make_here(codec, split)
    prepared = prepared_of("tiny-llama2", codec, *splits)
    trial = prepared.of_trials
    assert (trial.train_file, trial.actions) == (trial.validation_file, splits[2].actions)
    first, _, is_scored = load_tokenized(trial.train_file).example(0)
    expected = codec.actions.encode(planned.tune.actions.normalise(actions[0]))
    assert first[is_scored].tolist() == expected.tolist()
    assert prepared_from_json(json.loads(json.dumps(asdict(prepared)))) == prepared
