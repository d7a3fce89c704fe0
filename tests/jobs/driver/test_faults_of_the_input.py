"""What no other attempt could mend: tried once, with the right status and exit code, the remedy in the sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from backbones.registry import build

Run = Callable[..., Any]


def write_finetune(folder: Path, backbone: str, **recipe: Any) -> None:
    for split in ("train", "validation"):
        rows = [{"prompt": f"{split} {n}", "completion": f"the answer to {split} {n}"} for n in range(8)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "format": "prompt_completion"}
    settings = {"data": data, "sequence_length": 64, "global_batch_size": 2, "budget": {"kind": "steps", "amount": 1}}
    spec = {"name": "tune", "backbone": backbone, "recipe": settings | recipe}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))


def make_model(folder: Path) -> Path:
    backbone = build("tiny-llama2", seed=5)
    backbone.llm.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder / "model.safetensors"


def the_cell(folder: Path) -> tuple[str, int, str]:
    """Status, attempts and failure of the only cell."""
    (facts,) = (folder / "runs").glob("tune-*/report.json")
    (cell,) = json.loads(facts.read_text())["cells"]
    return cell["status"], cell["attempts"], cell["failure"]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (
            {"attention": "flash_attention_2"},
            "attention flash_attention_2 cannot run here: the package flash_attn is not installed; install it on every",
        ),
        (
            {"adaptation": {"kind": "bias_only"}},
            "adaptation bias_only: nothing of tiny-llama2 would learn; choose full or last_layer",
        ),
    ],
    ids=["a-missing-kernel", "an-adaptation-that-matches-nothing"],
)
def test_a_wish_that_the_backbone_cannot_meet_is_infeasible_at_once(
    recipe: dict[str, Any], sentence: str, tmp_path: Path, run_backbone: Run
) -> None:
    write_finetune(tmp_path, "tiny-llama2", **recipe)
    done = run_backbone(tmp_path, "finetune", "spec.yaml")
    status, attempts, failure = the_cell(tmp_path)
    assert (done.returncode, status, attempts) == (1, "INFEASIBLE", 1), done.stdout
    assert failure.startswith(sentence)
    assert f": INFEASIBLE: {sentence}" in done.stdout
    assert "Traceback" not in done.stdout and "twice in a row" not in done.stdout


@pytest.mark.e2e
def test_a_checkpoint_that_lacks_a_tensor_fails_once_and_names_it(tmp_path: Path, run_backbone: Run) -> None:
    file = make_model(tmp_path / "model")
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    write_finetune(tmp_path, "hf:./model")
    done = run_backbone(tmp_path, "finetune", "spec.yaml")
    status, attempts, failure = the_cell(tmp_path)
    assert (done.returncode, status, attempts) == (1, "FAILED", 1), done.stdout
    assert "1 missing keys in the weights: model.layers.1.mlp.up_proj.weight" in failure.splitlines()[0]
    assert "The file is damaged, or belongs to another class" in failure
    assert "Traceback" not in done.stdout + failure and "twice in a row" not in done.stdout


def test_a_checkpoint_that_was_cut_off_is_refused_before_anything_starts(tmp_path: Path, run_backbone: Run) -> None:
    file = make_model(tmp_path / "model")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    write_finetune(tmp_path, "hf:./model")
    done = run_backbone(tmp_path, "finetune", "spec.yaml")
    assert done.returncode == 2, done.stdout
    assert f"has {len(whole) // 2:,} of its {len(whole):,} bytes; it is damaged or unfinished" in done.stdout
    assert "Traceback" not in done.stdout and not (tmp_path / "runs").exists()
