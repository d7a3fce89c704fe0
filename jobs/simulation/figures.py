"""What a simulation found: makespan against its lower bound, utilisation, waits by owner, and every start."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table
from typing_extensions import TypedDict

from jobs.formats import duration, fixed, percent
from jobs.queue.gangs import Node
from jobs.simulation.simulate import POLICIES, Simulation, TraceJob, simulate
from jobs.simulation.trace import DescribedCluster, load_cluster, load_trace
from orchestrator.errors import InputError

LISTED = 10  # unfinished jobs that the terminal names


class Wait(TypedDict):
    """Seconds from submission to first start, over `jobs` jobs."""

    mean: float
    p95: float
    max: float
    jobs: int


class PolicyFigures(TypedDict):
    """What one policy came to. The makespan counts from the first submission."""

    policy: str
    jobs: int
    finished: int
    preemptions: int
    makespan_s: float
    lower_bound_s: float
    makespan_over_bound: float | None
    utilisation: float | None  # share of the GPU seconds until the makespan
    wait_s: Wait | None  # None: no job started
    wait_s_by_owner: dict[str, Wait | None]
    planned_in_s: float


class Start(TypedDict):
    """When a job began for the first time."""

    id: str
    start_s: float
    wait_s: float


class SimulatedLease(TypedDict):
    """A job on its GPUs, from one start to the end of it."""

    id: str
    owner: str
    gpus: int
    workers_by_node: dict[str, int]
    start_s: float
    end_s: float
    ended: str
    granted_because: str
    stopped_because: str | None


class SimulationDocument(TypedDict):
    """`backbone simulate --json`: the figures of every policy, and the schedule of one."""

    trace: str
    cluster: str
    nodes: int
    gpus: int
    policy: str
    policies: list[PolicyFigures]
    starts: list[Start]
    leases: list[SimulatedLease]
    unfinished: dict[str, str]  # why, by job


def run_simulation(trace: Path, cluster: Path, policy: str, as_json: bool, html: Path | None, out: Console) -> None:
    """`backbone simulate`. Raises SpecError or InputError for what is wrong with the files or the arguments."""
    if policy not in POLICIES:
        raise InputError(f"no policy {policy!r}; there are: {', '.join(POLICIES)}")
    if html is not None and not html.absolute().parent.is_dir():
        raise InputError(f"no folder {html.absolute().parent} for --html; create it first")
    described = load_cluster(cluster)
    jobs = load_trace(trace, described)
    document, runs = simulation_document(trace.name, jobs, described, policy)
    if html is not None:
        from jobs.simulation.page import render_simulation

        html.write_text(render_simulation(document, runs, described.nodes), encoding="utf-8")
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        print_simulation(document, out)


def simulation_document(
    trace: str, jobs: Sequence[TraceJob], cluster: DescribedCluster, policy: str
) -> tuple[SimulationDocument, list[Simulation]]:
    """The figures of every policy and the schedule of one, as plain data; and the simulations behind them."""
    runs = [simulate(jobs, cluster.nodes, cluster.settings, name) for name in POLICIES]
    chosen = next(run for run in runs if run.policy == policy)
    submitted = {job.cell.cell_id: job.cell.submitted_s for job in jobs}
    document: SimulationDocument = {
        "trace": trace,
        "cluster": cluster.name,
        "nodes": len(cluster.nodes),
        "gpus": chosen.gpus,
        "policy": policy,
        "policies": [summary(run, jobs, cluster.nodes) for run in runs],
        "starts": [
            {"id": job_id, "start_s": start_s, "wait_s": start_s - submitted[job_id]}
            for job_id, start_s in chosen.first_starts.items()
        ],
        "leases": [
            {
                "id": segment.job_id,
                "owner": segment.owner,
                "gpus": segment.gpus,
                "workers_by_node": dict(segment.placement),
                "start_s": segment.start_s,
                "end_s": segment.end_s,
                "ended": segment.ended,
                "granted_because": segment.granted_because,
                "stopped_because": segment.stopped_because,
            }
            for segment in chosen.segments
        ],
        "unfinished": dict(chosen.unfinished),
    }
    return document, runs


def lower_bound_s(jobs: Sequence[TraceJob], nodes: Sequence[Node]) -> float:
    """A time at which no schedule whatever can have finished the trace: the largest of three bounds.

    The work submitted at or after each moment, over all GPUs of the kind that it asks for; the same for bundles of
    more than half of the largest node, of which a node holds one at a time; each job's own end if it never waited.
    """
    half = max(node.gpus for node in nodes) / 2
    kinds = {None, *(job.cell.demand.accelerator for job in jobs)}
    bounds = [job.cell.submitted_s + job.duration_s for job in jobs]
    for kind in kinds:
        asking = [job for job in jobs if kind in (None, job.cell.demand.accelerator)]
        mine = [node for node in nodes if kind in (None, node.accelerator)]
        bounds.append(_area_bound_s([(job, job.cell.gpus) for job in asking], sum(node.gpus for node in mine)))
        large = [(job, job.cell.demand.workers) for job in asking if job.cell.demand.gpus_per_worker > half]
        bounds.append(_area_bound_s(large, sum(node.gpus > half for node in mine)))
    return max(bounds)


def _area_bound_s(jobs: Sequence[tuple[TraceJob, int]], units: int) -> float:
    """max over t of t + (units x seconds submitted at or after t) / units."""
    bound, work = 0.0, 0.0
    for job, wanted in sorted(jobs, key=lambda one: -one[0].cell.submitted_s):
        work += wanted * job.duration_s
        bound = max(bound, job.cell.submitted_s + work / units) if units else bound
    return bound


def waits_s(simulation: Simulation, jobs: Sequence[TraceJob]) -> dict[str, list[float]]:
    """Seconds from submission to first start, sorted, by owner."""
    starts = simulation.first_starts
    waits: dict[str, list[float]] = {}
    for job in jobs:
        if job.cell.cell_id in starts:
            waits.setdefault(job.cell.owner, []).append(starts[job.cell.cell_id] - job.cell.submitted_s)
    return {owner: sorted(times) for owner, times in sorted(waits.items())}


def summary(simulation: Simulation, jobs: Sequence[TraceJob], nodes: Sequence[Node]) -> PolicyFigures:
    """The figures of one policy as plain data. The makespan counts from the first submission."""
    over = [segment.end_s for segment in simulation.segments]
    origin_s = min(job.cell.submitted_s for job in jobs)
    makespan_s = max(over, default=origin_s) - origin_s
    finished = {segment.job_id for segment in simulation.segments if segment.ended == "finished"}
    done = [job for job in jobs if job.cell.cell_id in finished]
    bound_s = lower_bound_s(done, nodes) - origin_s if done else 0.0
    busy = sum(segment.gpus * (segment.end_s - segment.start_s) for segment in simulation.segments)
    waits = waits_s(simulation, jobs)
    every = sorted(wait for times in waits.values() for wait in times)
    return {
        "policy": simulation.policy,
        "jobs": len(jobs),
        "finished": len(finished),
        "preemptions": sum(segment.ended == "preempted" for segment in simulation.segments),
        "makespan_s": makespan_s,
        "lower_bound_s": bound_s,
        "makespan_over_bound": makespan_s / bound_s if bound_s else None,
        "utilisation": busy / (simulation.gpus * makespan_s) if makespan_s else None,
        "wait_s": _wait(every),
        "wait_s_by_owner": {owner: _wait(times) for owner, times in waits.items()},
        "planned_in_s": simulation.planned_in_s,
    }


def _wait(sorted_s: Sequence[float]) -> Wait | None:
    if not sorted_s:
        return None
    p95 = sorted_s[min(len(sorted_s) - 1, int(0.95 * len(sorted_s)))]
    return {"mean": mean(sorted_s), "p95": p95, "max": sorted_s[-1], "jobs": len(sorted_s)}


def print_simulation(document: SimulationDocument, out: Console) -> None:
    """The table of policies, the waits by owner under the chosen one, and what did not finish."""
    out = out if out.is_terminal else Console(width=200)  # a log or a pipe gets whole names
    out.print(
        f"{document['trace']} on {document['cluster']}: {document['gpus']:,} GPUs in {document['nodes']:,} nodes",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ("policy", "finished", "makespan", "/ bound", "GPUs busy", "mean wait", "95 %", "longest", "preempted")
    for name in names:
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for figures in document["policies"]:
        finished = f"{figures['finished']:,} of {figures['jobs']:,}"
        ratio, busy = fixed(figures["makespan_over_bound"], 3), percent(figures["utilisation"])
        waits = _wait_texts(figures["wait_s"])
        preempted = str(figures["preemptions"])
        table.add_row(figures["policy"], finished, duration(figures["makespan_s"]), ratio, busy, *waits, preempted)
    out.print(table)
    chosen = next(figures for figures in document["policies"] if figures["policy"] == document["policy"])
    owners = Table(box=None, pad_edge=False, header_style="bold")
    for name in (f"owner ({document['policy']})", "started", "mean wait", "95 %", "longest"):
        owners.add_column(name, justify="left" if name.startswith("owner") else "right", no_wrap=True)
    for owner, wait in chosen["wait_s_by_owner"].items():
        owners.add_row(owner, f"{wait['jobs'] if wait else 0:,}", *_wait_texts(wait))
    out.print()
    out.print(owners)
    for job_id, why in list(document["unfinished"].items())[:LISTED]:
        out.print(f"{job_id} did not finish: {why}", highlight=False, markup=False)
    if (more := len(document["unfinished"]) - LISTED) > 0:
        out.print(f"and {more:,} more did not finish; --json lists them", highlight=False)
    out.print(f"planned in {duration(chosen['planned_in_s'])}", highlight=False)


def _wait_texts(wait: Wait | None) -> list[str]:
    return [duration(seconds) for seconds in ((wait["mean"], wait["p95"], wait["max"]) if wait else (None,) * 3)]
