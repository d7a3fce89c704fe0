"""Bad input: every case exits 2, names place, value and remedy, and touches neither Ray, torch nor the disk."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from bad_spec_cases import CASES, COMPARISON, SEVERAL, Case, write_case

ROOT = Path(__file__).parents[3]
BACKBONE = Path(sys.executable).parent / "backbone"

# Runs every case in one interpreter, through the function that the console script calls.
DRIVER = """
import contextlib, importlib.abc, io, json, os, sys, time
from pathlib import Path
HEAVY = ("torch", "ray", "mlflow", "transformers")

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            reached.append(name)
            raise ImportError(f"{name} was reached")

sys.meta_path.insert(0, Refuse())
import jobs.cli.app
for case in json.loads(sys.stdin.read()):
    reached, out, err = [], io.StringIO(), io.StringIO()
    os.chdir(case["folder"])
    os.environ.update(case["env"])
    sys.argv = ["backbone", *case["command"]]
    started = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            jobs.cli.app.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code = repr(error)[:300]
    for name in case["env"]:
        del os.environ[name]
    reached += [name for name in HEAVY if name in sys.modules]
    print(json.dumps({
        "name": case["name"], "code": code, "out": out.getvalue(), "err": err.getvalue(), "reached": reached,
        "seconds": time.monotonic() - started, "files": sorted(str(p.relative_to(".")) for p in Path(".").rglob("*")),
    }))
"""


def clean_environment() -> dict[str, str]:
    """This process's environment without what would point our command at a cluster, a storage or a server."""
    ours = ("RAY_", "BACKBONE_", "MLFLOW_", "CUDA_VISIBLE")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("cases")
    requests, before = [], {}
    for number, case in enumerate(CASES):
        folder = root / str(number)
        folder.mkdir()
        before[case.name] = write_case(case, folder)
        requests.append({**asdict(case), "files": None, "folder": str(folder)})
    assert len(before) == len(CASES), "two cases have the same name"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        cwd=root,
        env={**clean_environment(), "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {one["name"]: {**one, "created": sorted({*one["files"]} - {*before[one["name"]]})} for one in found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input_is_refused_with_its_place_its_value_and_a_remedy(
    case: Case, outcomes: dict[str, dict[str, Any]]
) -> None:
    outcome = outcomes[case.name]
    assert outcome["code"] == 2, outcome
    assert case.location in outcome["err"].splitlines()[0] or f"\n{case.location}" in outcome["err"], outcome["err"]
    for want in case.wants:
        assert want in outcome["err"]
    assert "Traceback" not in outcome["err"]
    assert not outcome["reached"], "a bad spec must be refused before torch, Ray and MLflow are imported"
    assert not outcome["created"], "a bad spec must leave no file behind"
    assert outcome["seconds"] < 10


def run_backbone(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The installed console script, which also says on stderr what it imported."""
    environment = {**clean_environment(), "PYTHONPROFILEIMPORTTIME": "1", **(env or {})}
    command = [str(BACKBONE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def split_imports(stderr: str) -> tuple[str, set[str]]:
    """What the command said, and the names of the packages it imported."""
    lines = stderr.splitlines()
    said = [line for line in lines if not line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    return "\n".join(said), imported


BY_NAME = {case.name: case for case in [*CASES, SEVERAL]}


@pytest.mark.parametrize("command", ["compare", "plan"])
@pytest.mark.parametrize("name", ["everything at once", "an alias bomb", "a row without an answer"])
def test_the_console_script_names_every_problem_and_imports_nothing_heavy(
    name: str, command: str, tmp_path: Path
) -> None:
    case = BY_NAME[name]
    before = write_case(case, tmp_path)
    done = run_backbone(command, "spec.yaml", cwd=tmp_path)
    said, imported = split_imports(done.stderr)
    assert (done.returncode, done.stdout) == (2, "")
    assert [want for want in case.wants if want not in said] == []
    assert len(said.splitlines()) == max(1, len(case.wants) if case is SEVERAL else 1)
    assert "pydantic" in imported, "the list of imports must be a real one"
    assert not imported & {"torch", "ray", "mlflow", "transformers"}
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["compare", "finetune"])
def test_python_m_jobs_refuses_like_the_console_script(command: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: [", encoding="utf-8")
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", f"jobs.{command}", "spec.yaml"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("spec.yaml:1: not valid YAML")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_storage_that_this_user_cannot_write_is_refused(tmp_path: Path) -> None:
    write_case(BY_NAME["an empty file"], tmp_path)
    (tmp_path / "spec.yaml").write_text(COMPARISON + "storage: closed/results\n", encoding="utf-8")
    (tmp_path / "closed").mkdir(mode=0o500)
    done = run_backbone("plan", "spec.yaml", cwd=tmp_path)
    said, _ = split_imports(done.stderr)
    assert done.returncode == 2
    assert "'storage' is 'closed/results'" in said
    assert "not writable for this user; choose another folder" in said


def test_a_good_spec_passes_the_same_gate(tmp_path: Path) -> None:
    write_case(Case("good", ()), tmp_path)
    done = run_backbone("plan", "spec.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
