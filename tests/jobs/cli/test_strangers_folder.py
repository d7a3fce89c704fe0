"""A folder that somebody else made: refused with the reason, and nothing in it is executed."""

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Backbone = Callable[..., subprocess.CompletedProcess[str]]

CODE = "open({file!r}, 'w').close()\nclass Strange: pass\n"


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.fixture
def stranger(kit: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "stranger"
    shutil.copytree(kit / "models" / "stories260K-llama", folder)
    return folder


def finetune(run_backbone: Backbone, folder: Path) -> subprocess.CompletedProcess[str]:
    rows = [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": c}]} for c in "ABCD"]
    for name, part in (("train", rows[:3]), ("validation", rows[3:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    spec = {
        "name": "stranger",
        "backbone": "hf:./stranger",
        "storage": "runs",
        "recipe": {
            "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
            "sequence_length": 64,
            "global_batch_size": 1,
            "budget": {"kind": "steps", "amount": 1},
        },
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return run_backbone(folder, "finetune", "spec.yaml")


def test_pickled_weights_are_refused_and_not_unpickled(run_backbone: Backbone, stranger: Path, tmp_path: Path) -> None:
    (stranger / "model.safetensors").unlink()
    (stranger / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))

    result = finetune(run_backbone, tmp_path)

    assert result.returncode == 2
    assert "no *.safetensors file. Pickled weights" in result.stdout
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_the_models_own_is_refused_and_not_run(
    run_backbone: Backbone, stranger: Path, tmp_path: Path, file: str
) -> None:
    settings = json.loads((stranger / file).read_text())
    settings["auto_map"] = {
        "AutoConfig": "strange.Strange",
        "AutoModelForCausalLM": "strange.Strange",
        "AutoTokenizer": ["strange.Strange", None],
    }
    (stranger / file).write_text(json.dumps(settings))
    (stranger / "strange.py").write_text(CODE.format(file=str(tmp_path / "executed")))

    result = finetune(run_backbone, tmp_path)

    assert not (tmp_path / "executed").exists()
    assert result.returncode == 2, result.stdout
    assert f"its own Python code (auto_map in {file})" in result.stdout


@pytest.mark.e2e  # what a class is made for, only transformers knows, and only the workers load it
def test_weights_of_another_class_than_the_config_names_are_refused(
    run_backbone: Backbone, stranger: Path, tmp_path: Path
) -> None:
    config = json.loads((stranger / "config.json").read_text())
    (stranger / "config.json").write_text(json.dumps(config | {"architectures": ["MistralForCausalLM"]}))

    result = finetune(run_backbone, tmp_path)

    assert result.returncode == 1, result.stdout
    assert "config.json is of model type llama and class MistralForCausalLM" in result.stdout
