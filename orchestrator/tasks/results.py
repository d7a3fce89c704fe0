"""What tasks came to: a document for each run of them, and a row for each item that was asked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.data.sources.containers import write_parquet
from orchestrator.hardware import package_versions
from orchestrator.identity import content_hash
from orchestrator.layout import TASK_RESULTS, TASK_SAMPLES
from orchestrator.results import FORMAT, write_json

PREFIX = "task/"  # of what trackers and reports call a metric
STANDARD_ERROR = "_stderr"
_FACTS = ("doc_id", "filter", "doc_hash", "prompt_hash", "target_hash")
_NESTED = ("doc", "target", "arguments", "resps", "filtered_resps")


@dataclass(frozen=True)
class TaskResults:
    """`document` is written as JSON; `samples` as Parquet, one row for each task, item and filter."""

    document: dict[str, Any]
    samples: list[dict[str, Any]]

    @property
    def metrics(self) -> dict[str, float]:
        """`task/<name>/<metric>` of the names asked for; of every task where one of the names is that of several."""
        asked, tasks = self.document["asked"], self.document["tasks"]
        names = asked if all(tasks.get(name, {}).get("metrics") for name in asked) else list(tasks)
        return {
            f"{PREFIX}{name}/{metric}": value
            for name in names
            for metric, value in tasks[name]["metrics"].items()
            if not metric.partition(".")[0].endswith(STANDARD_ERROR)
        }

    def write(self, folder: Path, **facts: Any) -> None:
        """Writes both files, the document last; `facts` say on what the tasks were run."""
        write_parquet(folder / TASK_SAMPLES, self.samples)
        write_json(folder / TASK_RESULTS, {"format": FORMAT, **facts, "samples": TASK_SAMPLES, **self.document})


def collect(found: Mapping[str, Any], asked: Sequence[str], limit: int | None) -> TaskResults:
    """From what `lm_eval.evaluate` returns."""
    versions, shots, counts = found["versions"], found["n-shot"], found["n-samples"]
    tasks = {
        name: {
            "metrics": _numbers(figures),
            "version": versions.get(name),
            "num_fewshot": shots.get(name),
            "items": counts[name]["effective"] if name in counts else figures.get("sample_len"),
            "higher_is_better": found["higher_is_better"].get(name, {}),
            "config_hash": content_hash(_definition(found["configs"][name])) if name in found["configs"] else None,
        }
        for name, figures in found["results"].items()
    }
    document = {"asked": list(asked), "limit": limit, "packages": _versions(), "tasks": tasks}
    samples = [_sample(task, sample) for task, one in found["samples"].items() for sample in one]
    return TaskResults(document, samples)


def _versions() -> dict[str, str]:
    return package_versions() | {name: version(name) for name in ("lm_eval", "datasets")}


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """`acc`, or `exact_match.strict-match` where a filter other than `none` stands behind it."""
    named = {key: value for key, value in figures.items() if "," in key and isinstance(value, int | float)}
    return {key.removesuffix(",none").replace(",", "."): float(value) for key, value in named.items()}


def _definition(config: Mapping[str, Any]) -> dict[str, Any]:
    """A task's definition but for the place of its file."""
    metadata = {key: value for key, value in (config.get("metadata") or {}).items() if key != "config_source"}
    return {**config, "metadata": metadata}


def _sample(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as numbers, texts as texts, and all else as JSON: the columns are the same for every task."""
    scores = {
        f"metric/{name}": float(value) if isinstance(value, int | float) else _as_json(value)
        for name in sample["metrics"]
        for value in [sample[name]]
    }
    nested = {name: _as_json(sample[name]) for name in _NESTED}
    return {"task": task, **{name: sample[name] for name in _FACTS}, **nested, **scores}


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
