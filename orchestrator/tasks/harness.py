"""Finds tasks of lm-evaluation-harness by name and runs them on a model of that library."""

import difflib
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.cell_job import find_missing_harness
from orchestrator.errors import InputError, TasksError
from orchestrator.tasks.results import TaskResults, collect

# The defaults of lm-evaluation-harness, so that its own command gives the same figures.
PYTHON_SEED, NUMBER_SEED = 0, 1234
BOOTSTRAP_DRAWS = 100_000  # for the standard errors of some metrics


@dataclass(frozen=True)
class OpenTasks:
    """Tasks with their data at hand. `asked` are the names as their author wrote them: tasks, groups or tags."""

    asked: tuple[str, ...]
    loaded: Any  # lm_eval's TaskDict


def open_tasks(names: Sequence[str], include_path: Path | None = None) -> OpenTasks:
    """Looks tasks up, in the YAML files of `include_path` first, and loads their data.

    A file there may name Python functions beside it, which are run. Raises InputError where lm_eval is missing or does
    not know a name, and TasksError where the data of a task cannot be had.
    """
    if missing := find_missing_harness():
        raise InputError(missing)
    manager = _manager(names, include_path)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in names:
        found = _load(manager, name)
        tasks |= found["tasks"]
        groups |= found.get("groups", {})
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=NUMBER_SEED)
    return OpenTasks(tuple(names), {"tasks": tasks, "groups": groups})


def run_tasks(lm: Any, opened: OpenTasks, limit: int | None = None, draws: int = BOOTSTRAP_DRAWS) -> TaskResults:
    """Asks every item of every task, or the first `limit` of each. Raises InputError for a task that runs code.

    `lm` is an `lm_eval.api.model.LM`; `draws` of the bootstrap behind some standard errors, 0 for none at all.
    """
    from lm_eval import evaluate

    random.seed(PYTHON_SEED)
    np.random.seed(NUMBER_SEED)
    torch.manual_seed(NUMBER_SEED)
    for name, task in opened.loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(f"task {name!r} runs code that the model writes, which is never done here; leave it out")
    found = evaluate(lm, task_dict=opened.loaded, limit=limit, bootstrap_iters=draws, log_samples=True)
    return collect(found, opened.asked, limit)


@contextmanager
def without_advice() -> Iterator[None]:
    """The library's model warns whoever gives it a model rather than a name."""
    logger = logging.getLogger("lm_eval.models.huggingface")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _manager(names: Sequence[str], include_path: Path | None) -> Any:
    """The index of tasks. That of the 14,000 that the library ships takes seconds: only where a name needs it."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not include_path.is_dir():
            raise InputError(f"there is no folder {include_path} with tasks; every node must see it under this path")
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(manager.all_subtasks):
            return manager
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise InputError("; ".join(_not_known(name, manager.all_tasks) for name in unknown))
    return manager


def _not_known(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists those that there are"
    return f"lm-evaluation-harness has no task {name!r}; {hint}"


def _load(manager: Any, name: str) -> Any:
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        return manager.load([name])
    except (OSError, HTTPError) as error:
        said = str(error).strip().splitlines()
        raise TasksError(
            f"the data of task {name!r} cannot be had: {said[0] if said else type(error).__name__}. A data set of the "
            "hub needs the network once on each node, or a cache in HF_HOME that has it and HF_HUB_OFFLINE=1; files "
            "that a task names must be where it says"
        ) from error
