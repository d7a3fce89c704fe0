"""What an expert does, as a data set in the format `actions`: rows of JSON, and a PNG file for each step."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from backbones.actions import BINS, ActionTokens
from orchestrator.data.actions import count_statistics
from orchestrator.data.images.written import write_png
from orchestrator.environments.environment import (
    DEMONSTRATED,
    Environment,
    EnvironmentFailedError,
    ExpertLostError,
    Observation,
    episode_seed,
)
from orchestrator.environments.registry import KINDS, open_environment
from orchestrator.errors import InputError
from orchestrator.results import write_json

TRAIN, HELD_OUT, IMAGES, SUMMARY = "train.jsonl", "held_out.jsonl", "images", "demonstrations.json"
ONE_HELD_OUT = 10  # one episode in so many
LEAST_TRIES = 20  # before an expert that succeeds less than once in two tries is given up

Told = Callable[[int, int], None]  # (episodes kept, episodes thrown away)


@dataclass(frozen=True)
class Taken:
    """One step of an expert: what it saw and what it did, float (D,)."""

    observation: Observation
    action: np.ndarray


def record_demonstrations(name: str, episodes: int, seed: int, folder: Path, tell: Told) -> dict[str, Any]:
    """Makes the data set of `episodes` that succeeded, one in ten of them held out; returns what it counted.

    Held-out steps that training has too are left out.

    The same arguments give the same bytes with the same packages. `folder` is there once all of it is. Raises
    InputError where it is there already, where the environment has no expert, and what `open_environment` raises;
    EnvironmentFailedError where the expert fails more often than not.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already, and is left as it is; name another folder, or remove it")
    environment = open_environment(name)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of one that was interrupted
    partial.mkdir(parents=True)
    try:
        summary = _record(environment, name, episodes, seed, partial, tell)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        environment.close()
    return summary


def _record(environment: Environment, name: str, episodes: int, seed: int, folder: Path, tell: Told) -> dict[str, Any]:
    kept: dict[bool, list[np.ndarray]] = {True: [], False: []}  # actions (steps, D) of episodes, by whether held out
    thrown_away, instructions = 0, set()
    with open(folder / TRAIN, "w", encoding="utf-8") as train, open(folder / HELD_OUT, "w", encoding="utf-8") as held:
        while (number := len(kept[True]) + len(kept[False])) < episodes:
            tries = number + thrown_away
            steps = act_as_expert(environment, episode_seed(DEMONSTRATED, seed, tries))
            if steps is None:
                thrown_away += 1
                if tries >= LEAST_TRIES and thrown_away > number:
                    raise EnvironmentFailedError(
                        f"the expert of {name} failed in {thrown_away} of {tries + 1} episodes; use an easier one"
                    )
                continue
            is_held_out = number % ONE_HELD_OUT == ONE_HELD_OUT - 1
            stream = held if is_held_out else train
            for row in _rows(number, steps, folder):
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            kept[is_held_out].append(np.array([step.action for step in steps]))
            instructions |= {step.observation.instruction for step in steps}
            tell(number + 1, thrown_away)
    repeated = _drop_repeated(folder)
    summary = {
        "environment": name,
        "seed": seed,
        "episodes": {"train": len(kept[False]), "held_out": len(kept[True]), "thrown_away": thrown_away},
        "steps": {
            "train": sum(map(len, kept[False])),
            "held_out": sum(map(len, kept[True])) - repeated,
            "repeated": repeated,
        },
        "instructions": len(instructions),
        "image": list(steps[0].observation.image.shape) if steps else None,
        "cut_off": _count_cut_off(np.concatenate(kept[False]), len(kept[False])) if kept[False] else 0,
        "packages": {package: version(package) for package in ("gymnasium", KINDS[name.partition(":")[0]].package)},
    }
    write_json(folder / SUMMARY, summary)
    return summary


def act_as_expert(environment: Environment, seed: int) -> list[Taken] | None:
    """The steps of the expert in the episode of a seed; None where it did not succeed. Raises NoExpertError."""
    observation, expert, steps = environment.reset(seed), environment.expert(), []
    while True:
        try:
            action = expert()
        except ExpertLostError:
            return None
        steps.append(Taken(observation, action))
        outcome = environment.step(action)
        if outcome.done:
            return steps if outcome.success else None
        observation = outcome.observation


def _rows(number: int, steps: list[Taken], folder: Path) -> Iterator[dict[str, Any]]:
    images = folder / IMAGES / f"{number:06d}"
    images.mkdir(parents=True)
    for place, step in enumerate(steps):
        file = images / f"{place:03d}.png"
        write_png(file, step.observation.image)
        yield {
            "episode": number,
            "step": place,
            "instruction": step.observation.instruction,
            "images": [str(file.relative_to(folder))],
            "action": step.action.tolist(),
        }


def _drop_repeated(folder: Path) -> int:
    """Takes steps out of the held-out rows that training has too, and their images; returns how many there were.

    In small rooms episodes meet in the same states. Whoever trains takes out of training what is held out, and the
    states that are met most often would go.
    """
    with open(folder / TRAIN, encoding="utf-8") as stream:
        seen = {_key(json.loads(line), folder) for line in stream}
    kept, dropped = [], 0
    for line in (folder / HELD_OUT).read_text("utf-8").splitlines(keepends=True):
        row = json.loads(line)
        if _key(row, folder) in seen:
            dropped += 1
            for image in row["images"]:
                (folder / image).unlink()
        else:
            kept.append(line)
    (folder / HELD_OUT).write_text("".join(kept), "utf-8")
    return dropped


def _key(row: dict[str, Any], folder: Path) -> bytes:
    """Equal for rows that teach the same."""
    digest = hashlib.sha256(json.dumps([row["instruction"], row["action"]]).encode())
    for image in row["images"]:
        digest.update(hashlib.sha256((folder / image).read_bytes()).digest())
    return digest.digest()


def _count_cut_off(actions: np.ndarray, episodes: int) -> int:
    """Steps with a number that its bin stands for by more than a bin's width: beyond the 1st or 99th percentile."""
    statistics, tokens = count_statistics(actions, episodes), ActionTokens(BINS)
    restored = statistics.restore(tokens.decode(tokens.encode(statistics.normalise(actions))))
    width = (np.array(statistics.q99) - np.array(statistics.q01)) / (BINS - 1)
    return int((np.abs(restored - actions) > width + 1e-9).any(axis=1).sum())
