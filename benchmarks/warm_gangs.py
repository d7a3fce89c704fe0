"""What starting workers costs a small cell: each on workers of its own, and all on one gang.

    python -m benchmarks.warm_gangs --cells 4 --rounds 2 --json warm.json

Both sides train the same cells of a tiny backbone on one Ray of this machine, in turns, two workers each. A time is
that of one attempt, from the driver's call to its answer; on the warm side the first one starts the gang. The machine's
time of the cells alone, without any start, is what their own spools say: from `loading` to `finished`.
"""

import argparse
import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.cli import machine

SPEC = """
name: warm-gangs
backbones: [tiny-llama2]
seeds: {cells}
storage: {storage}
recipe:
  data: {{train: "builtin:stdlib", validation: "builtin:stdlib", format: messages}}
  sequence_length: 64
  global_batch_size: 8
  budget: {{kind: steps, amount: 10}}
  evaluate: {{every: 1.0}}
  checkpoint: {{every: 1.0}}
placement: {{workers: 2, gpus_per_worker: {gpus}}}
"""
SIDES = ("cold", "warm")
Times = dict[str, list[float]]  # seconds of each cell


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cells", type=int, default=4)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--gpus", type=int, default=0, help="of each worker")
    arguments.add_argument("--json", type=Path, help="where to write every single measurement")
    chosen = arguments.parse_args()
    import ray

    facts = machine()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        taken: dict[str, list[Times]] = {side: [] for side in SIDES}
        for number in range(chosen.rounds):
            for side in SIDES:
                taken[side].append(measure(side, Path(folder) / f"{side}-{number}", chosen.cells, chosen.gpus))
    ray.shutdown()
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, taken))
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": facts, "attempts_s": taken}, indent=2), encoding="utf-8")


def measure(side: str, folder: Path, cells: int, gpus: int) -> Times:
    """Seconds of each attempt, and of what its workers did in it."""
    from jobs.driver.cell_jobs import CellJobs
    from jobs.driver.preparation import prepare_data
    from orchestrator.attempt.gangs import Gangs
    from orchestrator.planning.plan import load_comparison
    from orchestrator.tracking.spool import read_spool

    folder.mkdir()
    spec = folder / "compare.yaml"
    spec.write_text(SPEC.format(cells=cells, storage=folder / "storage", gpus=gpus), encoding="utf-8")
    plan = load_comparison(spec)
    jobs = CellJobs(plan, prepare_data(plan), certify=False)
    attempts, worked = [], []
    with ExitStack() as whole:
        warm = whole.enter_context(Gangs())
        for cell in plan.cells:
            job = jobs.make(cell, 1, 3600.0)
            with ExitStack() as alone:
                gangs = warm if side == "warm" else alone.enter_context(Gangs())
                began = time.perf_counter()
                failure = gangs.run_attempt(job, cell.placement)
                attempts.append(time.perf_counter() - began)
            assert failure is None, failure
            entries = [entry for entry in read_spool(job.spool_folder) if "phase" in entry.fields]
            phases = {entry.fields["phase"]: entry.time_ms for entry in entries}
            worked.append((phases["finished"] - phases["loading"]) / 1000)
    return {"attempts": attempts, "worked": worked}


def render(facts: dict[str, str | float], taken: dict[str, list[Times]]) -> str:
    """A Markdown table: the first cell of each round, the later ones, and what the workers did of that."""
    load = f"load {facts['load_before']:.1f} to {facts['load_after']:.1f}"
    rounds = len(taken["cold"])
    lines = [f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {load}; {rounds} rounds in turns", ""]
    lines += [
        "| workers | first cell s | later cells s | of which at work s | later x cold |",
        "|---|---:|---:|---:|---:|",
    ]
    later = {side: [one for times in taken[side] for one in times["attempts"][1:]] for side in SIDES}
    for side in SIDES:
        first = median(times["attempts"][0] for times in taken[side])
        worked = median(one for times in taken[side] for one in times["worked"][1:])
        ratio = median(later[side]) / median(later["cold"])
        lines.append(f"| {side} | {first:.2f} | {median(later[side]):.2f} | {worked:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
