"""The comparison of `make demo-robot`: how to run it stands in its file, and its backbones are as large as they say."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.environments.demonstrations import record_demonstrations

ROOT = Path(__file__).parents[1]
COMPARISON, PLUGIN = (Path("examples/robot") / name for name in ("compare.yaml", "grid_eyes.py"))
TEXT = (ROOT / COMPARISON).read_text("utf-8")

# In a process of its own: what a plugin registers stays registered.
PLANNED = f"""
import json, runpy
from pathlib import Path
runpy.run_path("{PLUGIN}")
from backbones.registry import build
from orchestrator.planning.plan import load_plan
plan = load_plan(Path("{COMPARISON}"))
counted = {{
    spec.backbone_id: [spec.parameters, sum(each.numel() for each in build(spec).llm.parameters())]
    for spec in plan.backbones
}}
print(json.dumps({{"feasible": not plan.infeasible, "cells": len(plan.cells), "sizes": counted}}))
"""


def test_it_plans_with_its_plugin_on_what_the_expert_of_its_room_does(tmp_path: Path) -> None:
    pytest.importorskip("minigrid", reason="MiniGrid is not installed: pip install 'backbone-orchestrator[minigrid]'")
    shutil.copytree(ROOT / "examples" / "robot", tmp_path / "examples" / "robot")
    spec = yaml.safe_load(TEXT)
    environment = spec["recipe"]["evaluate"]["rollouts"]["environment"]
    record_demonstrations(environment, 20, 0, tmp_path / "runs" / "rooms", lambda *_: None)
    command = [sys.executable, "-c", PLANNED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (found["feasible"], found["cells"]) == (True, len(spec["backbones"]) * spec["seeds"])
    assert [*found["sizes"]] == spec["backbones"]
    assert all(declared == built for declared, built in found["sizes"].values()), found["sizes"]


def test_make_runs_what_its_head_says() -> None:
    header = re.findall(r"^# (COMMAND|HARDWARE|RUNTIME|RESULT): +(.+)$", TEXT, re.MULTILINE)
    assert {name for name, _ in header} == {"COMMAND", "HARDWARE", "RUNTIME", "RESULT"}
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("$@", "runs/rooms").replace("$(BIN)/", "")
    commands = re.findall(r"^# +(backbone .+)$", TEXT, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert f"\t{command}\n" in makefile
    environment = yaml.safe_load(TEXT)["recipe"]["evaluate"]["rollouts"]["environment"]
    assert f"demonstrations {environment} runs/rooms" in commands[0]
