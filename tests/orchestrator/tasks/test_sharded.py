"""Tasks asked of a cell by the ranks that trained it: they say what one process says of its export."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from gang import run_ranks
from small_jobs import WORDS, make_job
from task_files import write_task

from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob, ExportRequest, TaskRequest
from orchestrator.errors import CancelledError
from orchestrator.results import read_json
from orchestrator.tasks.harness import open_tasks, run_tasks
from orchestrator.tracking.spool import read_spool
from orchestrator.training.measurement import find_measurement

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
from orchestrator.tasks.folder import open_folder

NAMES = ("choices", "rolling", "writing")
CPU = torch.device("cpu")


def write_tasks(folder: Path) -> Path:
    """A task of each kind: choices of several lengths, a text longer than a window, and an answer to write."""
    rows = [
        {
            "text": f"{number}: {' '.join(WORDS[: number % 7 + 1])}",
            "options": [WORDS[(number + step) % len(WORDS)] * (step + 1) for step in range(number % 3 + 2)],
            "gold": number % 2,
            "answer": WORDS[number],
            "long": " ".join(WORDS * (number % 4 * 12 + 1)),
        }
        for number in range(11)
    ]
    choices = {"doc_to_choice": "{{options}}", "doc_to_target": "gold"}
    accuracy = [{"metric": "acc"}, {"metric": "acc_norm"}]
    write_task(folder, "choices", rows, output_type="multiple_choice", **choices, metric_list=accuracy)
    text = {"doc_to_text": "", "doc_to_target": "{{long}}", "metric_list": [{"metric": "bits_per_byte"}]}
    write_task(folder, "rolling", rows[:7], output_type="loglikelihood_rolling", **text)
    written = {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 6}, "metric_list": [{"metric": "exact_match"}]}
    write_task(folder, "writing", rows[:5], output_type="generate_until", **written)
    return folder


def train_stop_and_ask(job: CellJob) -> list[str]:
    """Trains without tasks, is stopped while it is asked them, and goes on; returns what the stop said."""
    run_cell(replace(job, tasks=None, export=None), CPU)
    if dist.get_rank() == 0:
        job.stop_file.touch()
    dist.barrier()
    with pytest.raises(CancelledError) as stopped:
        run_cell(replace(job, attempt=2), CPU)
    dist.barrier()
    job.stop_file.unlink(missing_ok=True)
    dist.barrier()
    run_cell(replace(job, attempt=3), CPU)
    return [str(stopped.value), *(entry.fields.get("phase", entry.kind) for entry in read_spool(job.spool_folder))]


def figures(job: CellJob) -> dict[str, float]:
    document = read_json(job.folder / "tasks.json")
    return {
        f"task/{name}/{metric}": value
        for name, task in document["tasks"].items()
        for metric, value in task["metrics"].items()
        if not metric.endswith("_stderr")
    }


def answers(samples: list[dict[str, Any]], task: str) -> list[Any]:
    return [json.loads(row["filtered_resps"]) for row in samples if row["task"] == task]


@dataclass(frozen=True)
class Asked:
    """A cell that two ranks trained, asked and exported."""

    job: CellJob
    stop: str  # what it said when it was stopped in between
    story: list[str]  # kinds of entries and names of phases, in order


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    root = tmp_path_factory.mktemp("cell")
    job = make_job(root / "job", "tiny-qwen", workers=2, budget={"kind": "steps", "amount": 2})
    tasks = TaskRequest(NAMES, write_tasks(root / "tasks"), digest="of these tasks")
    job = replace(job, tasks=tasks, export=ExportRequest(root / "exported", {}))
    (stop, *story), _ = run_ranks(2, train_stop_and_ask, job)
    return Asked(job, stop, story)


def test_two_ranks_say_what_one_process_says_of_the_export(asked: Asked) -> None:
    job = asked.job
    assert job.tasks is not None and job.export is not None
    length = read_json(job.folder / "tasks.json")["max_length"]
    model = open_folder(job.export.folder, batch_size=3, max_length=length)
    alone = run_tasks(model, open_tasks(NAMES, job.tasks.include_path), draws=0)
    rows = Dataset.from_parquet(str(job.folder / "tasks.parquet")).to_list()

    metrics = ("choices/acc", "choices/acc_norm", "rolling/bits_per_byte", "writing/exact_match")
    assert figures(job).keys() == {f"task/{metric}" for metric in metrics}
    assert figures(job) == pytest.approx(alone.metrics, rel=1e-5)
    for ours, theirs in zip(answers(rows, "choices"), answers(alone.samples, "choices"), strict=True):
        assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], rel=1e-4)
        assert [is_greedy for _, is_greedy in ours] == [is_greedy for _, is_greedy in theirs]
    assert answers(rows, "writing") == answers(alone.samples, "writing")


def test_a_trained_cell_is_asked_without_training_and_a_stop_meanwhile_costs_the_answers_alone(asked: Asked) -> None:
    assert asked.stop.startswith("stopped on request; a checkpoint was kept at step 2")
    assert asked.story.count("step") == 2
    assert asked.story.count("answering tasks") == 2
    assert asked.story[-1] == "finished"


def test_the_measurement_has_the_figures_and_which_tasks_they_are_of(asked: Asked) -> None:
    measurement = find_measurement(asked.job.folder)
    assert measurement is not None
    assert {key: value for key, value in measurement.metrics.items() if "task/" in key} == figures(asked.job)
    assert measurement.data["tasks"] == "of these tasks"
