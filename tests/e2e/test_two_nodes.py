"""Two nodes, several users, one queue: preemption across nodes, and whatever is killed, everything ends once."""

from collections.abc import Iterator

import pytest
import yaml
from product import CellFolder, assert_every_step_once, wait_for
from two_nodes import (
    ADDRESSES,
    TwoNodes,
    assert_nothing_leaks,
    attempts_of,
    cell_of,
    new_job,
    runs_of,
    submit,
    two_nodes,
    wait_until_over,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


def wait_for_step(cluster: TwoNodes, cell_id: str, step: int) -> None:
    cell = cell_of(cluster, cell_id)
    wait_for(lambda: cell.step >= step and cell.checkpoint_step, f"step {step} of {cell_id}", timeout_s=300)


def wait_until_it_trains(cluster: TwoNodes, cell_id: str) -> None:
    cell = cell_of(cluster, cell_id)
    wait_for(lambda: cell.step >= 2, f"two steps of {cell_id}", timeout_s=180)


def training_on_the_worker(cluster: TwoNodes, cells: list[str]) -> CellFolder | None:
    """A cell whose latest attempt takes steps on the second node."""
    for cell in (cell_of(cluster, cell_id) for cell_id in cells):
        file = cell.path / "workers" / "rank-0.json"
        steps = cell.entries("step")
        if file.exists() and steps and not (cell.path / "result.json").exists():
            worker = yaml.safe_load(file.read_text())
            if worker["node"] == ADDRESSES["worker"] and steps[-1]["attempt"] == worker["attempt"]:
                return cell
    return None


def test_an_urgent_finetune_on_both_nodes_preempts_two_comparisons_which_then_resume(cluster: TwoNodes) -> None:
    steps = {"first": 800, "second": 800}  # enough to train still when the urgent one is planned
    first = new_job(cluster, "first", steps["first"])
    second = new_job(cluster, "second", steps["second"], backbones=["tiny-mistral"])
    urgent = new_job(cluster, "urgent", 12, placement__workers=4, recipe__micro_batch_size=1)
    spec = yaml.safe_load(urgent.spec.read_text())
    spec["backbone"], spec["seed"] = spec.pop("backbones")[0], spec.pop("seeds")[0]
    urgent.spec.write_text(yaml.safe_dump(spec))
    owners = {"ada": first, "bob": second}  # without certificates, so that both train at once
    victims = [submit(cluster, job, f"--owner={owner}", "--no-certificate") for owner, job in owners.items()]
    cells = [victim["cells"][0]["cell_id"] for victim in victims]
    for cell_id in cells:
        wait_until_it_trains(cluster, cell_id)
    finetune = submit(cluster, urgent, "--priority=10", "--owner=eve")

    job_ids = [*(victim["job_id"] for victim in victims), finetune["job_id"]]
    jobs = wait_until_over(cluster, *job_ids)
    assert {jobs[job_id]["state"] for job_id in job_ids} == {"SUCCEEDED"}
    told = {job_id: cluster.ask("status", job_id)["events"] for job_id in job_ids}
    for job_id, cell_id, number in zip(job_ids[:2], cells, steps.values(), strict=True):
        kinds = [event["kind"] for event in told[job_id]]
        assert kinds.count("granted") == 2, told[job_id]
        (why,) = [event["text"] for event in told[job_id] if event["kind"] == "stop_preempted"]
        assert why.startswith(f"preempted for {finetune['job_id']}/"), why
        assert "priority 10 over 0" in why
        assert_every_step_once(f"sqlite:///{cluster.storage / 'mlflow.db'}", cell_id, number)
        (resumed,) = [phase["step"] for phase in cell_of(cluster, cell_id).phases(2) if phase["phase"] == "resumed"]
        assert 2 <= resumed < number
        assert sorted((run.data.tags["attempt"], run.info.status) for run in runs_of(cluster, job_id)) == [
            ("1", "FINISHED"),
            ("2", "FINISHED"),
        ]
    (grant,) = [event["text"] for event in told[finetune["job_id"]] if event["kind"] == "granted"]
    assert grant.endswith("on 2 nodes")
    nodes = (cell_of(cluster, finetune["cells"][0]["cell_id"]).path / "workers").glob("*.json")
    assert {yaml.safe_load(file.read_text())["node"] for file in nodes} == {"10.77.0.1", "10.77.0.2"}
    assert_nothing_leaks(cluster)


def test_whatever_is_killed_the_job_ends_once_and_nothing_leaks(cluster: TwoNodes) -> None:
    steps = 500
    job = new_job(cluster, "survivor", steps, backbones=["tiny-llama2", "tiny-mistral", "tiny-qwen"], seeds=[7])
    submitted = submit(cluster, job)
    cells = [cell["cell_id"] for cell in submitted["cells"]]
    one, two, _ = cells
    wait_for_step(cluster, one, 8)
    wait_for_step(cluster, two, 8)

    assert cluster.kill("head", "ray::DispatcherActor") == 1
    wait_for(lambda: cluster.pids("head", "ray::DispatcherActor"), "the dispatcher's return", timeout_s=60)
    before = cell_of(cluster, one).step
    wait_for_step(cluster, one, before + 3)
    assert {entry["attempt"] for entry in cell_of(cluster, one).spool()} == {1}, "it trains on without a dispatcher"

    assert cluster.kill("head", "jobs.compare compare.yaml") >= 1
    wait_for(lambda: any(cell_of(cluster, one).phases(2)), "a second driver", timeout_s=120)
    wait_for_step(cluster, one, before + 6)

    victim = wait_for(lambda: training_on_the_worker(cluster, cells), "a cell on the worker", timeout_s=180)
    attempt = attempts_of(victim)
    cluster.kill_node("worker")
    cluster.start_worker()
    wait_for(lambda: attempts_of(victim) > attempt, f"another attempt at {victim.path.name}", timeout_s=240)

    assert cluster.kill("head", "gcs_server") == 1
    for node in ("head", "worker"):
        cluster.kill_node(node)
    finished = {c for c in cells if (cell_of(cluster, c).path / "result.json").exists()}
    attempts = {c: {entry["attempt"] for entry in cell_of(cluster, c).spool()} for c in finished}
    cluster.start_ray()

    jobs = wait_until_over(cluster, submitted["job_id"])
    assert jobs[submitted["job_id"]]["state"] == "SUCCEEDED", jobs[submitted["job_id"]]
    for cell_id in cells:
        assert_every_step_once(f"sqlite:///{cluster.storage / 'mlflow.db'}", cell_id, steps)
    for cell_id in finished:
        assert {entry["attempt"] for entry in cell_of(cluster, cell_id).spool()} == attempts[cell_id]
    assert {run.info.status for run in runs_of(cluster, submitted["job_id"])} == {"FINISHED"}
    assert_nothing_leaks(cluster)


def test_the_same_submission_twice_is_one_job(cluster: TwoNodes) -> None:
    job = new_job(cluster, "survivor", 500, backbones=["tiny-llama2", "tiny-mistral", "tiny-qwen"], seeds=[7])
    again = submit(cluster, job)
    assert again["state"] == "SUCCEEDED"
    assert len([one for one in cluster.ask("queue")["jobs"] if one["job_id"] == again["job_id"]]) == 1
