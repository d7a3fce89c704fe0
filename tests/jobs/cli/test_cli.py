"""The commands that only look (list, plan, schema) import nothing heavy, start nothing and answer the same twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from jsonschema import Draft202012Validator
from small_spec import write_small_spec

from orchestrator.spec_files.source import read_spec

ROOT = Path(__file__).parents[3]
BACKBONE = Path(sys.executable).parent / "backbone"
SPECS = sorted((ROOT / "jobs" / "specs").glob("*.yaml"))
STORED = ROOT / "tests" / "jobs" / "results" / "stored" / "report.json"
HEAVY = {"torch", "transformers", "ray", "mlflow"}

COMMANDS = [
    ("list",),
    ("list", "--json"),
    ("plan", "spec.yaml"),
    ("plan", "spec.yaml", "--json"),
    ("diff", "spec.yaml", "spec.yaml"),
    ("predict", str(STORED), "--at", "1e9"),
    ("schema",),
    ("schema", "finetune"),
]


def environment(**extra: str) -> dict[str, str]:
    ours = ("RAY_", "BACKBONE_", "MLFLOW_", "HF_")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ours)}, **extra}


def run(*arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [str(BACKBONE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(**extra), timeout=120)


def answer(*arguments: str, cwd: Path) -> Any:
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_spec(folder: Path, **changes: Any) -> None:
    """A comparison of two tiny backbones on two small files."""
    write_small_spec(folder, **({"seeds": [0, 1]} | changes))


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_looking_imports_nothing_heavy_and_leaves_nothing_behind(arguments: tuple[str, ...], tmp_path: Path) -> None:
    write_spec(tmp_path)
    done = run(*arguments, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    predicts_nothing = "nothing can be predicted" in done.stderr  # one report is too few: a real answer
    assert done.returncode == int(predicts_nothing), done.stderr[-2000:]
    assert "typer" in imported, "the list of imports must be a real one"
    assert not imported & HEAVY
    assert {path.name for path in tmp_path.iterdir()} == {"spec.yaml", "train.jsonl", "validation.jsonl"}


def test_list_gives_machines_what_they_need_to_choose_a_backbone(tmp_path: Path) -> None:
    listed = answer("list", "--json", cwd=tmp_path)
    for entry in listed:
        assert entry.keys() >= {"id", "family", "hf_hub_path", "parameters", "prompt_builder"}
    by_id = {entry["id"]: entry for entry in listed}
    assert len(by_id) == len(listed) >= 15
    assert by_id["mistral-v0.1-7b-pure"]["hf_hub_path"] == "mistralai/Mistral-7B-v0.1"
    assert by_id["mistral-v0.1-7b-pure"]["parameters"] == 7_241_732_096
    assert by_id["llama2-7b-chat"]["prompt_builder"] == "LLaMa2ChatPromptBuilder"


def test_a_list_in_a_pipe_is_not_squeezed(tmp_path: Path) -> None:
    lines = run("list", cwd=tmp_path, COLUMNS="40").stdout.splitlines()
    [line] = [line for line in lines if line.startswith("mistral-v0.1-7b-instruct ")]
    assert "mistralai/Mistral-7B-Instruct-v0.1" in line


# demo-pretrained trains a model that `make` makes first; test_finetune plans it, with one in that place.
@pytest.mark.parametrize("spec", [s for s in SPECS if s.stem != "demo-pretrained"], ids=lambda path: path.name)
def test_every_spec_that_ships_can_be_planned(spec: Path, tmp_path: Path) -> None:
    done = run("plan", str(spec), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["cells"]
    assert all(cell["infeasible"] is None for cell in document["cells"])


@pytest.mark.parametrize("kind", ["comparison", "finetune"])
def test_the_schema_is_valid_json_schema_and_accepts_the_specs_that_ship(kind: str, tmp_path: Path) -> None:
    schema = answer("schema", kind, cwd=tmp_path)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    documents = [read_spec(spec).data for spec in SPECS]
    key = {"comparison": "backbones", "finetune": "backbone"}[kind]
    assert all(validator.is_valid(document) for document in documents if key in document)
    assert not validator.is_valid({"name": "../x"})


def test_two_plans_of_one_spec_are_equal(tmp_path: Path) -> None:
    write_spec(tmp_path)
    assert answer("plan", "spec.yaml", "--json", cwd=tmp_path) == answer("plan", "spec.yaml", "--json", cwd=tmp_path)


def test_planning_works_where_the_accelerator_is_missing(tmp_path: Path) -> None:
    placement = {"workers": 2, "gpus_per_worker": 1, "accelerator": "H100"}
    write_spec(tmp_path, backbones=["mistral-v0.1-7b-pure"], placement=placement)
    cells = answer("plan", "spec.yaml", "--json", cwd=tmp_path)["cells"]
    assert [cell["infeasible"] for cell in cells] == [None, None]
    assert 54 < cells[0]["predicted_memory_gib"] < cells[0]["device_memory_gib"] < 80


def test_a_plan_that_cannot_fit_is_still_shown_and_exits_2(tmp_path: Path) -> None:
    placement = {"workers": 1, "gpus_per_worker": 1, "accelerator": "A100"}
    write_spec(tmp_path, backbones=["mistral-v0.1-7b-pure"], placement=placement)
    done = run("plan", "spec.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "mistral-v0.1-7b-pure-s0-" in done.stdout
    assert "spec.yaml:" in done.stderr
    assert "needs about 110 GiB per GPU: 108 for weights" in done.stderr
    assert "37 usable GiB of one A100" in done.stderr


def test_a_dry_run_wraps_a_gated_7b_over_8_ranks_without_ray_weights_or_network(tmp_path: Path) -> None:
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "format": "prompt_completion"}
    recipe = {"data": data, "global_batch_size": 8, "budget": {"kind": "steps", "amount": 5}}
    write_spec(tmp_path, backbones=["llama2-7b-pure"], placement={"workers": 8}, seeds=[0], recipe=recipe)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = run("plan", "spec.yaml", "--dry-run", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1", **offline)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "torch" in imported
    assert not imported & {"ray", "mlflow"}
    [row] = [line.split() for line in done.stdout.splitlines() if "LlamaDecoderLayer" in line]
    assert row[:5] == ["llama2-7b-pure", "32", "LlamaDecoderLayer", "33", "32,064"]
    assert "3.138" in row  # GiB of weights: 6,738,939,904 parameters x 4 bytes / 8
    assert "weights float32, computing in bfloat16, gradients reduced in float32" in done.stdout


def test_a_dry_run_that_fails_names_backbone_and_remedy_shows_the_others_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "wrong_layers.py").write_text(
        "from dataclasses import replace\n"
        "from backbones import get_spec, register\n"
        "register(replace(get_spec('gpt2'), backbone_id='wrong-gpt2', decoder_layer_cls='GPT2Layer'))\n",
        encoding="utf-8",
    )
    write_spec(tmp_path, backbones=["wrong-gpt2", "tiny-qwen"], placement={"workers": 2}, seeds=[0])
    done = run("plan", "spec.yaml", "--dry-run", "--json", "--plugin", "wrong_layers.py", cwd=tmp_path)
    assert done.returncode == 1
    assert [found["backbone_id"] for found in json.loads(done.stdout)["dry_run"]] == ["tiny-qwen"]
    assert "wrong-gpt2: GPT2LMHeadModel has no list of 12 layers of class GPT2Layer" in done.stderr
    assert "correct decoder_layer_cls in its spec" in done.stderr


def test_a_hub_that_cannot_be_read_is_not_the_users_mistake(tmp_path: Path) -> None:
    write_spec(tmp_path, backbones=["hf:some-org/some-model"])
    done = run("plan", "spec.yaml", cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: hf:some-org/some-model: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (("plan",), "Missing argument 'SPEC'"),
        (("pln", "spec.yaml"), "No such command 'pln'"),
        (("schema", "matrix"), "error: no schema 'matrix'; there are: comparison, finetune"),
        (("report", "../secrets"), "error: no report '../secrets'"),
        (("report", "pair-0"), "there are: none"),
    ],
)
def test_a_wrong_command_line_exits_2_and_says_what_there_is(
    arguments: tuple[str, ...], want: str, tmp_path: Path
) -> None:
    done = run(*arguments, cwd=tmp_path, NO_COLOR="1", COLUMNS="200")
    assert done.returncode == 2
    assert want in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_plan_exits_130_without_a_traceback(tmp_path: Path) -> None:
    write_spec(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    os.mkfifo(tmp_path / "train.jsonl")  # opening it blocks until somebody writes
    command = [str(BACKBONE), "plan", "spec.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not waits_for_a_writer(process.pid):
        assert time.monotonic() < deadline, "the command never opened its data"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said


def waits_for_a_writer(pid: int) -> bool:
    """Whether a process is in its `open` of a pipe: the kernel tells, or else a second in which it does nothing."""
    place = Path(f"/proc/{pid}/wchan")
    if place.exists() and (waits_in := place.read_text()) not in ("", "0"):
        return waits_in == "wait_for_partner"
    process = psutil.Process(pid)
    before = process.cpu_times()
    time.sleep(1)
    return process.cpu_times() == before


def test_the_address_of_a_job_api_is_no_place_to_train_from(tmp_path: Path) -> None:
    spec = Path(__file__).parents[3] / "jobs" / "specs" / "demo.yaml"
    environment = {**os.environ, "RAY_ADDRESS": "http://127.0.0.1:8265", "BACKBONE_STORAGE": str(tmp_path)}
    command = [sys.executable, "-m", "jobs.cli", "compare", str(spec)]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "`backbone submit SPEC` sends a spec there" in refused.stderr


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_spec(tmp_path)
    refused = run("compare", "spec.yaml", cwd=tmp_path, RAY_AUTH_TOKEN_PATH=str(tmp_path / "gone"))
    assert refused.returncode == 2, refused.stderr
    assert f"RAY_AUTH_TOKEN_PATH is set but file cannot be opened or is empty: {tmp_path / 'gone'}. " in refused.stderr
    assert "unset RAY_AUTH_TOKEN_PATH" in refused.stderr and "Traceback" not in refused.stderr


def test_a_plan_hides_the_password_of_the_tracking_server(tmp_path: Path) -> None:
    write_spec(tmp_path)
    for words in (("plan", "spec.yaml"), ("plan", "spec.yaml", "--json")):
        done = run(*words, cwd=tmp_path, MLFLOW_TRACKING_URI="http://ada:canary-71@mlflow.example:5000")
        assert done.returncode == 0, done.stderr
        assert "mlflow.example:5000" in done.stdout
        assert "canary-71" not in done.stdout


def test_options_of_a_benchmark_are_refused_without_one(tmp_path: Path) -> None:
    write_spec(tmp_path)
    done = run("submit", "spec.yaml", "--steps", "3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "add --benchmark" in done.stderr
