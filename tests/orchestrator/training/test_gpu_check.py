"""The parts of `make gpu-check` on a tiny shape: what it would measure on a GPU, it measures here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gang import run_ranks

from benchmarks.gpu_check import CPU, Setting, disk, images, kernels, lora, speed, summary


def run_parts(scratch: Path) -> dict[str, Any]:
    setting = Setting(CPU, torch.device("cpu"), None, scratch)
    one = replace(CPU, seen=replace(CPU.seen, backbones=CPU.seen.backbones[1:2]))
    return {
        "speed": speed(setting, CPU.narrow),
        "lora": lora(setting),
        "kernels": kernels(setting),
        "disk": disk(setting),
        "images": images(replace(setting, scale=one)),
    }


def test_every_part_measures_what_it_says(tmp_path: Path) -> None:
    (found,) = run_ranks(1, run_parts, tmp_path)

    sides = found["speed"]["sides"]
    product = sides["product"]
    assert [len(side["step_s"]) for side in sides.values()] == [CPU.steps] * 4
    assert all(share > 0 for share in found["speed"]["of_reference"].values())
    assert len(product["stalls_s"]) == 2 and product["checkpoint_bytes"] > 4 * product["contract"]["parameters"]
    assert product["contract"]["activation_checkpointing"] is True
    adapted = found["lora"]["sides"]["product"]
    assert 0 < adapted["checkpoint_bytes"] < product["checkpoint_bytes"] / 2
    assert [len(side["step_s"]) for side in found["lora"]["sides"].values()] == [CPU.steps] * 3
    by = {kernel: one for kernel, one in found["kernels"]["found"]["mistral, window of 16"].items() if "holds" in one}
    assert found["kernels"]["holds"] and set(by) >= {"sdpa", "eager"}
    assert found["disk"]["bytes_per_second"] > 0
    assert "of the reference" in summary(found["speed"])
    (seen,) = found["images"]["images"].values()
    assert seen["contract"]["vision_layers"] and len(seen["step_s"]["product"]) == CPU.steps
    assert (
        seen["tokens_per_second"]["bare"] > 17 * seen["images_per_second"]["bare"]
    )  # 16 of an image, and more of text
    assert "of the bare loop" in summary(found["images"])
