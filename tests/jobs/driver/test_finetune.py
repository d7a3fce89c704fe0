"""A finetune as a user runs it: what it says, what it leaves, and what the same command does afterwards."""

import json
import random
import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from task_files import write_task
from transformers import AutoModelForCausalLM, AutoTokenizer

from backbones.registry import build
from orchestrator.planning.plan import load_finetune, load_plan

SPECS = Path(__file__).parents[3] / "jobs" / "specs"
STEPS = 12
TEXT = "the ship sailed over a green sea and nobody knew where it would land before winter"
WORDS = TEXT.split()
HAS_HARNESS = find_spec("lm_eval") is not None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a user brings it: weights and tokenizer, nothing of ours."""
    folder = tmp_path_factory.mktemp("model") / "my-model"
    backbone = build("tiny-llama2", seed=5)
    backbone.llm.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


def write_finetune(folder: Path, model: Path, **changes: Any) -> None:
    """`finetune.yaml` with its data and its model beside it."""
    shutil.copytree(model, folder / "my-model")
    draw = random.Random(0)
    for split, count in (("train", 80), ("validation", 12)):
        rows = [
            {
                "prompt": f"{split} {n}: {' '.join(draw.choices(WORDS, k=4))}",
                "response": " ".join(draw.choices(WORDS, k=9)),
            }
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "name": "mine",
        "backbone": "hf:./my-model",
        "export": {"folder": "exported", "register": "mine"},
        "recipe": {
            "data": {"train": "train.jsonl", "validation": "validation.jsonl", "format": "prompt_completion"},
            "sequence_length": 256,
            "global_batch_size": 4,
            "budget": {"kind": "steps", "amount": STEPS},
            "optimizer": {"learning_rate": 3e-3, "warmup": 0.1},
            "precision": "fp32",
            "evaluate": {"every": 1.0},
            "checkpoint": {"every": 1.0},
        },
        "placement": {"workers": 2},
        **changes,
    }
    (folder / "finetune.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))


def write_tasks(folder: Path) -> None:
    """`own` and `also`, which ask the same, and `far`, whose data is on the hub."""
    rows = [{"text": f"{number} is", "answer": word} for number, word in enumerate(WORDS[:3])]
    asks = {"output_type": "loglikelihood", "metric_list": [{"metric": "perplexity"}]}
    for name in ("own", "also"):
        write_task(folder, name, rows, **asks)
    write_task(folder, "far", rows, dataset_path="nobody/nothing", dataset_kwargs={}, **asks)


@dataclass(frozen=True)
class Finished:
    """The folder in which a finetune ran, and what it printed."""

    folder: Path
    output: str

    @property
    def report(self) -> dict[str, Any]:
        (file,) = (self.folder / "runs").glob("mine-*/report.json")
        document: dict[str, Any] = json.loads(file.read_text())
        return document

    @property
    def cell(self) -> dict[str, Any]:
        (cell,) = self.report["cells"]
        found: dict[str, Any] = cell
        return found

    def spool(self, kind: str) -> list[dict[str, Any]]:
        lines = (Path(self.cell["folder"]) / "spool" / "steps.jsonl").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path, run_backbone: Any) -> Finished:
    folder = tmp_path_factory.mktemp("finetune")
    write_finetune(folder, model)
    done = run_backbone(folder, "finetune", "finetune.yaml")
    assert done.returncode == 0, done.stdout
    return Finished(folder, done.stdout)


def test_the_output_names_the_cell_the_scores_the_export_and_the_report(finished: Finished) -> None:
    metrics = finished.cell["metrics"]
    before, after = metrics["val_bits_per_byte_before"], metrics["val_bits_per_byte"]
    assert after < before
    assert "1 cell; results in" in finished.output
    assert f"hf:./my-model: held-out bits per byte {before:.4f} before, {after:.4f} after" in finished.output
    assert f"export: {finished.folder}/exported" in finished.output
    assert re.search(
        rf"report: {re.escape(str(finished.folder))}/runs/mine-[0-9a-f]{{10}}/report.html", finished.output
    )


def test_the_report_shows_before_and_after_and_where_the_model_is(finished: Finished) -> None:
    (page,) = (finished.folder / "runs").glob("mine-*/report.html")
    html = page.read_text()
    assert f"The trained model is in <code>{finished.folder}/exported</code>" in html
    assert "Held-out bits per byte went from" in html
    assert "Winner" not in html


def test_the_export_knows_the_spec_the_users_name_of_the_model_and_its_score(finished: Finished) -> None:
    manifest = json.loads((finished.folder / "exported" / "training_manifest.json").read_text())
    assert manifest["backbone_id"] == manifest["spec"]["backbone"] == "hf:./my-model"
    assert manifest["cell_id"] == finished.cell["cell_id"]
    assert manifest["val_bits_per_byte"] == finished.cell["metrics"]["val_bits_per_byte"]
    assert manifest["spec"]["export"] == {"folder": "exported", "register": "mine"}
    model = AutoModelForCausalLM.from_pretrained(finished.folder / "exported", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(finished.folder / "exported", local_files_only=True)
    prompt = tokenizer("In: the ship\nOut:", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=5, do_sample=False).shape[1] > prompt.input_ids.shape[1]


def test_the_same_command_launches_nothing_and_a_new_export_folder_is_filled_without_training(
    finished: Finished, run_backbone: Any
) -> None:
    again = run_backbone(finished.folder, "finetune", "finetune.yaml")
    assert again.returncode == 0, again.stdout
    assert "1 cell, 1 already finished" in again.stdout
    assert "starting Ray" not in again.stdout
    assert finished.cell["attempts"] == 1
    contract = finished.cell["contract"]

    spec = yaml.safe_load((finished.folder / "finetune.yaml").read_text())
    spec["export"]["folder"] = "other"
    if HAS_HARNESS:
        write_tasks(finished.folder / "own")
        spec["recipe"]["evaluate"] |= {"tasks": ["own"], "include_path": "own"}
    (finished.folder / "other.yaml").write_text(yaml.safe_dump(spec))
    exported = run_backbone(finished.folder, "finetune", "other.yaml")

    assert exported.returncode == 0, exported.stdout
    assert [entry["fields"]["step"] for entry in finished.spool("step")] == list(range(1, STEPS + 1))
    assert f"succeeded (attempt 2) after {STEPS} steps" in exported.stdout
    assert f"export: {finished.folder}/other" in exported.stdout
    assert finished.cell["restarts"] == ["it finished"], "a finished attempt is no interrupted one"
    assert finished.cell["contract"] == contract
    first, second = (
        AutoModelForCausalLM.from_pretrained(finished.folder / name, local_files_only=True).state_dict()
        for name in ("exported", "other")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    client = MlflowClient(tracking_uri=f"sqlite:///{finished.folder}/runs/mlflow.db")
    versions = sorted(client.search_model_versions("name = 'mine'"), key=lambda version: int(version.version))
    assert [version.source for version in versions] == [
        (finished.folder / name).as_uri() for name in ("exported", "other")
    ]
    assert {version.run_id for version in versions} == {finished.cell["mlflow_run_id"]}


@pytest.mark.skipif(not HAS_HARNESS, reason="the extra `eval` is not installed")
def test_tasks_of_the_spec_are_asked_of_the_cell_without_training_it_anew(
    finished: Finished, run_backbone: Any
) -> None:
    """After the test above, whose second launch asked them."""
    cell = finished.cell
    again = run_backbone(finished.folder, "finetune", "other.yaml")
    assert "1 cell, 1 already finished" in again.stdout
    assert re.search(rf"{cell['cell_id']} +own/perplexity +\d", again.stdout)
    document = json.loads((Path(cell["folder"]) / "tasks.json").read_text())
    assert cell["metrics"]["task/own/perplexity"] == document["tasks"]["own"]["metrics"]["perplexity"]
    run = MlflowClient(f"sqlite:///{finished.folder}/runs/mlflow.db").get_run(cell["mlflow_run_id"])
    assert run.data.metrics["task/own/perplexity"] == cell["metrics"]["task/own/perplexity"]
    assert any(name.startswith("system/") and name.endswith("/cpu_utilization_percentage") for name in run.data.metrics)
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "items.json", "type": "table"}]
    (page,) = (finished.folder / "runs").glob("mine-*/report.html")
    assert "own/perplexity" in page.read_text()


@pytest.mark.skipif(not HAS_HARNESS, reason="the extra `eval` is not installed")
def test_tasks_are_asked_of_an_export_and_the_run_of_its_cell_has_the_figures(
    finished: Finished, run_backbone: Any
) -> None:
    write_tasks(finished.folder / "own")
    cell, own = finished.cell, ("--include-path", "own")
    asked = run_backbone(finished.folder, "eval", cell["cell_id"], "--tasks", "also", *own, "--output", "asked")
    far = run_backbone(finished.folder, "eval", "exported", "--tasks", "far", *own)

    assert asked.returncode == 0, asked.stdout
    document = json.loads((finished.folder / "asked" / "tasks.json").read_text())
    figure = document["tasks"]["also"]["metrics"]["perplexity"]
    assert (document["cell_id"], document["tasks"]["also"]["version"]) == (cell["cell_id"], 2)
    assert f"MLflow run {cell['mlflow_run_id']}: task/also/perplexity" in asked.stdout
    run = MlflowClient(f"sqlite:///{finished.folder}/runs/mlflow.db").get_run(cell["mlflow_run_id"])
    assert run.data.metrics["task/also/perplexity"] == figure
    assert run.data.metrics["val_bits_per_byte"] == cell["metrics"]["val_bits_per_byte"]
    assert run.info.status == "FINISHED"
    assert figure == pytest.approx(cell["metrics"].get("task/own/perplexity", figure), rel=1e-5)
    assert far.returncode == 1
    assert "error: the data of task 'far' cannot be had" in far.stdout
    assert "nobody/nothing" in far.stdout
    assert "needs the network once" in far.stdout


@pytest.mark.chaos  # what diverges, test_gangs.py and test_cells.py end: by hand
def test_a_finetune_that_diverges_says_so_exports_nothing_and_is_not_tried_again(
    tmp_path: Path, model: Path, run_backbone: Any
) -> None:
    weights = tmp_path / "broken"
    shutil.copytree(model, weights)
    broken = AutoModelForCausalLM.from_pretrained(weights)
    with torch.no_grad():
        broken.get_input_embeddings().weight.fill_(float("nan"))
    broken.save_pretrained(weights)
    folder = tmp_path / "job"
    folder.mkdir()
    write_finetune(folder, weights)

    done = run_backbone(folder, "finetune", "finetune.yaml")
    again = run_backbone(folder, "finetune", "finetune.yaml")

    assert done.returncode == again.returncode == 1, done.stdout
    for output in (done.stdout, again.stdout):
        assert "DIVERGED" in output
        assert "export:" not in output
    assert "starting Ray" not in again.stdout
    assert not (folder / "exported").exists()
    (page,) = (folder / "runs").glob("mine-*/report.html")
    assert "The trained model is in" not in page.read_text()


def test_a_relative_model_folder_beside_the_spec_is_the_same_cell_wherever_it_is_planned_from(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "job", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    write_finetune(folder, model)
    monkeypatch.setenv("BACKBONE_STORAGE", str(tmp_path / "runs"))
    cells = []
    for place in (folder, elsewhere):
        monkeypatch.chdir(place)
        (cell,) = load_finetune(folder / "finetune.yaml").cells
        cells.append(cell)
    assert cells[0].cell_id == cells[1].cell_id
    assert cells[0].backbone.backbone_id == "hf:./my-model"


@pytest.mark.parametrize("spec", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_spec_plans_and_its_header_says_how_to_run_it(
    spec: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKBONE_STORAGE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if spec.stem == "demo-pretrained":  # `make` puts a model and a sample there first
        shutil.copytree(model, "runs/smollm2-135m-instruct")
        turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        Path("runs/held-out-sample.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    planned = load_plan(spec)
    assert planned.infeasible == ()
    header = dict(re.findall(r"^# (COMMAND|HARDWARE|RUNTIME|RESULT): +(.+)$", spec.read_text(), re.MULTILINE))
    assert set(header) == {"COMMAND", "HARDWARE", "RUNTIME", "RESULT"}
    assert f"jobs/specs/{spec.name}" in header["COMMAND"]
    assert ("finetune" if planned.kind == "finetune" else "compare") in header["COMMAND"]
    assert f"{planned.job.name}-<hash>/report.html" in header["RESULT"]
    if planned.job.placement.gpus_per_worker:
        assert header["RUNTIME"] == "not measured"
    else:
        assert re.search(r"\d+ (seconds|minutes)", header["RUNTIME"])
