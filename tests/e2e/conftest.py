"""Jobs that the end-to-end tests start, and the run without any fault that they are compared with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from product import DETERMINISTIC, Job, histories, sqlite_uri, write_job


@pytest.fixture
def new_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Writes jobs below the test's folder, and ends whatever they left running when the test is over."""
    jobs: list[Job] = []

    def create(name: str = "job", **changes: Any) -> Job:
        jobs.append(write_job(tmp_path / name, **changes))
        return jobs[-1]

    yield create
    for job in jobs:
        job.kill_leftovers()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Job]:
    """Both tiny backbones, trained without a fault: what every disturbed run must agree with.

    Trained once, by the first of pytest-xdist's processes that needs it; the others find it.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "undisturbed"
    trained = folder / "trained"
    with FileLock(folder.with_suffix(".lock")):
        job = write_job(folder, backbones=["tiny-llama2", "tiny-mistral"])
        if not trained.exists():
            launch = job.run()
            assert launch.process.returncode == 0, launch.output
            trained.touch()
    yield job
    job.kill_leftovers()


@pytest.fixture(scope="session")
def expected(undisturbed: Job) -> Callable[[str], dict[str, list[tuple[int, float]]]]:
    """What MLflow has of a cell that nothing disturbed: (step, value) by metric."""

    def of(cell_id: str) -> dict[str, list[tuple[int, float]]]:
        return histories(sqlite_uri(undisturbed), cell_id, DETERMINISTIC)

    return of
