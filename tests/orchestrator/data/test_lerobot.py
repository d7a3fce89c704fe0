"""LeRobotDataset v3: what LeRobot's own library recorded is the data that the same steps in a table are.

The recordings beside this file were made by `tools/make_lerobot_fixture.py`.
"""

import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from pictures import Row, load
from PIL import Image as pillow
from pyarrow import parquet

from orchestrator.data.sources.containers import write_parquet
from orchestrator.data.sources.lerobot import first_step, part_of_lerobot
from orchestrator.errors import SpecError
from orchestrator.spec_files.spec import Actions
from tools.make_lerobot_fixture import STEPS, TASKS, picture

RECORDED = Path(__file__).parent / "lerobot"
CAMERA = "observation.images.front"
PLACES = [(episode, step) for episode, steps in enumerate(STEPS) for step in range(steps)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def decoded(*videos: Path) -> list[np.ndarray]:
    """Every frame of some files, one after the other."""
    frames = []
    for video in videos:
        with av.open(str(video)) as container:
            frames += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return frames


def as_ppm(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    pillow.fromarray(pixels).save(stream, "PPM")
    return stream.getvalue()


def table(images: list[bytes]) -> list[Row]:
    """The recorded steps as rows, with these images."""
    steps = parquet.read_table(RECORDED / "video" / "data").to_pylist()
    return [
        {"instruction": TASKS[episode % 2], "action": one["action"], "episode": episode, "image": {"bytes": image}}
        for (episode, _), one, image in zip(PLACES, steps, images, strict=True)
    ]


def stored() -> dict[str, list[bytes]]:
    videos = sorted((RECORDED / "video" / "videos" / CAMERA).glob("*/*.mp4"))
    tables = parquet.read_table(RECORDED / "image" / "data").to_pylist()
    return {"video": [as_ppm(frame) for frame in decoded(*videos)], "image": [one[CAMERA]["bytes"] for one in tables]}


@pytest.mark.parametrize("kind", ["video", "image"])
def test_recordings_are_the_same_data_as_their_steps_in_a_table(tmp_path: Path, kind: str) -> None:
    write_parquet(tmp_path / "steps.parquet", table(stored()[kind]))
    expected = load(tmp_path, "steps.parquet", format="actions")
    found = load(tmp_path, str(RECORDED / kind), format="actions")
    assert [one.content_hash for one in found.read()] == [one.content_hash for one in expected.read()]
    assert (found.digest, found.pictures, found.actions) == (expected.digest, expected.pictures, expected.actions)
    chosen = load(tmp_path, str(RECORDED / kind), format="actions", columns={"image": CAMERA})
    assert chosen.digest == expected.digest


def test_chunks_of_recordings_are_those_of_their_steps_in_a_table_however_they_lie(tmp_path: Path) -> None:
    rows = [{**row, "step": step} for row, (_, step) in zip(table(stored()["image"]), PLACES, strict=True)]
    write_parquet(tmp_path / "steps.parquet", rows)
    shutil.copytree(RECORDED / "image", tmp_path / "robot")
    for file in (tmp_path / "robot" / "data").glob("*/*.parquet"):
        steps = parquet.read_table(file)
        parquet.write_table(steps.take([*reversed(range(len(steps)))]), file)
    chunked: dict[str, Any] = {"format": "actions", "actions": Actions(chunk=3)}
    expected, found = load(tmp_path, "steps.parquet", **chunked), load(tmp_path, "robot", **chunked)
    assert found.digest == expected.digest != load(tmp_path, "robot", format="actions").digest
    assert [len(one.actions) for one in found.read()] == [min(3, STEPS[episode] - step) for episode, step in PLACES]


def test_every_step_has_the_frame_that_was_recorded_at_it(tmp_path: Path) -> None:
    for kind, most in (("image", 0.0), ("video", 6.0)):
        found = list(load(tmp_path, str(RECORDED / kind), format="actions").read())
        assert [example.group for example in found] == [f"episode {episode}" for episode, _ in PLACES]
        for example, (episode, step) in zip(found, PLACES, strict=True):
            assert example.turns[0].content == f"What action should the robot take to {TASKS[episode % 2].lower()}?"
            assert isinstance(example.images[0].source, bytes)
            pixels = np.asarray(pillow.open(BytesIO(example.images[0].source))).astype(float)
            distances = [np.abs(pixels - picture(*place)).mean() for place in PLACES]
            assert PLACES[int(np.argmin(distances))] == (episode, step)
            assert min(distances) <= most


def test_some_episodes_are_named_and_others_held_out(tmp_path: Path) -> None:
    for kind in ("video", "image"):
        whole = list(load(tmp_path, str(RECORDED / kind), format="actions").read())
        some = list(load(tmp_path, f"{RECORDED / kind}#1:3", format="actions").read())
        assert [one.content_hash for one in some] == [one.content_hash for one in whole[STEPS[0] :]]
    part = part_of_lerobot(RECORDED / "video", 1, 3)
    [span] = part.spans()
    assert (span.start, span.end, first_step(span)) == (1, 3, 5)


Damage = Callable[[Path], Any]


def info(**changes: Any) -> Damage:
    def change(folder: Path) -> None:
        file = folder / "meta" / "info.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def cut(folder: Path) -> None:
    file = next((folder / "videos").rglob("file-001.mp4"))
    file.write_bytes(file.read_bytes()[:1400])


def forget(folder: Path) -> None:
    (folder / "meta" / "tasks.parquet").write_bytes(
        next((folder / "meta" / "episodes").rglob("*.parquet")).read_bytes()
    )


def swap(folder: Path) -> None:
    first, second = sorted((folder / "videos").rglob("*.mp4"))
    shutil.copy(second, first)


DAMAGES: list[tuple[Damage, str, str]] = [
    (lambda folder: None, "#2:9", "it has 3 episodes; name some of them, such as #0:3"),
    (lambda folder: None, "#2:2", "it has 3 episodes; name some of them"),
    (info(codebase_version="v2.1"), "", "it is a LeRobotDataset v2.1, and v3.0 is read; convert it with python -m"),
    (info(data_path="data/{nothing}.parquet"), "", "meta/info.json is not LeRobot's: KeyError"),
    (info(fps="fast"), "", "meta/info.json is not LeRobot's: ValueError"),
    (info(data_path="../data.parquet"), "", "names ../data.parquet, which is not in the folder; repair"),
    (forget, "", "meta/tasks.parquet has no 'task_index' beside one column of texts; repair"),
    (cut, "", f"'{CAMERA}' at 0.000 s of "),
    (swap, "", f"'{CAMERA}' at 0.500 s of "),
    (lambda folder: next((folder / "videos").rglob("file-001.mp4")).unlink(), "", "cannot be read: "),
    (lambda folder: next((folder / "data").rglob("*.parquet")).write_bytes(b"x" * 99), "", "no Parquet file"),
]


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_damaged_recordings_are_refused_with_the_place(tmp_path: Path, number: int) -> None:
    damage, episodes, message = DAMAGES[number]
    shutil.copytree(RECORDED / "video", tmp_path / "robot")
    damage(tmp_path / "robot")
    with pytest.raises(SpecError) as caught:
        load(tmp_path, f"robot{episodes}", format="actions")
    assert message in str(caught.value)


def test_recordings_are_of_actions(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"a robot's recordings; set recipe.data.format to actions"):
        load(tmp_path, str(RECORDED / "video"))
