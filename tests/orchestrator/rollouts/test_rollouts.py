"""A trained backbone acts in a real simulator: by its own logits, alike on two ranks and exported."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gang import run_ranks
from PIL import Image
from scipy.stats import binomtest
from small_jobs import entries, make_job
from transformers import AutoModelForCausalLM

from backbones.inputs import Example
from backbones.registry import build, get_spec, load_codec
from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob, ExportRequest, RolloutRequest
from orchestrator.data.actions import count_statistics, question_about
from orchestrator.data.images.files import resized
from orchestrator.environments.demonstrations import HELD_OUT, TRAIN, record_demonstrations
from orchestrator.environments.environment import Observation
from orchestrator.environments.fleet import Fleet
from orchestrator.environments.registry import open_environment
from orchestrator.errors import InputError
from orchestrator.layout import EXPORT_MANIFEST, CellFolder
from orchestrator.results import read_json, write_json
from orchestrator.rollouts.film import MOST_BYTES
from orchestrator.rollouts.model import open_policy
from orchestrator.rollouts.play import Request, play
from orchestrator.rollouts.policies import BackbonePolicy, RandomPolicy
from orchestrator.rollouts.results import BLIND, RANDOM, TRAINED, collect, wilson
from orchestrator.rollouts.stage import play_all, require_dimensions
from orchestrator.training.loss import place
from orchestrator.training.measurement import find_measurement

pytest.importorskip("minigrid", reason="MiniGrid is not installed: pip install 'backbone-orchestrator[minigrid]'")

CPU = torch.device("cpu")
ROOM = "minigrid:BabyAI-GoToLocalS5N2-v0"


def acting_job(folder: Path, backbone: str, workers: int, chunk: int, execute: int | None) -> CellJob:
    record_demonstrations(ROOM, 30, 0, folder / "data", lambda *_: None)
    for file in (folder / "data" / TRAIN, folder / "data" / HELD_OUT):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        if get_spec(backbone).vision is None:  # which is trained on rows without images alone
            rows = [{key: value for key, value in row.items() if key != "images"} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data: dict[str, Any] = {"train": str(folder / "data" / TRAIN), "validation": str(folder / "data" / HELD_OUT)}
    data["format"] = "actions"
    budget = {"kind": "steps", "amount": 2}
    if chunk > 1:
        data["actions"] = {"chunk": chunk}
    job = make_job(folder, backbone, workers=workers, sequence_length=64, data=data, budget=budget)
    every = 0.5 if backbone == "tiny-qwen" else 1.0
    job = replace(job, rollouts=RolloutRequest(ROOM, 18, 0, execute=execute, every=every))
    return replace(job, export=ExportRequest(folder / "export", {"name": "robot"}))


def by_plain_transformers(folder: Path, job: CellJob, instructions: set[str]) -> dict[str, np.ndarray]:
    """What the exported model answers to each instruction, in the robot's units."""
    assert job.prepared is not None and job.prepared.actions is not None
    tokens, statistics = job.prepared.actions.tokens, job.prepared.actions.statistics
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    codec = load_codec(job.cell.backbone, max_length=64)
    answers = {}
    for instruction in instructions:
        ids = codec.encode_prompt([("user", question_about(instruction))])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1, tokens.begin : tokens.end]
        likeliest = np.array([tokens.begin + int(logits.argmax())])
        answers[instruction] = statistics.restore(tokens.decode(likeliest))
    return answers


@pytest.mark.parametrize(("backbone", "chunk", "execute"), [("tiny-qwen", 1, None), ("tiny-smolvlm", 3, 2)])
def test_two_ranks_play_what_the_exported_model_plays_alone(
    backbone: str, chunk: int, execute: int | None, tmp_path: Path
) -> None:
    job = acting_job(tmp_path, backbone, 2, chunk, execute)
    run_ranks(2, run_cell, job, CPU)
    written = read_json(CellFolder(job.folder).rollouts)
    episodes = written["episodes"]
    assert (written["chunk"], written["execute"]) == (chunk, execute or chunk)
    assert {name: len(all_) for name, all_ in episodes.items()} == {TRAINED: 18, RANDOM: 18, BLIND: 18}
    assert len({one["seed"] for one in episodes[TRAINED]}) == 18
    measurement = find_measurement(job.folder)
    assert measurement is not None
    metrics = measurement.metrics
    assert metrics["rollout/success"] == np.mean([one["success"] for one in episodes[TRAINED]])
    assert metrics["rollout/random_success"] == np.mean([one["success"] for one in episodes[RANDOM]])
    assert measurement.data["rollouts"] == job.rollouts.digest
    films = [file for file in CellFolder(job.folder).films if file.exists()]
    assert films and all(file.stat().st_size <= MOST_BYTES for file in films)
    assert max(getattr(Image.open(file), "n_frames", 1) for file in films) > 1

    assert job.export is not None and job.rollouts is not None
    with Fleet(ROOM, processes=1) as fleet:
        alone = play_all(open_policy(job.export.folder, execute), fleet, job.rollouts)
    assert open_policy(job.export.folder).execute == chunk
    with pytest.raises(InputError, match=f"answers with {chunk} actions at a time, and cannot take 4; ask for fewer"):
        open_policy(job.export.folder, 4)
    assert collect(job.rollouts, alone)["episodes"] == episodes
    if backbone == "tiny-qwen":
        assert [entry.fields["step"] for entry in entries(job, "rollouts")] == [0, 1, 2]
        assert_blind(job, job.export.folder, episodes[TRAINED])


def assert_blind(job: CellJob, folder: Path, episodes: list[dict[str, Any]]) -> None:
    """A model that sees no image does one thing for each instruction, over and over."""
    answers = by_plain_transformers(folder, job, {one["instruction"] for one in episodes})
    environment = open_environment(ROOM)
    for one in episodes:
        environment.reset(one["seed"])
        steps = [environment.step(answers[one["instruction"]])]
        while not steps[-1].done:
            steps.append(environment.step(answers[one["instruction"]]))
        assert (len(steps), steps[-1].success) == (one["length"], one["success"])


@pytest.mark.parametrize("most", [1, 4, 25, 40])  # the room's own limit is 25
def test_an_episode_fails_that_has_not_succeeded_by_the_limit_of_steps(most: int) -> None:
    with Fleet(ROOM, processes=1) as fleet:
        policy, seeds = RandomPolicy(fleet), [*range(40)]
        whole, limited = play(policy, fleet, seeds), play(policy, fleet, seeds, max_steps=most)
    assert {one.length for one in whole if not one.success} == {25}
    for one, other in zip(whole, limited, strict=True):
        assert other.actions == one.actions[:most]
        assert other.success == (one.success and one.length <= most)


@pytest.mark.parametrize("steps", [2, 3, 7])
@pytest.mark.parametrize("most", [None, 4])
def test_a_plan_of_several_actions_is_taken_before_the_policy_is_asked_again(steps: int, most: int | None) -> None:
    asked: list[int] = []
    with Fleet(ROOM, processes=1) as fleet:
        single, seeds = RandomPolicy(fleet), [*range(20)]

        def planned(requests: Sequence[Request]) -> np.ndarray:
            asked.extend(request.step for request in requests)
            ahead = [[replace(one, step=one.step + number) for one in requests] for number in range(steps)]
            return np.concatenate([single(later) for later in ahead], axis=1)

        one_by_one = play(single, fleet, seeds, max_steps=most)
        assert play(planned, fleet, seeds, max_steps=most) == one_by_one
    assert {step % steps for step in asked} == {0}
    assert len(asked) == sum(-(-episode.length // steps) for episode in one_by_one)


def test_a_robot_that_takes_other_actions_than_were_learned_is_refused() -> None:
    asked = RolloutRequest(ROOM, 1, 0)
    with Fleet(ROOM, processes=1) as fleet:
        require_dimensions(fleet, asked, 1)
        with pytest.raises(InputError, match="has 1 numbers, and one of the data that was learned from 7"):
            require_dimensions(fleet, asked, 7)


def test_a_folder_that_learned_no_actions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model that a finetune exported"):
        open_policy(tmp_path)
    write_json(tmp_path / EXPORT_MANIFEST, {})
    with pytest.raises(InputError, match="no model that learned actions"):
        open_policy(tmp_path)


@pytest.mark.parametrize(
    ("name", "chunk"),
    [("tiny-llama2", 1), ("tiny-qwen", 3), ("tiny-smolvlm", 1), ("tiny-qwen2.5-vl", 2), ("tiny-paligemma", 2)],
)
def test_each_number_of_an_action_is_the_likeliest_in_the_one_pass_of_training(name: str, chunk: int) -> None:
    spec = get_spec(name)
    backbone = build(spec, seed=5)
    backbone.llm.eval()
    for parameter in backbone.llm.parameters():  # weights of a fresh model are too small for prompts to matter
        parameter.data.mul_(8 if parameter.ndim > 1 else 1)
    draw = np.random.default_rng(0)
    statistics = count_statistics(draw.uniform(-3, 5, (50, 4)), 5)
    policy = BackbonePolicy(backbone, spec, statistics, CPU, chunk)
    told = ["lift the block", "go"]  # contexts of two lengths
    pictures = draw.integers(0, 256, (2, 40, 40, 3)).astype(np.uint8)
    found = policy([Request(n, 0, Observation(pictures[n], instruction)) for n, instruction in enumerate(told)])
    assert not np.array_equal(*found)
    assert found.shape == (2, chunk, 4)
    codec = load_codec(spec, max_length=256)
    for row, instruction, picture in zip(found, told, pictures, strict=True):
        ids = codec.actions.encode(statistics.normalise(row)).ravel()
        images = None if spec.vision is None else resized(picture, spec.vision.image_size, spec.vision.resample)[None]
        encoded = codec.encode_action(question_about(instruction), ids.tolist(), 0 if images is None else 1)
        learned = np.array(encoded.is_target)
        placed = place(backbone, backbone.collate([[Example(np.array(encoded.input_ids), learned, images)]]), CPU)
        with torch.no_grad():
            logits = backbone(**placed.arguments, use_cache=False).logits[0, placed.positions_N[: 4 * chunk]]
        likeliest = codec.actions.begin + logits[:, codec.actions.begin : codec.actions.end].argmax(dim=1).numpy()
        np.testing.assert_array_equal(codec.actions.decode(likeliest), codec.actions.decode(ids))


@pytest.mark.parametrize(("successes", "episodes"), [(0, 20), (7, 20), (50, 50), (1, 1)])
def test_intervals_are_wilsons(successes: int, episodes: int) -> None:
    expected = binomtest(successes, episodes).proportion_ci(0.95, method="wilson")
    assert wilson(successes, episodes) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert json.dumps(wilson(successes, episodes))
