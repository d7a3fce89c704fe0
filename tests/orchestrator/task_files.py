"""Tasks of lm-evaluation-harness as YAML files: those of the kit, and small ones made here."""

import json
from pathlib import Path
from typing import Any

import yaml

COPA, PIQA, UDHR = "kit_copa", "kit_piqa", "kit_udhr_bpb"


def write_kit_tasks(kit: Path, folder: Path) -> Path:
    """The kit's tasks, with the place of their data filled in."""
    folder.mkdir()
    for file in (kit / "lm_eval_tasks").glob("*.yaml"):
        (folder / file.name).write_text(file.read_text().replace("KIT_DATA", str(kit / "data")))
    return folder


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **definition: Any) -> None:
    """A task whose items are `rows`, with `text` and `answer` as prompt and target unless the definition differs."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "metadata": {"version": 2},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | definition))
