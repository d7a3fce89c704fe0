"""Makes tests/orchestrator/data/lerobot: a block that is pushed, recorded by LeRobot's own library.

It pins versions that this project does not, so it wants an environment of its own with `lerobot==0.4.4`:

    python tools/make_lerobot_fixture.py

`video/` has a camera as video, two files of it, and `image/` the same steps with the camera's frames in the tables.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "tests" / "orchestrator" / "data" / "lerobot"
SIDE, FPS, STEPS = 64, 10, (4, 6, 5)  # pixels, and the steps of each episode
TASKS = ("Push the block left", "Push the block right")
NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


def picture(episode: int, step: int) -> np.ndarray:
    """(64, 64, 3) uint8: a bright block before a ramp."""
    ramp = np.arange(SIDE, dtype=np.uint8)
    frame = np.stack([np.tile(ramp * 2, (SIDE, 1)), np.tile(ramp[:, None], (1, SIDE)), np.full((SIDE, SIDE), 40)], -1)
    left = 8 + 6 * step if episode % 2 else 40 - 6 * step
    frame[20 + 4 * episode : 36 + 4 * episode, left : left + 16] = (250, 60 * episode, 90)
    return frame.astype(np.uint8)


def record(name: str, kind: str) -> None:
    """One dataset; `kind` is video or image."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    camera = {"dtype": kind, "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    numbers = {"dtype": "float32", "shape": (len(NAMES),), "names": NAMES}
    features: dict[str, Any] = {"observation.images.front": camera, "observation.state": numbers, "action": numbers}
    dataset = LeRobotDataset.create(
        repo_id=f"tests/{name}", fps=FPS, features=features, root=FOLDER / name, robot_type="block", use_videos=True
    )
    if kind == "video":
        dataset.meta.update_chunk_settings(
            video_files_size_in_mb=0.003
        )  # two episodes in one file, the third in another
    for episode, steps in enumerate(STEPS):
        for step in range(steps):
            generator = np.random.default_rng([episode, step])
            action = np.append(generator.uniform(-0.5, 0.5, 6), step % 2).astype(np.float32)
            dataset.add_frame(
                {
                    "observation.images.front": picture(episode, step),
                    "observation.state": generator.uniform(-1, 1, 7).astype(np.float32),
                    "action": action,
                    "task": TASKS[episode % 2],
                }
            )
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    record("video", "video")
    record("image", "image")
