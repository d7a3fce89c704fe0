"""What it costs to run a cell that does nothing: 1,000 of them through the dispatcher, and through Ray Tune.

    python -m benchmarks.noop_cells --cells 1000 --rounds 2 --json noop.json

Both sides run on one Ray of this machine, in turns, each in a driver process of its own, as many cells at a time as
there are CPUs. Ours is the whole path but for training: the dispatcher with its store on disk, leases, a thread and
the files of each cell, an MLflow run per cell by the writer that jobs use (every call of it can be repeated after a
crash); the time ends when MLflow has acknowledged all runs. Ray Tune gets `reuse_actors=True`, its own result loggers
off, and in each trial the fewest calls that make such a run: create with tags, one metric, terminate. Both write to a
SQLite file, the default of either. Importing MLflow and planning are not timed on our side; each of Tune's actors
imports MLflow once. Beside them stand those calls alone, in one process and with nothing else to do: what MLflow itself
asks for, whoever calls it. `--also-without-mlflow` measures the two sides with no runs written, too.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.cli import ROOT, machine

MIB = 1024**2
SPEC = """
name: "{name}"
backbones: [tiny-llama2]
seeds: {cells}
recipe:
  data: {{train: "builtin:stdlib", validation: "builtin:stdlib", format: messages}}
  sequence_length: 64
  global_batch_size: 8
  micro_batch_size: 8
  budget: {{kind: steps, amount: 1}}
placement: {{workers: 1, gpus_per_worker: 0, cpus_per_worker: 1}}
"""
SIDES = ("dispatcher", "tune")
CALLS = "mlflow-calls-alone"
TRACKED = ("mlflow", "none")
RAY_PROCESSES = ("gcs_server", "raylet")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cells", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--json", type=Path, help="where to write every single measurement")
    arguments.add_argument("--also-without-mlflow", action="store_true")
    arguments.add_argument("--side", choices=(*SIDES, CALLS), help=argparse.SUPPRESS)
    arguments.add_argument("--tracked", choices=TRACKED, help=argparse.SUPPRESS)
    arguments.add_argument("--address", help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.side:
        sides = {"dispatcher": run_dispatcher, "tune": run_tune, CALLS: run_calls}
        print(json.dumps(sides[options.side](options.cells, options.tracked == "mlflow", options)))
        return
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="noop-") as scratch:
        results = run_rounds(Path(scratch), options.cells, options.rounds, TRACKED[: 1 + options.also_without_mlflow])
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, results))
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "measurements": results}, indent=2), encoding="utf-8")


def run_rounds(scratch: Path, cells: int, rounds: int, tracking: tuple[str, ...]) -> list[dict[str, Any]]:
    import ray

    from jobs.cluster.dispatcher import NAMESPACE
    from jobs.dispatch.start import start_dispatcher

    os.environ["PYTHONPATH"] = str(ROOT)  # for Ray's workers, which start elsewhere
    context = ray.init(address="local", namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    try:
        state = start_dispatcher(f"sqlite:///{scratch / 'queue' / 'queue.db'}", context.dashboard_url)
        watched = {"dispatcher_process": state["pid"], **ray_processes()}
        address = context.address_info["address"]
        results: list[dict[str, Any]] = []
        for side, tracked in itertools.product(SIDES, tracking):  # starts the worker processes
            run_side(side, tracked, 8, address, scratch / f"warm-{side}-{tracked}")
        for number, (tracked, side) in itertools.product(range(rounds), rows_of(tracking)):
            before = memory_mib(watched)
            found = run_side(side, tracked, cells, address, scratch / f"{number}-{side}-{tracked}")
            grown = {f"{name}_grown_mib": after - before[name] for name, after in memory_mib(watched).items()}
            results.append({"round": number, "side": side, "tracked": tracked, "cells": cells, **found, **grown})
            print(results[-1], file=sys.stderr, flush=True)
        return results
    finally:
        ray.shutdown()


def rows_of(tracking: Iterable[str]) -> list[tuple[str, str]]:
    """(tracked, side) of what is measured in a round."""
    return [(tracked, side) for tracked in tracking for side in (*SIDES, *[CALLS] * (tracked == "mlflow"))]


def ray_processes() -> dict[str, int]:
    """The pids of Ray's own processes, which this process started."""
    children = psutil.Process().children(recursive=True)
    return {name: child.pid for child in children for name in RAY_PROCESSES if child.name() == name}


def memory_mib(pids: dict[str, int]) -> dict[str, float]:
    return {name: psutil.Process(pid).memory_info().rss / MIB for name, pid in pids.items()}


def run_side(side: str, tracked: str, cells: int, address: str, folder: Path) -> dict[str, Any]:
    """One driver, in a process of its own."""
    folder.mkdir()
    words = ["--side", side, "--tracked", tracked, "--cells", str(cells), "--address", address, "--folder", str(folder)]
    command = [sys.executable, "-m", "benchmarks.noop_cells", *words]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def timed(work: Callable[[], None], cells: int) -> dict[str, Any]:
    driver = {"driver": os.getpid()}
    before = memory_mib(driver)["driver"]
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    grown = memory_mib(driver)["driver"] - before
    return {"ms_per_cell": 1000 * seconds / cells, "driver_mib": before + grown, "driver_grown_mib": grown}


def tracking_uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def make_experiment(folder: Path) -> str:
    """Creates the database and the experiment before anything is timed."""
    from mlflow import MlflowClient

    artifacts = (folder / "artifacts").as_uri()
    return str(MlflowClient(tracking_uri=tracking_uri(folder)).create_experiment("noop", artifacts))


# --- ours ---


def run_dispatcher(cells: int, is_tracked: bool, options: argparse.Namespace) -> dict[str, Any]:
    import ray

    from jobs.cluster.dispatcher import NAMESPACE, find_dispatcher
    from jobs.driver.counterpart import Dispatcher
    from jobs.driver.leases import Leases
    from jobs.driver.requests import job_request
    from orchestrator.planning.plan import load_comparison
    from orchestrator.tracking.writer import RunWriter

    os.environ["BACKBONE_STORAGE"] = str(options.folder / "storage")
    spec = options.folder / "noop.yaml"
    spec.write_text(SPEC.format(name=options.folder.name, cells=cells), encoding="utf-8")
    plan = load_comparison(spec)
    writer = None
    if is_tracked:
        make_experiment(options.folder)
        writer = RunWriter(tracking_uri(options.folder), "noop", options.folder / "artifacts")
        writer.start()
    ray.init(address=options.address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    leases = Leases(Dispatcher(find_dispatcher()), job_request(plan, plan.cells), f"noop:{os.getpid()}")
    return timed(lambda: train_nothing(plan, leases, writer), cells)


def train_nothing(plan: Any, leases: Any, writer: Any) -> None:
    """As a launch does, but for the data, the workers and the report."""
    from jobs.driver.cells import CellRunner
    from orchestrator.cell_job import CellJob
    from orchestrator.results import CellStatus
    from orchestrator.tracking.run import TrackedRun

    runs = {}

    class Nothing:
        """Cells without data, whose runs in MLflow begin and end."""

        def folder(self, cell: Any) -> Path:
            return plan.cell_folder(cell)

        def find_finished(self, cell: Any) -> None:
            return None

        def make(self, cell: Any, attempt: int, left_s: float) -> CellJob:
            return CellJob(cell, attempt, plan.cell_folder(cell), None, "", 0.0, 0.0)

        def report(self, cell: Any, status: CellStatus, attempt: int) -> None:
            if writer is None:
                return
            if cell.cell_id not in runs:
                tags = {"cell_id": cell.cell_id, "seed": str(cell.seed)}
                run = TrackedRun(cell.cell_id, plan.files.child_run(cell.cell_id), tags, {})
                runs[cell.cell_id] = writer.track(run)
            if status.is_terminal:
                run = runs[cell.cell_id]
                run.summary, run.summary_time_ms = {"loss": 1.0}, time.time_ns() // 1_000_000
                writer.finish(run, status.mlflow_status)

    cells = Nothing()
    runner = CellRunner(cells, plan.job.policy, (cells,), lambda text: None, leases, lambda job, placement, nodes: None)
    leases.start()
    results = runner.run(list(plan.cells))
    leases.finish(0)
    assert all(result.status is CellStatus.SUCCEEDED for result in results)
    assert writer is None or not writer.close(600.0), writer.unreachable or writer.problems


# --- Ray Tune, and MLflow by itself ---


def write_run(uri: str, experiment: str, seed: int) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    tags = {"cell_id": f"cell-{seed}", "seed": str(seed)}
    run_id = client.create_run(experiment, tags=tags, run_name=tags["cell_id"]).info.run_id
    client.log_metric(run_id, "loss", 1.0)
    client.set_terminated(run_id, "FINISHED")


def run_calls(cells: int, _: bool, options: argparse.Namespace) -> dict[str, Any]:
    uri, experiment = tracking_uri(options.folder), make_experiment(options.folder)

    def write_all() -> None:
        for seed in range(cells):
            write_run(uri, experiment, seed)

    return timed(write_all, cells)


def run_tune(cells: int, is_tracked: bool, options: argparse.Namespace) -> dict[str, Any]:
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import ray
    from ray import tune

    uri, experiment = tracking_uri(options.folder), make_experiment(options.folder) if is_tracked else None
    ray.init(address=options.address, log_to_driver=False, logging_level="ERROR")

    def trial(config: dict[str, Any]) -> dict[str, float]:
        if experiment is not None:
            write_run(uri, experiment, config["seed"])
        return {"loss": 1.0}

    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"seed": tune.grid_search(list(range(cells)))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(options.folder / "tune"), verbose=0),
    )

    def fit() -> None:
        found = tuner.fit()
        assert len(found) == cells and not found.errors

    return timed(fit, cells)


def render(facts: dict[str, str | float], results: list[dict[str, Any]]) -> str:
    """A Markdown table: medians over the rounds; the ratio is the median of the rounds' ratios."""
    load = f"load {facts['load_before']:.1f} to {facts['load_after']:.1f}"
    title = f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, Python {facts['python']}, {load}"
    names = ("driver", "dispatcher_process", *RAY_PROCESSES)
    columns = " | ".join(f"{name} grown MiB" for name in names)
    table = [f"{title}; {results[0]['cells']} cells", "", f"| MLflow | side | ms per cell | ratio | {columns} |"]
    table.append("|---|---|---:|---:|" + "---:|" * len(names))
    for tracked, side in rows_of(dict.fromkeys(one["tracked"] for one in results)):
        kind = [one for one in results if one["tracked"] == tracked]
        found, tune = ([one for one in kind if one["side"] == which] for which in (side, "tune"))
        ratio = median(a["ms_per_cell"] / b["ms_per_cell"] for a, b in zip(found, tune, strict=True))
        grown = " | ".join(f"{median(one[f'{name}_grown_mib'] for one in found):.0f}" for name in names)
        label = "without MLflow" if tracked == "none" else "a run per cell"
        table.append(
            f"| {label} | {side} | {median(one['ms_per_cell'] for one in found):.1f} | {ratio:.2f} | {grown} |"
        )
    return "\n".join(table)


if __name__ == "__main__":
    main()
