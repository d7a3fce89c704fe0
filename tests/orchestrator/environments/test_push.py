"""PushT: the same seed and actions give the same pictures, success is coverage, and nobody pretends to be an expert."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.environments.demonstrations import record_demonstrations
from orchestrator.environments.environment import NoExpertError
from orchestrator.environments.fleet import Fleet
from orchestrator.environments.push import INSTRUCTION, SIDE
from orchestrator.environments.registry import open_environment
from orchestrator.errors import InputError
from orchestrator.rollouts.play import play
from orchestrator.rollouts.policies import RandomPolicy

pytest.importorskip("gym_pusht", reason="PushT is not installed: pip install 'backbone-orchestrator[pusht]'")

PUSH = "pusht:PushT-v0"
GOAL = (256.0, 256.0, np.pi / 4)  # x, y and angle of the outline


def test_the_same_seed_and_actions_give_the_same_episode_in_every_process() -> None:
    alone = open_environment(PUSH)
    actions = [alone.random_action(np.random.default_rng(step)) for step in range(12)]
    alone.reset(8)
    with Fleet(PUSH, processes=2) as fleet:
        seen = fleet.reset({0: 7, 1: 7, 2: 8})
        assert (seen[0].instruction, seen[0].image.shape, seen[0].image.dtype) == (INSTRUCTION, (96, 96, 3), np.uint8)
        np.testing.assert_array_equal(seen[0].image, seen[1].image)
        np.testing.assert_array_equal(seen[0].image, alone.reset(7).image)
        assert not np.array_equal(seen[0].image, seen[2].image)
        for action in actions:
            steps = fleet.step({0: action, 1: action})
            ours = alone.step(action)
            for lane in (0, 1):
                np.testing.assert_array_equal(steps[lane].observation.image, ours.observation.image)
                assert steps[lane].reward == ours.reward
    assert not np.array_equal(ours.observation.image, seen[0].image)


def test_an_action_is_where_the_disc_goes_and_what_lies_outside_counts_as_the_edge() -> None:
    def moved(action: list[float]) -> np.ndarray:
        environment: Any = open_environment(PUSH)
        environment.reset(3)
        for _ in range(10):
            environment.step(np.array(action))
        return np.array(environment._wrapped.unwrapped.agent.position)

    np.testing.assert_allclose(moved([300.0, 60.0]), [300.0, 60.0], atol=1.0)
    np.testing.assert_array_equal(moved([-1000.0, 60.0]), moved([0.0, 60.0]))


@pytest.mark.parametrize(("off", "succeeds"), [(0.0, True), (0.5, True), (30.0, False)])
def test_success_is_that_the_outline_is_covered(off: float, succeeds: bool) -> None:
    environment: Any = open_environment(PUSH)
    environment.reset(0)
    inside = environment._wrapped.unwrapped
    inside.block.angle = GOAL[2]
    inside.block.position = (GOAL[0] + off, GOAL[1])
    inside.agent.position = (40.0, 40.0)
    step = environment.step(np.array([40.0, 40.0]))
    assert (step.success, step.done, step.reward == 1.0) == (succeeds,) * 3


def test_a_reward_is_the_share_that_is_covered_of_what_success_takes() -> None:
    environment: Any = open_environment(PUSH)
    environment.reset(0)
    inside = environment._wrapped.unwrapped
    inside.block.angle = GOAL[2]
    inside.block.position = (GOAL[0] + 30.0, GOAL[1])
    inside.agent.position = (40.0, 40.0)
    reward = environment.step(np.array([40.0, 40.0])).reward
    assert 0 < reward < 1
    assert reward == pytest.approx(inside._get_coverage() / 0.95)


def test_an_episode_ends_after_its_limit_of_steps_as_a_failure() -> None:
    with Fleet(PUSH, processes=1) as fleet:
        whole = play(RandomPolicy(fleet), fleet, [1])
        short = play(RandomPolicy(fleet), fleet, [1], max_steps=20)
    assert [(one.success, one.length) for one in (*whole, *short)] == [
        (False, open_environment(PUSH).most_steps),
        (False, 20),
    ]
    assert short[0].actions == whole[0].actions[:20]
    assert all(0 <= number <= SIDE for action in whole[0].actions for number in action)


def test_there_are_no_demonstrations_and_it_is_said_where_some_are(tmp_path: Path) -> None:
    with pytest.raises(NoExpertError, match="hf download lerobot/pusht"):
        record_demonstrations(PUSH, 2, 0, tmp_path / "data", lambda *_: None)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"the only one is {PUSH}"):
        open_environment("pusht:PushT-v1")
