"""Real simulators: experts succeed, what they did succeeds again as ids of a vocabulary, and seeds keep apart."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbones.actions import ActionTokens
from orchestrator.cell_job import RolloutRequest
from orchestrator.data.actions import count_statistics
from orchestrator.data.images.written import write_png
from orchestrator.environments.demonstrations import HELD_OUT, SUMMARY, TRAIN, act_as_expert, record_demonstrations
from orchestrator.environments.environment import (
    DEMONSTRATED,
    ROLLED_OUT,
    EnvironmentFailedError,
    NoExpertError,
    episode_seed,
)
from orchestrator.environments.fleet import Fleet
from orchestrator.environments.registry import code_of, find_problem, open_environment
from orchestrator.errors import InputError

pytest.importorskip("minigrid", reason="MiniGrid is not installed: pip install 'backbone-orchestrator[minigrid]'")

ROOM = "minigrid:BabyAI-GoToLocalS5N2-v0"


def said(*_: int) -> None:
    """Nobody listens."""


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_same_command_makes_the_same_bytes_and_leaves_what_is_there_alone(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        record_demonstrations(ROOM, 10, 3, tmp_path / folder, said)
    one, two = (contents_of(tmp_path / folder) for folder in ("one", "two"))
    assert one == two
    assert len(one) > 30
    with pytest.raises(InputError, match="exists already"):
        record_demonstrations(ROOM, 10, 3, tmp_path / "one", said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_recorded_actions_as_ids_of_a_vocabulary_repeat_every_success(tmp_path: Path) -> None:
    summary = record_demonstrations(ROOM, 20, 0, tmp_path / "data", said)
    assert summary["episodes"] == {"train": 18, "held_out": 2, "thrown_away": 0}
    assert summary == json.loads((tmp_path / "data" / SUMMARY).read_text())
    train, held_out = rows_of(tmp_path / "data" / TRAIN), rows_of(tmp_path / "data" / HELD_OUT)
    assert {row["episode"] for row in train}.isdisjoint({row["episode"] for row in held_out})
    assert all((tmp_path / "data" / file).is_file() for row in train for file in row["images"])
    statistics, tokens = count_statistics(np.array([row["action"] for row in train]), 18), ActionTokens(2000)
    environment = open_environment(ROOM)
    for episode in {row["episode"] for row in train}:
        environment.reset(episode_seed(DEMONSTRATED, 0, episode))
        steps = [row["action"] for row in train if row["episode"] == episode]
        for place, action in enumerate(steps):
            ids = tokens.encode(statistics.normalise(np.array(action)))
            outcome = environment.step(statistics.restore(tokens.decode(ids)))
            assert outcome.done == (place == len(steps) - 1)
        assert outcome.success


def test_no_step_that_training_has_is_held_out_and_nothing_else_is_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    steps = record_demonstrations(ROOM, 200, 1, data, said)["steps"]

    def taught(row: dict[str, Any]) -> tuple[object, ...]:
        return row["instruction"], *row["action"], *((data / image).read_bytes() for image in row["images"])

    train, held_out = rows_of(data / TRAIN), rows_of(data / HELD_OUT)
    assert (len(train), len(held_out)) == (steps["train"], steps["held_out"])
    known = {taught(row) for row in train}
    assert known.isdisjoint({taught(row) for row in held_out})
    environment, expected, repeated = open_environment(ROOM), set(), 0
    for episode in range(9, 200, 10):
        for place, step in enumerate(act_as_expert(environment, episode_seed(DEMONSTRATED, 1, episode)) or []):
            write_png(tmp_path / "step.png", step.observation.image)
            one = (step.observation.instruction, *step.action.tolist(), (tmp_path / "step.png").read_bytes())
            if one in known:
                repeated += 1
            else:
                expected.add((episode, place))
    assert {(row["episode"], row["step"]) for row in held_out} == expected
    assert steps["repeated"] == repeated > 0
    shown = {str(file.relative_to(data)) for file in data.rglob("*.png")}
    assert shown == {image for row in (*train, *held_out) for image in row["images"]}


@pytest.mark.parametrize("name", ["BabyAI-GoToRedBallGrey-v0", "BabyAI-PickupLoc-v0@whole", "BabyAI-OpenDoorLoc-v0"])
def test_experts_succeed(name: str) -> None:
    environment = open_environment(f"minigrid:{name}")
    assert all(act_as_expert(environment, seed) is not None for seed in range(8))


def test_episodes_of_demonstrations_are_never_those_of_rollouts() -> None:
    drawn = {purpose: {episode_seed(purpose, 0, n) for n in range(500)} for purpose in (DEMONSTRATED, ROLLED_OUT)}
    assert drawn[DEMONSTRATED].isdisjoint(drawn[ROLLED_OUT])
    assert len(drawn[ROLLED_OUT]) == 500


def test_a_fleet_plays_what_one_environment_plays_and_says_when_a_process_is_gone() -> None:
    alone = open_environment(ROOM)
    with Fleet(ROOM, processes=2) as fleet:
        seen = fleet.reset({lane: 10 + lane for lane in range(3)})
        for lane, observation in seen.items():
            expected = alone.reset(10 + lane)
            np.testing.assert_array_equal(observation.image, expected.image)
            assert observation.instruction == expected.instruction
        forward = np.array([2.0])
        stepped = fleet.step({2: forward})[2]
        np.testing.assert_array_equal(stepped.observation.image, alone.step(forward).observation.image)
        for process in fleet._running:
            process.kill()
            process.wait()
        with pytest.raises(EnvironmentFailedError, match="ended while it was needed"):
            fleet.step({0: forward})
    with Fleet("minigrid:BabyAI-GoToLocl-v0", processes=1) as fleet, pytest.raises(InputError, match="GoToLocal"):
        fleet.reset({0: 0})


def test_names_that_nothing_answers_to_are_refused_with_the_nearest() -> None:
    assert "did you mean minigrid?" in str(find_problem("minigird:BabyAI-GoToLocal-v0"))
    assert "but not which one" in str(find_problem("minigrid"))
    with pytest.raises(InputError, match="did you mean BabyAI-GoToLocal-v0"):
        open_environment("minigrid:BabyAI-GoToLocl-v0")
    empty = open_environment("minigrid:MiniGrid-Empty-5x5-v0")
    empty.reset(0)
    with pytest.raises(NoExpertError, match="only BabyAI's"):
        empty.expert()


def test_a_level_of_ones_own_is_found_in_the_working_directory_by_a_fleet_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    level = "minigrid:examples.robot.rooms:GoToOneOfTwo-v0"
    environment = open_environment(level)
    told = [environment.reset(seed).instruction for seed in range(60)]
    assert len(set(told)) == 5
    assert all(act_as_expert(environment, seed) is not None for seed in range(20))
    with Fleet(level, processes=1) as fleet:
        seen = fleet.reset({0: 7})[0]
    assert seen.instruction == told[7]
    np.testing.assert_array_equal(seen.image, environment.reset(7).image)
    with pytest.raises(InputError, match="did you mean GoToOneOfTwo-v0"):
        open_environment("minigrid:examples.robot.rooms:GoToOneOfTow-v0")
    with pytest.raises(InputError, match=r"No module named 'no_rooms'.*the folder that the command runs in"):
        open_environment("minigrid:no_rooms:GoToOneOfTwo-v0")


def test_a_name_that_imports_a_module_says_which_code_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    file = tmp_path / "levels_of_mine.py"
    codes = []
    for line in ("raise RuntimeError('imported')", "raise RuntimeError('imported again')"):
        file.write_text(line)
        codes.append(code_of("minigrid:levels_of_mine:Mine-v0@whole"))
    assert codes[0] and codes[1] and codes[0] != codes[1]
    names = ("BabyAI-GoToLocal-v0", "sys:A-v0", "no_levels:A-v0", "no_levels.inner:A-v0", "levels_of_mine.inner:A-v0")
    assert [code_of(f"minigrid:{name}") for name in names] == [""] * len(names)
    plain = RolloutRequest("minigrid:levels_of_mine:Mine-v0", 50, 0)
    assert len({plain.digest, *(replace(plain, code=code).digest for code in codes)}) == 3
    assert (
        RolloutRequest("minigrid:BabyAI-GoToLocal-v0", 50, 0).digest
        == "2e831654de8e5ffdc2fd3caa259eca90903d0f120c409c931943534983bda505"
    )


def test_what_is_no_environment_of_minigrid_is_refused() -> None:
    with pytest.raises(InputError, match="'CartPole-v1' is no environment of MiniGrid: its class must be"):
        open_environment("minigrid:os:CartPole-v1")
    for name in ("minigrid::BabyAI-GoToLocal-v0", "minigrid:os:", "minigrid:os:@whole"):
        with pytest.raises(InputError, match="has nothing on one side of a colon; write a name such as"):
            open_environment(name)


def test_an_arm_repeats_its_episodes_and_its_expert_reaches() -> None:
    pytest.importorskip(
        "metaworld", reason="Meta-World is not installed: pip install 'backbone-orchestrator[metaworld]'"
    )
    environment = open_environment("metaworld:reach-v3")
    first, second, again = (environment.reset(seed) for seed in (1, 2, 1))
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, second.image)
    assert (first.instruction, first.image.shape) == ("reach", (128, 128, 3))
    assert act_as_expert(environment, 0) is not None
