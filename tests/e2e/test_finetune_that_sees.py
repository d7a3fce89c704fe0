"""A finetune on images whose worker is killed: adapters on a vision-language model, resumed, exported, tracked."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image as pillow
from product import Job, assert_every_step_once, run_of, sqlite_uri, tracked_runs, tracking_client
from safetensors.numpy import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText

pytestmark = pytest.mark.e2e

STEPS = 24
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (20, 40, 210)}


def write_pictures(folder: Path, split: str, count: int) -> None:
    draw = np.random.default_rng(count)
    rows = []
    for number in range(count):
        name, colour = list(COLOURS.items())[number % 3]
        pixels = np.clip(np.array(colour) + draw.integers(-20, 20, (24, 40, 3)), 0, 255).astype(np.uint8)
        pillow.fromarray(pixels).save(folder / f"{split}-{number}.png")
        question = {"role": "user", "content": "What colour is it?", "images": [f"{split}-{number}.png"]}
        rows.append({"messages": [question, {"role": "assistant", "content": name}]})
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_adapters_on_images_resume_after_a_kill_and_leave_a_model_and_its_runs(new_job: Callable[..., Job]) -> None:
    job = new_job(
        recipe__data={"train": "train.jsonl", "validation": "validation.jsonl"},
        recipe__adaptation={"kind": "lora", "rank": 4},
        recipe__budget={"kind": "steps", "amount": STEPS},
    )
    for split, count in (("train", 96), ("validation", 9)):
        write_pictures(job.folder, split, count)
    spec = yaml.safe_load(job.spec.read_text())
    del spec["backbones"], spec["seeds"]
    exported = job.folder / "exported"
    export = {"folder": str(exported), "register": "eyes"}
    job.spec.write_text(yaml.safe_dump({**spec, "backbone": "tiny-smolvlm", "seed": 0, "export": export}))

    launch = job.start("finetune")
    cell = job.cell()
    kept = cell.wait_for_checkpoint(launch)
    cell.wait_for_step(kept + 2, launch)
    os.kill(cell.worker_pid(rank=1), signal.SIGKILL)

    assert launch.wait() == 0, launch.output
    (resumed,) = [phase for phase in cell.phases(2) if phase["phase"] == "resumed"]
    assert resumed["step"] >= kept
    assert_every_step_once(sqlite_uri(job), cell.path.name, STEPS)
    assert {run.info.status for run in tracked_runs(sqlite_uri(job))} == {"FINISHED"}
    run = run_of(sqlite_uri(job), cell.path.name)
    expected = {"vision.image_size": "32", "vision.tokens_per_image": "4", "vision.towers": "frozen"}
    assert expected.items() <= run.data.params.items()
    assert run.data.params["recipe.adaptation.kind"] == "lora"
    profiles = {one.tags[0].value: json.loads(one.dataset.profile) for one in run.inputs.dataset_inputs}
    assert {use: profile["images"] for use, profile in profiles.items()} == {"training": 96, "validation": 9}
    assert run.data.metrics["val_bits_per_byte"] < run.data.metrics["val_bits_per_byte_before"]
    assert_loads(exported)
    (version,) = tracking_client(sqlite_uri(job)).search_model_versions("name='eyes'")
    assert (version.run_id, version.tags["folder"]) == (run.info.run_id, str(exported))


def assert_loads(folder: Path) -> None:
    AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    seen = processor(pillow.new("RGB", (40, 24)), return_tensors="np")
    assert seen["pixel_values"].shape == (1, 1, 3, 32, 32)
    adapters = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert adapters and all(".text_model.layers." in name for name in adapters)
