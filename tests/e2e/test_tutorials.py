"""The tutorials as a reader types them: every block of commands, page after page, in one folder and on one cluster.

A block with a title is not run; of each `backbone` command in it, the options are looked up in its help.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from product import ROOT, clean_environment
from typer.testing import CliRunner

from jobs.cli.app import app

TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```bash(?P<title> title=[^\n]*)?\n(?P<script>.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = (
    "compare",
    "finetune",
    "use-the-winner",
    "add-a-backbone",
    "cluster",
    "schedule",
)  # each builds on those before
LIMIT_S = 300


def blocks(page: str, *, titled: bool) -> list[str]:
    text = (TUTORIALS / f"{page}.md").read_text(encoding="utf-8")
    return [found["script"] for found in BLOCK.finditer(text) if (found["title"] is not None) == titled]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Whoever reads all pages: a folder, and an environment that lasts from page to page."""
    folder = tmp_path_factory.mktemp("tutorials")
    commands = folder / "bin"
    commands.mkdir()
    for name, module in (("backbone", "jobs.cli"), ("python", "")):
        launcher = commands / name
        words = [sys.executable, *(["-m", module] if module else [])]
        launcher.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        launcher.chmod(0o755)
    for place in ("reader", "home"):
        (folder / place).mkdir()
    environment = {
        **clean_environment(),
        "PWD": str(folder / "reader"),
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": tempfile.gettempdir(),
        "HOME": str(folder / "home"),  # where the cluster's token and caches go
    }
    yield environment
    down = ["backbone", "down", "--storage", str(folder / "home" / "backbone")]
    subprocess.run(down, cwd=environment["PWD"], env=environment, timeout=LIMIT_S, check=False)


@pytest.mark.e2e
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_tutorial_works(reader: dict[str, str], page: str) -> None:
    script = "\n".join(["set -exo pipefail", *blocks(page, titled=False), "set +x; export -p > ../exported.sh"])
    exported = Path(reader["PWD"]).parent / "exported.sh"
    before = f". {exported}\n" if exported.exists() else ""
    ran = subprocess.run(
        ["bash", "-c", before + script],
        cwd=reader["PWD"],
        env=reader,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def test_every_tutorial_is_run_in_the_order_of_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    (tutorials,) = [part["Tutorials"] for part in site["nav"] if "Tutorials" in part]
    assert [path for entry in tutorials for path in entry.values()] == [f"tutorials/{page}.md" for page in PAGES]
    assert {path.stem for path in TUTORIALS.glob("*.md")} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_is_not_run_says_why_and_names_commands_and_options_that_exist(page: str) -> None:
    text = (TUTORIALS / f"{page}.md").read_text(encoding="utf-8")
    assert all("Not run by the tests: " in found["title"] for found in BLOCK.finditer(text) if found["title"])
    for line in "".join(blocks(page, titled=True)).splitlines():
        program, *words = shlex.split(line, comments=True)
        if program != "backbone":
            continue
        command = words[: 2 if words[0] == "schedule" else 1]
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, line
        assert not [word for word in words if word.startswith("--") and word not in shown.output], line
