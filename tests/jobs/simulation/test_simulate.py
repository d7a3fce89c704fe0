"""Whole traces through the simulator: nothing starves, nothing is lost, and the makespan is near its bound."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulate import cluster, mixed_jobs
from jobs.queue.gangs import Demand, Node
from jobs.queue.model import OwnerRules, QueuedCell, Settings
from jobs.simulation.figures import lower_bound_s, simulation_document, summary
from jobs.simulation.page import render_simulation
from jobs.simulation.simulate import POLICIES, Simulation, TraceJob, simulate
from jobs.simulation.trace import load_cluster, load_trace
from orchestrator.errors import SpecError

ROOT = Path(__file__).parents[3]
TRACE, CLUSTER = ROOT / "examples" / "trace.jsonl", ROOT / "examples" / "simulated-cluster.yaml"
RULES = Settings(ageing_window_s=300, checkpoint_s=5, share_half_life_s=1000)
LIMITS = replace(RULES, owners={"ada": OwnerRules(gpu_quota=6), "bob": OwnerRules(gpu_hours=0.2)})
NODES = (Node("n0", 4), Node("n1", 4), Node("n2", 2))
PROPERTY = settings(max_examples=60, deadline=None)


@st.composite
def traces(draw: st.DrawFn) -> list[TraceJob]:
    """Jobs with exact predictions."""
    jobs = []
    for number in range(draw(st.integers(1, 25))):
        size = draw(st.sampled_from([1, 1, 2, 4]))
        workers = draw(st.integers(1, {1: 10, 2: 5, 4: 2}[size]))
        duration_s, submitted_s = float(draw(st.integers(1, 200))), float(draw(st.integers(0, 600)))
        owner, priority = draw(st.sampled_from(["ada", "bob"])), draw(st.integers(0, 2))
        demand, stoppable = Demand(workers, size), draw(st.booleans())
        cell = QueuedCell(f"job-{number:02d}", owner, demand, duration_s, submitted_s, priority, stoppable)
        jobs.append(TraceJob(cell, duration_s))
    return jobs


def most_in_use(simulation: Simulation, node_id: str) -> int:
    """The most GPUs of one node that were ever leased at once."""
    changes = []
    for segment in simulation.segments:
        per_worker = segment.gpus // sum(count for _, count in segment.placement)
        gpus = dict(segment.placement).get(node_id, 0) * per_worker
        changes += [(segment.start_s, 1, gpus), (segment.end_s, 0, -gpus)]
    used = most = 0
    for _, _, gpus in sorted(changes):
        used += gpus
        most = max(most, used)
    return most


@PROPERTY
@given(traces(), st.sampled_from(list(POLICIES)))
def test_every_job_trains_exactly_as_long_as_it_takes(jobs: list[TraceJob], policy: str) -> None:
    run = simulate(jobs, NODES, RULES, policy)
    assert not run.unfinished
    for job in jobs:
        mine = [segment for segment in run.segments if segment.job_id == job.cell.cell_id]
        assert [segment.ended for segment in mine] == ["preempted"] * (len(mine) - 1) + ["finished"]
        writing_s = RULES.checkpoint_s * (len(mine) - 1)
        assert sum(one.end_s - one.start_s for one in mine) == pytest.approx(job.duration_s + writing_s)
        assert mine[0].start_s >= job.cell.submitted_s
    for node in NODES:
        assert most_in_use(run, node.node_id) <= node.gpus
    assert max(segment.end_s for segment in run.segments) >= lower_bound_s(jobs, NODES) - 1e-6


@PROPERTY
@given(traces())
def test_waiting_is_bounded_by_the_jobs_that_may_go_first(jobs: list[TraceJob]) -> None:
    """Each of those delays by at most two of the longest durations: while it is promised nodes, and while it runs."""
    run = simulate(jobs, NODES, replace(RULES, preemption=False))
    longest_s = max(job.duration_s for job in jobs)
    for job in jobs:
        ahead = sum(RULES.level(other.cell) >= RULES.level(job.cell) for other in jobs) - 1
        wait_s = run.first_starts[job.cell.cell_id] - job.cell.submitted_s
        assert wait_s <= (2 * ahead + 1) * longest_s


def test_a_wide_job_starts_among_endless_small_ones_of_higher_priority() -> None:
    wide = TraceJob(QueuedCell("wide", "ada", Demand(10), 100.0, 0.0), 100.0)
    small = [
        TraceJob(QueuedCell(f"small-{n:04d}", "bob", Demand(1), 97.0, 10.0 * n, priority=3), 97.0) for n in range(1000)
    ]
    run = simulate([wide, *small], NODES, RULES)
    assert run.first_starts["wide"] <= 4 * RULES.ageing_window_s + 2 * 100


@PROPERTY
@given(traces(), st.sampled_from([RULES, LIMITS]))
def test_the_same_trace_gives_the_same_schedule(jobs: list[TraceJob], rules: Settings) -> None:
    one, other = simulate(jobs, NODES, rules), simulate(jobs[::-1], NODES, rules)
    assert (one.segments, one.unfinished) == (other.segments, other.unfinished)


@PROPERTY
@given(traces(), st.sampled_from(list(POLICIES)))
def test_limits_hold_over_whole_traces(jobs: list[TraceJob], policy: str) -> None:
    run = simulate(jobs, NODES, LIMITS, policy)
    finished = {one.job_id for one in run.segments if one.ended == "finished"}
    assert finished | set(run.unfinished) == {job.cell.cell_id for job in jobs}
    assert not finished & set(run.unfinished)
    assert all("quota" in why or "budget" in why for why in run.unfinished.values())
    mine = [one for one in run.segments if one.owner == "ada"]
    for moment in [one.start_s for one in mine]:
        assert sum(one.gpus for one in mine if one.start_s <= moment < one.end_s) <= 6
    used_h = sum(one.gpus * (one.end_s - one.start_s) for one in run.segments if one.owner == "bob") / 3600
    assert used_h <= 0.2 + 10 * LIMITS.checkpoint_s / 3600 + 1e-6


def test_a_high_priority_job_preempts_and_the_victim_goes_on_where_it_was() -> None:
    jobs = [
        TraceJob(QueuedCell("low", "ada", Demand(10), 200.0, 0.0), 200.0),
        TraceJob(QueuedCell("high", "bob", Demand(4), 50.0, 100.0, priority=5), 50.0),
    ]
    low, high, rest = simulate(jobs, NODES, RULES).segments
    assert (low.job_id, low.start_s, low.end_s, low.ended) == ("low", 0.0, 105.0, "preempted")
    assert (high.job_id, high.start_s, high.end_s) == ("high", 105.0, 155.0)
    assert (rest.job_id, rest.start_s, rest.end_s, rest.ended) == ("low", 155.0, 255.0, "finished")
    assert "preempted for high, priority 5 over 0" in low.stopped_because


def test_a_budget_stops_at_a_checkpoint_and_says_so() -> None:
    rules = replace(RULES, owners={"ada": OwnerRules(gpu_hours=1.0)})
    jobs = [
        TraceJob(QueuedCell(f"job-{n}", "ada", Demand(10), 300.0, 0.0), 300.0) for n in range(3)
    ]  # 10 GPUs: 1 GPU-hour is 360 s
    run = simulate(jobs, NODES, rules)
    assert [(one.start_s, one.end_s, one.ended) for one in run.segments] == [
        (0.0, 300.0, "finished"),
        (300.0, 365.0, "budget"),
    ]
    assert set(run.unfinished.values()) == {"ada has used the budget of 1 GPU-hours"}


def ratio(jobs: Sequence[TraceJob], policy: str = "backbone") -> float:
    nodes = cluster(1000)
    return float(summary(simulate(jobs, nodes, Settings(), policy), jobs, nodes)["makespan_over_bound"])


def test_3000_mixed_jobs_on_1000_gpus_end_near_the_lower_bound() -> None:
    exact = mixed_jobs(3000, seed=1)
    assert ratio(exact) <= 1.03
    assert ratio(mixed_jobs(3000, seed=1, error=0.5)) <= 1.12
    assert ratio(exact) < ratio(exact, "fifo")


def test_the_lower_bound_sees_work_bundles_labels_and_arrivals() -> None:
    def bound(*jobs: tuple[Demand, float, float]) -> float:
        cells = [QueuedCell(f"j{n}", "a", demand, took, at) for n, (demand, took, at) in enumerate(jobs)]
        nodes = (Node("a", 8, accelerator="H100"), Node("b", 8))
        return lower_bound_s([TraceJob(cell, cell.predicted_s) for cell in cells], nodes)

    assert bound((Demand(16), 10, 0), (Demand(8), 10, 0)) == 15
    assert bound(*[(Demand(1, gpus_per_worker=5), 10, 0)] * 4) == 20
    assert bound(*[(Demand(8, accelerator="H100"), 10, 0)] * 3) == 30
    assert bound((Demand(1), 10, 0), (Demand(16), 10, 100), (Demand(16), 10, 100)) == 120


# --- files and the command ---


def write(folder: Path, *lines: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


GOOD = '{"id": "a", "gpus": 4, "duration": 60}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "b", "gpus": 4, "duration": 60, "prority": 1}', "unknown key 'prority'; did you mean 'priority'?"),
        ('{"id": "b", "gpus": 4}', "'duration' is missing; add it (see docs/queue.md)"),
        ('{"id": "b", "gpus": "4", "duration": 60}', "'gpus' is \"4\"; it must be a whole number"),
        ('{"id": "b", "gpus": 0, "duration": 60}', "'gpus' is 0; it must be above 0"),
        ('{"id": "b", "gpus": 4, "duration": -1}', "'duration' is -1; it must be above 0"),
        ('{"id": "b", "gpus": 4, "duration": NaN}', "'duration' is nan; it must be a finite number"),
        ('{"id": "b", "gpus": 4, "gpus": 5, "duration": 1}', "duplicate key 'gpus'; keep one of them"),
        ('{"id": "../b", "gpus": 4, "duration": 1}', "'id' is \"../b\"; use up to 64 letters"),
        ('{"id": "a", "gpus": 4, "duration": 1}', "'id' is \"a\", as on line 1; give each job its own"),
        ('{"id": "b", "gpus": 6, "duration": 1, "gpus_per_worker": 4}', "no multiple of gpus_per_worker, 4"),
        ('{"id": "b", "gpus": 999, "duration": 1}', "'gpus' is 999, but 999 x {1 GPU} does not fit on two-racks"),
        ('{"id": "b", "gpus": 9, "duration": 1, "gpus_per_worker": 9}', "does not fit on two-racks, even empty"),
        ('{"id": "b", "gpus": 9, "duration": 1, "owner": "interns"}', "the quota of interns is 8; ask for less"),
        ('{"id": "b", "gpus": 4', "not valid JSON: Expecting ',' delimiter at column 22; write one JSON object a line"),
        ("[1, 2]", "is [1, 2]; write one JSON object a line"),
    ],
)
def test_a_bad_line_is_named_with_its_place_and_remedy(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_trace(write(tmp_path, GOOD, line), load_cluster(CLUSTER))
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{tmp_path / 'trace.jsonl'}:2: ")
    assert said in str(problem)


def test_files_that_hold_no_trace_are_refused(tmp_path: Path) -> None:
    described = load_cluster(CLUSTER)
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    cases = {
        "empty.jsonl": "holds no job",
        "latin.jsonl": "not UTF-8",
        "none.jsonl": "no such file",
        ".": "is a folder",
    }
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    for name, said in cases.items():
        with pytest.raises(SpecError, match=said):
            load_trace(tmp_path / name, described)


def test_every_wrong_key_of_a_cluster_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "nodes:\n  - {gpus: 8, count: 0}\n  - {gpu: 8}\nowners: {ada: {weight: 0}}\npolicy: {checkpoint: 1x}\n",
        encoding="utf-8",
    )
    with pytest.raises(SpecError) as caught:
        load_cluster(path)
    told = {problem.path: str(problem) for problem in caught.value.problems}
    assert f"{path}:2:" in told["nodes.0.count"]
    assert {"nodes.1.gpus", "nodes.1.gpu", "owners.ada.weight", "policy.checkpoint"} < set(told)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    backbone = Path(sys.executable).parent / "backbone"
    return subprocess.run([backbone, "simulate", *arguments], capture_output=True, text=True, timeout=120)


def test_the_command_plays_the_shipped_example(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = command(TRACE, "--cluster", CLUSTER, "--json", "--html", page)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [one["policy"] for one in document["policies"]] == list(POLICIES)
    assert len(document["starts"]) == sum(1 for _ in TRACE.open(encoding="utf-8"))
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 2
    assert "language" in html
    assert "http" not in html.replace("http://www.w3.org", "")
    table = command(TRACE, "--cluster", CLUSTER)
    assert table.returncode == 0
    assert "fifo-backfill" in table.stdout
    assert "interns" in table.stdout


def test_the_command_refuses_bad_input_with_exit_2(tmp_path: Path) -> None:
    bad = command(write(tmp_path, GOOD, '{"id": "b"}'), "--cluster", CLUSTER)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "trace.jsonl:2: 'gpus' is missing" in bad.stderr
    unknown = command(TRACE, "--cluster", CLUSTER, "--policy", "lifo")
    assert unknown.returncode == 2
    assert "no policy 'lifo'; there are: backbone, fifo, fifo-backfill" in unknown.stderr
    nowhere = command(TRACE, "--cluster", CLUSTER, "--html", tmp_path / "none" / "page.html")
    assert nowhere.returncode == 2
    assert "create it first" in nowhere.stderr


def test_the_page_of_a_large_cluster_stays_small(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("nodes: [{count: 125, gpus: 8}]\n", encoding="utf-8")
    described = load_cluster(tmp_path / "cluster.yaml")
    document, runs = simulation_document("mixed", mixed_jobs(1500, seed=2), described, "backbone")
    assert len(render_simulation(document, runs, described.nodes)) < 2_000_000
