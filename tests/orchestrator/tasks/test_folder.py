"""Tasks on a model folder: what lm-evaluation-harness says of it by itself, and what our own bits per byte say."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from task_files import COPA, PIQA, UDHR, write_kit_tasks, write_task

from backbones.registry import build, get_spec, load_codec
from orchestrator.data.examples import Example
from orchestrator.data.prepare import tokenize
from orchestrator.errors import InputError, TasksError
from orchestrator.parallel import Mesh
from orchestrator.tasks.harness import open_tasks, run_tasks
from orchestrator.training.evaluation import evaluate
from orchestrator.training.loss import token_nats

lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
from orchestrator.tasks.folder import open_folder  # noqa: E402

LIMIT, BATCH = 24, 8
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def kit_tasks(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kit_tasks(kit, tmp_path_factory.mktemp("tasks") / "yaml")


@pytest.fixture
def single_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["stories260K-llama", "stories260K-gemma"])
def test_tasks_of_a_folder_are_to_the_last_digit_what_the_harness_says_by_itself(
    kit: Path, kit_tasks: Path, name: str
) -> None:
    folder = kit / "models" / name
    ours = run_tasks(open_folder(folder, BATCH), open_tasks([COPA, PIQA], kit_tasks), LIMIT)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder)},
        tasks=[COPA, PIQA],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(kit_tasks), include_defaults=False),
        limit=LIMIT,
        batch_size=BATCH,
        device="cpu",
    )

    for task in (COPA, PIQA):
        expected = {key.removesuffix(",none"): value for key, value in theirs["results"][task].items() if "," in key}
        assert ours.document["tasks"][task]["metrics"] == expected
        assert ours.document["tasks"][task]["version"] == theirs["versions"][task]
        answers = [json.loads(row["filtered_resps"]) for row in ours.samples if row["task"] == task]
        assert answers == [[list(one) for one in sample["filtered_resps"]] for sample in theirs["samples"][task]]
    assert ours.metrics.keys() == {f"task/{task}/{metric}" for task in (COPA, PIQA) for metric in ("acc", "acc_norm")}


@pytest.mark.parametrize("name", ["stories260K-llama", "stories260K-mistral", "stories260K-phi3"])
def test_bits_per_byte_agree_with_the_harness_but_for_the_edges_of_windows(
    kit: Path, kit_tasks: Path, single_rank: None, name: str
) -> None:
    documents = 3
    folder = kit / "models" / name
    theirs = run_tasks(open_folder(folder, BATCH), open_tasks([UDHR], kit_tasks), documents)

    lines = (kit / "data/text/udhr.jsonl").read_text().splitlines()[:documents]
    spec = get_spec(f"hf:{folder}")
    data = tokenize(load_codec(spec, max_length=512), [Example("g", text=json.loads(line)["text"]) for line in lines])
    backbone = build(spec, attention="sdpa", compute_dtype=torch.float32)
    backbone.llm.eval()
    with torch.no_grad():
        ours = evaluate(
            partial(token_nats, backbone, device=CPU),
            data,
            np.arange(documents),
            sequence_length=512,
            rows=BATCH,
            collate=backbone.collate,
            mesh=Mesh.build(CPU),
        )
    assert ours.bits_per_byte == pytest.approx(theirs.metrics[f"task/{UDHR}/bits_per_byte"], rel=1e-3)


def test_what_does_not_fit_the_model_is_told(kit: Path, kit_tasks: Path, tmp_path: Path) -> None:
    folder = kit / "models/stories260K-llama"
    with pytest.raises(InputError, match=r"an answer that a task offers has \d+ tokens, more than the 8 of"):
        run_tasks(open_folder(folder, BATCH, max_length=8), open_tasks([COPA], kit_tasks), LIMIT)
    write_task(tmp_path / "own", "own", [{"text": "one", "answer": "two"}], output_type="generate_until")
    with pytest.raises(InputError, match=r"what a task lets be written have 257 tokens, more than the 128 of"):
        run_tasks(open_folder(folder, BATCH, max_length=128), open_tasks(["own"], tmp_path / "own"))


def test_the_files_hold_versions_and_every_item(kit: Path, kit_tasks: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    results = run_tasks(open_folder(kit / "models/stories260K-llama", BATCH), open_tasks([COPA], kit_tasks), 5)
    results.write(tmp_path, model="stories")

    document = json.loads((tmp_path / "tasks.json").read_text())
    assert document["packages"]["lm_eval"] == lm_eval.__version__
    assert (document["format"], document["limit"], document["model"]) == (1, 5, "stories")
    task = document["tasks"][COPA]
    assert (task["version"], task["items"], task["num_fewshot"]) == (1.0, 5, 0)
    assert task["higher_is_better"] == {"acc": True, "acc_norm": True}
    rows = Dataset.from_parquet(str(tmp_path / "tasks.parquet")).to_list()
    assert [row["doc_id"] for row in rows] == list(range(5))
    assert np.mean([row["metric/acc"] for row in rows]) == task["metrics"]["acc"]
    assert "choices" in json.loads(rows[0]["doc"])


def test_what_cannot_be_run_says_what_to_do(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "own", [{"text": "one", "answer": "two"}])
    (tmp_path / "tasks" / "own.jsonl").unlink()
    with pytest.raises(TasksError, match=r"the data of task 'own' cannot be had: .*own\.jsonl"):
        open_tasks(["own"], tmp_path / "tasks")
    with pytest.raises(InputError, match=r"there is no folder .*/nowhere with tasks"):
        open_tasks(["own"], tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no task 'hellaswagg'; did you mean hellaswag.*no task 'owm'; did you mean"):
        open_tasks(["own", "hellaswagg", "owm"], tmp_path / "tasks")


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no config\.json in .*; is it a Hugging Face model\?"):
        open_folder(tmp_path, BATCH)
