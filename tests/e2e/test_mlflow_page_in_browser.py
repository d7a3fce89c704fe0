"""What a person sees on MLflow's own page of a cell, in a real browser against a real server."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from product import clean_environment, free_port, wait_until_it_answers

from jobs.cluster.endpoint import http_get
from orchestrator.layout import Storage
from orchestrator.results import EvaluationPoint, StepMetrics
from orchestrator.tracking.run import TrackedRun
from orchestrator.tracking.spool import SpoolWriter
from orchestrator.tracking.system import sampling
from orchestrator.tracking.writer import RunWriter

CHROMIUM = shutil.which("chromium")
TAGS = {"comparison_id": "page-0123456789", "backbone_id": "tiny-qwen", "seed": "0", "attempt": "1"}
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    store = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination",
        str(tmp_path / "files"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *store], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_the_page_of_a_cell_shows_its_name_status_metrics_and_tags(server: str, tmp_path: Path) -> None:
    writer = RunWriter(server, "backbones", tmp_path / "artifacts")
    parent = TrackedRun(
        "page-0123456789", tmp_path / "parent.json", {**TAGS, "role": "comparison", "cell_id": "all"}, {}
    )
    cell_id = "tiny-qwen-s0-abcdef0123"
    child = TrackedRun(
        cell_id,
        tmp_path / "child.json",
        {**TAGS, "role": "cell", "cell_id": cell_id},
        {"recipe.precision": "bf16"},
        spool_folder=_spool(tmp_path / "spool"),
        parent=parent,
    )
    writer.start()
    for run in (parent, child):
        writer.track(run)
        writer.finish(run, "FINISHED")
    assert writer.close(timeout_s=120) == []

    page = _page(f"{server}/#/experiments/1/runs/{child.sent.run_id}", tmp_path / "profile")

    for text in (cell_id, "Finished", "val_bits_per_byte", "grad_norm", "comparison_id", "page-0123456789"):
        assert text in page, text
    overview = _page(f"{server}/#/experiments/1/runs", tmp_path / "profile")
    assert parent.name in overview


def test_the_command_opens_the_page_that_compares_the_cells_of_the_newest_job_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    storage = Storage(tmp_path)
    writer = RunWriter(f"sqlite:///{storage.mlflow_database}", "backbones", storage.mlflow_artifacts)
    writer.start()
    for name in ("older-0123456789", "newer-0123456789"):
        folder = storage.job(name)
        tags = {**TAGS, "comparison_id": name}
        parent = TrackedRun(name, folder.parent_run, {**tags, "role": "comparison"}, {})
        cells = [f"tiny-{family}-s0-{name}" for family in ("qwen", "llama2")]
        for run in (
            parent,
            *(_child(cell, folder.child_run(cell), tags, parent) for cell in cells),
        ):
            writer.track(run)
            writer.finish(run, "FINISHED")
    assert writer.close(timeout_s=120) == []

    command = [sys.executable, "-u", "-m", "jobs.cli", "mlflow", "--no-browser", "--storage", str(tmp_path)]
    shown = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, text=True)
    assert shown.stdout is not None
    try:
        said = next(line for line in shown.stdout if line.startswith("newer-0123456789: "))
        address = said.partition(": ")[2].strip()
        page = _page(address, tmp_path / "profile")
    finally:
        shown.send_signal(signal.SIGINT)
    assert shown.wait(timeout=60) == 0
    assert "Comparing 2 Runs from 1 Experiment" in page
    assert all(cell in page for cell in cells)
    axes = re.findall(r'class="axis-title"[^>]* data-unformatted="([^"]*)"', page)
    assert axes == ["backbone_id", "val_bits_per_byte"]  # the parameters that differ, and one metric
    assert http_get(f"http://{urlsplit(address).netloc}/health").status is None  # nobody listens there any more


def _child(cell: str, state_file: Path, tags: dict[str, str], parent: TrackedRun) -> TrackedRun:
    """A cell's run on a machine that was sampled from before the first score on."""
    spool = state_file.with_suffix("")
    with sampling(spool, is_first_on_node=True):
        pass
    params = {"backbone_id": cell.partition("-s0")[0]}
    return TrackedRun(cell, state_file, {**tags, "role": "cell"}, params, spool_folder=_spool(spool), parent=parent)


def _spool(folder: Path) -> Path:
    spool = SpoolWriter(folder, attempt=1)
    spool.evaluation(EvaluationPoint(0, 0.0, 0, 0, 0.0, 8.345, 9.321))
    for step in range(1, 6):
        spool.step(StepMetrics(step, 5.0 / step, 1.0, 1e-3, 2.0, step, 10 * step, 40 * step, step / 5, 0.1, 100.0, 0.5))
    spool.evaluation(EvaluationPoint(5, 1.0, 200, 50, 0.5, 2.345, 4.321))
    spool.close()
    return folder


def _page(address: str, profile: Path) -> str:
    """The page after its scripts ran."""
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", "--no-sandbox", f"--user-data-dir={profile}"]
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", *quiet, "--virtual-time-budget=60000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
