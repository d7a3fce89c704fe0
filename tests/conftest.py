"""What tests of several packages share."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings

KIT = Path(__file__).parents[1].parent / "shared" / "kit"
OURS = ("MLFLOW_", "RAY_", "BACKBONE_", "HF_")  # what would point the product to another cluster, server or storage
COMMAND_LIMIT_S = 300

Backbone = Callable[..., subprocess.CompletedProcess[str]]

# Files that take minutes begin first, lest one of pytest-xdist's processes be left alone with one at the end.
LONGEST = (
    "test_tutorials",
    "test_submission",
    "test_interrupted_training",
    "test_demo_pretrained",
    "test_growth",
    "test_tuned_comparison",
    "test_random_kills",
    "test_sharded_training",
    "test_families_sharded",
    "test_gangs",
    "test_finetune",
    "test_hangs",
    "test_compiled_layers",
)


def pytest_sessionfinish() -> None:
    """Ends what `local_ray` started."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; within a file all stays as it is."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell without job control starts its background commands with SIGINT ignored, and they pass that on to what they
# start: without this line no command under test could be interrupted where the suite itself runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def local_ray() -> None:
    """One Ray on this machine for all tests of a process; more logical CPUs than a small machine has cores.

    It ends with the process, or with the command that a test runs in it and that starts its own: see `no_ray`.
    """
    import ray

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


@pytest.fixture(scope="module")
def no_ray() -> None:
    """Of tests that run a command in this process, which starts a Ray of its own."""
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: creating them takes seconds, copying them does not."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    """Of an MLflow database that holds nothing yet."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def kit() -> Path:
    """Real tokenizers, small pretrained models, real data; tests that need them are skipped without."""
    if not KIT.is_dir():
        pytest.skip(f"the kit of real tokenizers and models is not at {KIT}")
    return KIT


@pytest.fixture(scope="session")
def run_backbone() -> Backbone:
    """`run_backbone(folder, "finetune", "spec.yaml")` is what a user types there; stdout and stderr are one."""

    def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        command = [sys.executable, "-m", "jobs.cli", *arguments]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=COMMAND_LIMIT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(command, process.returncode, output)

    return run
