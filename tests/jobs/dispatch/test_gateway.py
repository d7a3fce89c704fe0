"""What a client's question loads: the gateway, and the actor's class, which Ray imports where it finds the actor."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOREIGN = ("torch", "transformers", "mlflow", "ray")
ROOMS = (
    *("backbones", "orchestrator.data", "orchestrator.planning", "orchestrator.spec_files", "orchestrator.training"),
    *("orchestrator.tracking", "orchestrator.attempt", "orchestrator.certificate"),
    *("jobs.queue", "jobs.driver", "jobs.results", "jobs.report", "jobs.simulation", "jobs.tracking", "jobs.cli"),
)


def _loaded_by(module: str) -> set[str]:
    """Every module that a fresh Python has loaded after importing this one."""
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["jobs.dispatch.gateway", "jobs.dispatch.actor"])
def test_a_question_loads_no_planning_no_driver_no_queue_and_no_heavy_library(module: str) -> None:
    loaded = _loaded_by(module)
    assert module in loaded
    assert sorted(loaded.intersection((*FOREIGN, *ROOMS))) == []


def test_planning_a_submission_loads_them_so_the_gateway_may_only_import_it_lazily() -> None:
    loaded = _loaded_by("jobs.dispatch.planning")
    assert {"backbones", "jobs.driver", "jobs.queue", "orchestrator.planning"} <= loaded
