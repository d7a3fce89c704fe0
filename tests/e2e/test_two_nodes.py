"""Two nodes, several users, one queue: preemption across nodes, and whatever is killed, everything ends once."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
import yaml
from product import CellFolder, Job, assert_every_step_once, wait_for
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
SURVIVOR_STEPS = 120


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


def wait_for_three_more_steps(cell: CellFolder) -> None:
    step = cell.step
    wait_for(lambda: cell.step >= step + 3, f"three more steps of {cell.path.name}", timeout_s=300)


@contextmanager
def held_from_step(step: int, cells: Sequence[CellFolder]) -> Iterator[None]:
    """In their first attempt, all of them stand still: each since it came to the step and had a checkpoint."""
    with ExitStack() as held:
        ahead = list(cells)

        def hold_who_came() -> bool:
            for cell in tuple(ahead):
                if cell.step >= step and cell.checkpoint_step:
                    held.enter_context(cell.held())
                    ahead.remove(cell)
            return not ahead

        names = ", ".join(cell.path.name for cell in cells)
        wait_for(hold_who_came, f"step {step} of {names}", timeout_s=300)
        yield


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


def survivor(cluster: TwoNodes) -> Job:
    backbones = ["tiny-llama2", "tiny-mistral", "tiny-qwen"]
    return new_job(cluster, "survivor", SURVIVOR_STEPS, backbones=backbones, seeds=[7])


def test_an_urgent_finetune_on_both_nodes_preempts_two_comparisons_which_then_resume(cluster: TwoNodes) -> None:
    steps = 100
    first = new_job(cluster, "first", steps)
    second = new_job(cluster, "second", steps, backbones=["tiny-mistral"])
    urgent = new_job(cluster, "urgent", 12, placement__workers=4, recipe__micro_batch_size=1)
    spec = yaml.safe_load(urgent.spec.read_text())
    spec["backbone"], spec["seed"] = spec.pop("backbones")[0], spec.pop("seeds")[0]
    urgent.spec.write_text(yaml.safe_dump(spec))
    owners = {"ada": first, "bob": second}  # without certificates, so that both train at once
    victims = [submit(cluster, job, f"--owner={owner}", "--no-certificate") for owner, job in owners.items()]
    cells = [victim["cells"][0]["cell_id"] for victim in victims]
    folders = [cell_of(cluster, cell_id) for cell_id in cells]
    with held_from_step(2, folders):
        finetune = submit(cluster, urgent, "--priority=10", "--owner=eve")
        wait_for(lambda: all((cell.path / "stop").exists() for cell in folders), "both asked to stop", timeout_s=60)

    job_ids = [*(victim["job_id"] for victim in victims), finetune["job_id"]]
    jobs = wait_until_over(cluster, *job_ids)
    assert {jobs[job_id]["state"] for job_id in job_ids} == {"SUCCEEDED"}
    told = {job_id: cluster.ask("status", job_id)["events"] for job_id in job_ids}
    for job_id, cell_id in zip(job_ids[:2], cells, strict=True):
        kinds = [event["kind"] for event in told[job_id]]
        assert kinds.count("granted") == 2, told[job_id]
        (why,) = [event["text"] for event in told[job_id] if event["kind"] == "stop_preempted"]
        assert why.startswith(f"preempted for {finetune['job_id']}/"), why
        assert "priority 10 over 0" in why
        assert_every_step_once(f"sqlite:///{cluster.storage / 'mlflow.db'}", cell_id, steps)
        (resumed,) = [phase["step"] for phase in cell_of(cluster, cell_id).phases(2) if phase["phase"] == "resumed"]
        assert 2 <= resumed < steps
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
    submitted = submit(cluster, survivor(cluster))
    cells = [cell["cell_id"] for cell in submitted["cells"]]
    one, two = (cell_of(cluster, cell_id) for cell_id in cells[:2])
    with held_from_step(8, [one, two]):
        assert cluster.kill("head", "ray::DispatcherActor") == 1
    wait_for_three_more_steps(one)
    with one.held(), two.held():
        wait_for(lambda: cluster.pids("head", "ray::DispatcherActor"), "the dispatcher's return", timeout_s=60)
    wait_for_three_more_steps(one)
    assert {entry["attempt"] for entry in one.spool()} == {1}, "it trains on without a dispatcher, and with the next"

    assert cluster.kill("head", "jobs.compare compare.yaml") >= 1
    wait_for(lambda: any(one.phases(2)), "a second driver", timeout_s=120)
    wait_for_three_more_steps(one)

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
        assert_every_step_once(f"sqlite:///{cluster.storage / 'mlflow.db'}", cell_id, SURVIVOR_STEPS)
    for cell_id in finished:
        assert {entry["attempt"] for entry in cell_of(cluster, cell_id).spool()} == attempts[cell_id]
    assert {run.info.status for run in runs_of(cluster, submitted["job_id"])} == {"FINISHED"}
    assert_nothing_leaks(cluster)


def test_the_same_submission_twice_is_one_job(cluster: TwoNodes) -> None:
    again = submit(cluster, survivor(cluster))
    assert again["state"] == "SUCCEEDED"
    assert len([one for one in cluster.ask("queue")["jobs"] if one["job_id"] == again["job_id"]]) == 1


def test_an_elastic_cell_goes_on_with_fewer_workers_once_a_node_is_lost(cluster: TwoNodes) -> None:
    steps = 30
    workers = {"min": 1, "max": 4}
    job = new_job(cluster, "elastic", steps, placement__workers=workers, recipe__micro_batch_size=1)
    submitted = submit(cluster, job, "--no-certificate")
    cell = cell_of(cluster, submitted["cells"][0]["cell_id"])
    with held_from_step(2, [cell]):
        assert len(list((cell.path / "workers").glob("*.json"))) == 4
        cluster.kill_node("worker")

    jobs = wait_until_over(cluster, submitted["job_id"])
    assert jobs[submitted["job_id"]]["state"] == "SUCCEEDED", jobs[submitted["job_id"]]
    contract = json.loads((cell.path / "measurement.json").read_text())["contract"]
    assert (contract["workers"], contract["global_batch_size"], contract["accumulation_steps"]) == (2, 4, 2)
    told = cluster.ask("status", submitted["job_id"])["events"]
    assert "asks for 2 of at most 4 workers: what the nodes can hold" in [event["text"] for event in told]
    assert_every_step_once(f"sqlite:///{cluster.storage / 'mlflow.db'}", cell.path.name, steps)
    assert_nothing_leaks(cluster)
