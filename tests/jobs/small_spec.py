"""A comparison of two tiny backbones on two files of three rows, for tests that plan and train nothing."""

import json
from pathlib import Path
from typing import Any

import yaml


def write_small_spec(folder: Path, text: str = "question", **changes: Any) -> Path:
    """The file of the spec; `changes` stand over its keys, and `text` is in every row."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        rows = [{"prompt": f"{split} {text} {n}", "completion": f"answer {n}"} for n in range(3)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "format": "prompt_completion"}
    recipe = {"data": data, "sequence_length": 64, "global_batch_size": 4, "budget": {"kind": "steps", "amount": 5}}
    spec = {"name": "pair", "backbones": ["tiny-llama2", "tiny-qwen"], "recipe": recipe, **changes}
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return path
