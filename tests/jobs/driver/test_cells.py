"""A driver's cells under leases of a real queue: what it writes, and what it leaves to others."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from scored_cells import grouped_job, trained

from jobs.driver import cells as cells_module
from jobs.driver import leases as leases_module
from jobs.driver.attempts import find_final_result
from jobs.driver.cell_jobs import rollout_request
from jobs.driver.cells import CellRunner
from jobs.driver.leases import Leases
from jobs.driver.requests import job_request
from jobs.queue.gangs import Node
from jobs.queue.model import Settings
from jobs.queue.queue import Queue
from jobs.queue.rows import Directives, JobRequest, Release
from jobs.queue.store import Store
from jobs.tracking.runs import Tracking
from orchestrator.cell_job import CellJob, RolloutRequest
from orchestrator.errors import ClusterError
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Cell, Plan, load_comparison
from orchestrator.results import CellResult, CellStatus, find_cell_result, save_cell_result

SPEC = """
name: cells
backbones: [tiny-llama2]
seeds: 2
storage: {storage}
recipe:
  data: {{train: "builtin:stdlib", validation: "builtin:stdlib", format: messages}}
  sequence_length: 64
  global_batch_size: 8
  micro_batch_size: 8
  budget: {{kind: steps, amount: 1}}
placement: {{workers: 1, gpus_per_worker: 0, cpus_per_worker: 1}}
"""


class Shared:
    """The queue of a cluster with one node, in this process."""

    is_shared = True

    def __init__(self, cpus: int = 2, faults: int = 0):
        self.queue = Queue(Store("sqlite://"), Settings())
        nodes = [Node("node", 0, cpus, 8, None)]
        self.queue.see_nodes(nodes, nodes)
        self.queue.decide()
        self._faults = faults

    def attach(self, request: JobRequest, driver: str) -> None:
        if self._faults:
            self._faults -= 1
            raise ClusterError("the dispatcher did not answer")
        self.queue.attach(request, driver)
        self.queue.decide()

    def heartbeat(self, job_id: str, driver: str, released: Sequence[Release]) -> Directives | None:
        return self.queue.heartbeat_and_decide(job_id, driver, released)

    def finish(self, job_id: str, driver: str, exit_code: int) -> None:
        self.queue.finish(job_id, driver, exit_code)


@dataclass(frozen=True)
class BareJobs:
    """A plan's cells without data: nothing here looks at it."""

    plan: Plan

    def folder(self, cell: Cell) -> Path:
        return self.plan.cell_folder(cell)

    def find_finished(self, cell: Cell) -> CellResult | None:
        return find_final_result(self.folder(cell))

    def make(self, cell: Cell, attempt: int, left_s: float) -> CellJob:
        return CellJob(cell, attempt, self.folder(cell), None, "", 0.0, 0.0)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    spec = tmp_path / "compare.yaml"
    spec.write_text(SPEC.format(storage=tmp_path / "storage"))
    return load_comparison(spec)


def run(
    plan: Plan,
    shared: Shared,
    train: Callable[[Cell], None] = lambda cell: None,
    ended: Callable[[CellResult], object] = lambda result: None,
) -> list[CellResult]:
    """All of a plan's cells, as a launch would run them; `train` stands for the workers."""
    leases = Leases(shared, job_request(plan, plan.cells), "driver")

    def run_attempt(job: Any, placement: Any, nodes: Any) -> None:
        train(job.cell)

    runner = CellRunner(BareJobs(plan), plan.job.policy, (), lambda text: None, leases, run_attempt, ended)
    leases.start()
    results = runner.run(list(plan.cells))
    leases.finish(0)
    return results


def test_what_another_job_finished_meanwhile_outlives_the_stop_of_this_one(plan: Plan) -> None:
    shared = Shared(cpus=1)
    second = plan.cells[1]

    def train(cell: Cell) -> None:
        """The other job finishes the second cell, and this one is stopped, while the first one trains."""
        done = CellResult(second.cell_id, second.backbone.backbone_id, second.seed, CellStatus.DIVERGED, attempts=1)
        save_cell_result(plan.cell_folder(second), replace(done, folder=str(plan.cell_folder(second))))
        shared.queue.stop(plan.job_id, "stopped by ada")

    results = run(plan, shared, train)
    assert [result.status for result in results] == [CellStatus.SUCCEEDED, CellStatus.DIVERGED]
    stored = find_cell_result(plan.cell_folder(second))
    assert stored is not None and stored.status is CellStatus.DIVERGED


def test_a_cell_that_never_got_a_lease_leaves_no_result(plan: Plan) -> None:
    shared = Shared(cpus=1)
    results = run(plan, shared, lambda cell: shared.queue.stop(plan.job_id, "stopped by ada") and None)
    assert [result.status for result in results] == [CellStatus.SUCCEEDED, CellStatus.CANCELLED]
    assert results[1].failure == "stopped by ada"
    assert find_cell_result(plan.cell_folder(plan.cells[1])) is None


def test_a_cell_that_somebody_else_holds_waits_for_another_lease(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that was cancelled may need minutes for its checkpoint; this one's other cells go on."""
    monkeypatch.setattr(cells_module, "LOCK_LIMIT_S", 0.2)
    shared, held = Shared(), plan.cell_folder(plan.cells[0])
    held.mkdir(parents=True)
    lock = FileLock(held / "lock", thread_local=False)
    lock.acquire()
    threading.Timer(1.5, lock.release).start()
    assert [result.status for result in run(plan, shared)] == [CellStatus.SUCCEEDED] * 2
    back = [event for event in shared.queue.events(plan.job_id) if event.kind == "given_back"]
    assert back and "is being trained by another process" in back[0].text


def test_a_driver_waits_for_a_dispatcher_that_starts_anew(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "HEARTBEAT_S", 0.05)
    assert [result.status for result in run(plan, Shared(faults=2))] == [CellStatus.SUCCEEDED] * 2
    monkeypatch.setattr(leases_module, "ATTACH_LIMIT_S", 0.1)
    with pytest.raises(ClusterError, match="did not answer"):
        run(plan, Shared(faults=1000))


def test_cells_go_on_where_nobody_can_be_told_that_one_ended(tmp_path: Path) -> None:
    plan = load_comparison(grouped_job(tmp_path, backbones=["tiny-llama2"], seeds=2).spec)

    def ended(result: CellResult) -> None:
        raise OSError(28, "No space left on device")

    def train(cell: Cell) -> None:
        trained(plan, [cell], {"tiny-llama2": 2.0})

    results = run(plan, Shared(cpus=2), train, ended)
    assert [result.status for result in results] == [CellStatus.SUCCEEDED] * 2


def test_a_cell_that_ended_has_ended_in_mlflow_while_another_one_trains(tmp_path: Path, uri: str) -> None:
    job = grouped_job(tmp_path, backbones=["tiny-llama2"], seeds=2, tracking__uri=uri)
    plan = load_comparison(job.spec)
    first, second = plan.cells
    tracking = Tracking(plan, "backbone compare", None)
    tracking.start()
    runs = tracking.run_ids(60)
    seen: list[str] = []

    def train(cell: Cell) -> None:
        if cell == first:
            trained(plan, [cell], {"tiny-llama2": 2.0})
            return
        deadline = time.monotonic() + 30
        while (found := MlflowClient(uri).get_run(runs[first.cell_id])).info.status == "RUNNING":
            assert time.monotonic() < deadline, "the first cell's run goes on"
            time.sleep(0.1)
        other = MlflowClient(uri).get_run(runs[second.cell_id])
        seen.extend([found.info.status, found.data.tags["cell_status"], other.info.status])

    results = run(plan, Shared(cpus=2), train, tracking.finish_child)  # room for one cell
    assert seen == ["FINISHED", "SUCCEEDED", "RUNNING"]
    assert CellFolder(plan.cell_folder(first)).item_table.exists()
    tracking.finish_parent({}, "no verdict", results, (), "FINISHED")
    assert tracking.close(60) == []


def test_rollouts_are_the_same_where_the_same_actions_are_taken_by_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, episode in (("train", 0), ("validation", 1)):
        row = {"instruction": split, "action": [0.5], "episode": episode}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    spec = SPEC.format(storage=tmp_path).replace("builtin:stdlib", "train.jsonl", 1)
    spec = spec.replace("builtin:stdlib", "validation.jsonl").replace("messages", "actions, actions: {chunk: 3}")

    def digest(asked: str) -> str:
        evaluate = f"  evaluate: {{rollouts: {{environment: {asked}}}}}\n"
        (tmp_path / "spec.yaml").write_text(spec.replace("placement:", f"{evaluate}placement:"))
        request = rollout_request(load_comparison(tmp_path / "spec.yaml"))
        assert request is not None
        return request.digest

    room = "minigrid:BabyAI-GoToLocal-v0"
    assert digest(room) == digest(f"{room}, execute: 3") == RolloutRequest(room, 50, 0).digest
    assert digest(f"{room}, execute: 2") == RolloutRequest(room, 50, 0, execute=2).digest

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for line in ("size = 5", "size = 6"):
        (tmp_path / "my_rooms.py").write_text(line)
        digests.append(digest("'minigrid:my_rooms:Mine-v0'"))
    assert len(set(digests)) == 2
