"""How long the queue's policy takes to plan a large cluster, and how close its makespan comes to the lower bound.

    python -m benchmarks.simulate --gpus 1000 --jobs 3000 --json simulate.json

Jobs of 1 to 64 GPUs and 6 minutes to 24 hours (log-uniform). First the case with a bound to hold: one owner, one
priority, all at time 0, with exact predictions and with 50 % error; then, as a report only, four owners, three
priorities and arrivals over time. Each beside strict FIFO and FIFO with backfill on the same jobs.
"""

import argparse
import json
import math
import os
import random
from pathlib import Path

from jobs.queue.gangs import Demand, Node
from jobs.queue.model import QueuedCell, Settings
from jobs.simulation.figures import summary
from jobs.simulation.simulate import POLICIES, TraceJob, simulate

SHORTEST_S, LONGEST_S = 360.0, 86400.0


def mixed_jobs(count: int, seed: int, error: float = 0.0) -> list[TraceJob]:
    """One owner, one priority, all at time 0; a prediction is off by up to `error` (0.5: half to one and a half)."""
    chance = random.Random(seed)
    return [_job(chance, number, error) for number in range(count)]


def busy_weeks(count: int, gpus: int, seed: int, error: float = 0.5) -> list[TraceJob]:
    """Four owners, three priorities, and arrivals so that about nine tenths of the cluster are asked for."""
    chance = random.Random(seed)
    jobs = [_job(chance, number, error, owners=4, priorities=3) for number in range(count)]
    span_s = sum(job.cell.gpus * job.duration_s for job in jobs) / gpus / 0.9
    return [_submitted(job, chance.uniform(0, span_s)) for job in jobs]


def cluster(gpus: int) -> list[Node]:
    return [Node(f"node-{number:04d}", gpus=8) for number in range(gpus // 8)]


def _job(chance: random.Random, number: int, error: float, owners: int = 1, priorities: int = 1) -> TraceJob:
    duration_s = math.exp(chance.uniform(math.log(SHORTEST_S), math.log(LONGEST_S)))
    predicted_s = duration_s * chance.uniform(1 - error, 1 + error)
    demand = Demand(chance.randint(1, 64))
    owner, priority = f"owner-{chance.randrange(owners)}", chance.randrange(priorities)
    return TraceJob(QueuedCell(f"job-{number:05d}", owner, demand, predicted_s, 0.0, priority), duration_s)


def _submitted(job: TraceJob, submitted_s: float) -> TraceJob:
    cell = job.cell
    moved = QueuedCell(cell.cell_id, cell.owner, cell.demand, cell.predicted_s, submitted_s, cell.priority)
    return TraceJob(moved, job.duration_s)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gpus", type=int, default=1000, help="GPUs, in nodes of 8")
    arguments.add_argument("--jobs", type=int, default=3000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--json", type=Path, help="where to write every figure")
    options = arguments.parse_args()
    nodes = cluster(options.gpus)
    cases = {
        "exact": mixed_jobs(options.jobs, options.seed),
        "50 % error": mixed_jobs(options.jobs, options.seed, error=0.5),
        "arrivals, 4 owners, 50 % error": busy_weeks(options.jobs, options.gpus, options.seed),
    }
    print(f"{options.jobs} jobs, {options.gpus} GPUs, seed {options.seed}, load {os.getloadavg()[0]:.1f}\n")
    print("| case | policy | makespan / bound | utilisation | mean wait h | 95 % h | max h | planned s |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    found = []
    for case, jobs in cases.items():
        for policy in POLICIES:
            figures = summary(simulate(jobs, nodes, Settings(), policy), jobs, nodes)
            found.append({"case": case, **figures})
            print(_row(case, figures), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "figures": found}, indent=2, default=str))


def _row(case: str, figures: dict) -> str:
    wait = [f"{figures['wait_s'][key] / 3600:.1f}" for key in ("mean", "p95", "max")]
    shares = f"{figures['makespan_over_bound']:.3f} | {figures['utilisation']:.3f}"
    return f"| {case} | {figures['policy']} | {shares} | {' | '.join(wait)} | {figures['planned_in_s']:.2f} |"


if __name__ == "__main__":
    main()
