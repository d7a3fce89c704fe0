"""What tracking adds to a training step: nobody listening, MLflow alive, slow, and dead; beside MLflow's own call.

    python -m benchmarks.tracking --rounds 5 --json tracking.json

A process records steps as a cell's main rank does, some milliseconds of arithmetic apart, and times each call; the
writer that sends them runs in a process of its own, as in a driver. `live` is an `mlflow server` over HTTP on this
machine, `slow` the same behind a relay that holds every request for a second, `dead` a port where nobody listens.
`mlflow.log_metrics` is what one would write by hand: the same metrics to the live server, one call a step. The sides
take turns, each with a run of its own.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.cli import machine

SIDES = ("nobody", "live", "slow", "dead")
BY_HAND = "mlflow.log_metrics"
HELD_S = 1.0  # each request to the slow server
WARM_UP = 10  # steps
CONTEXT = multiprocessing.get_context("spawn")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=500, help="of each side in a round; a tenth by hand")
    arguments.add_argument("--json", type=Path, help="where to write every single time")
    chosen = arguments.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as folder, mlflow_server(Path(folder)) as live, relay(live) as slow:
        uris = {"nobody": None, "live": live, "slow": slow, "dead": f"http://127.0.0.1:{free_port()}"}
        rounds = []
        for number in range(chosen.rounds):
            sides = SIDES if number % 2 else SIDES[::-1]
            taken = {
                side: record(Path(folder) / f"{side}-{number}", uris[side], chosen.steps, number) for side in sides
            }
            rounds.append(taken | {BY_HAND: log_by_hand(live, chosen.steps // 10)})
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, rounds))
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": facts, "ms": rounds}, indent=2), encoding="utf-8")


def record(folder: Path, uri: str | None, steps: int, seed: int) -> list[float]:
    """Milliseconds of each step's record, with a writer to `uri` beside it."""
    from orchestrator.tracking.recorder import open_recorder

    recorder = open_recorder(folder / "spool", 1, is_main=True)
    with writer(folder, uri):
        times = timed(lambda metrics: recorder.step(metrics), steps, seed)
    recorder.close()
    return times


def log_by_hand(uri: str, steps: int) -> list[float]:
    """Milliseconds of each `mlflow.log_metrics`."""
    from dataclasses import asdict

    import mlflow

    mlflow.set_tracking_uri(uri)
    with mlflow.start_run():
        return timed(lambda metrics: mlflow.log_metrics(asdict(metrics), step=metrics.step), steps, 0)


def timed(log: Callable[[Any], None], steps: int, seed: int) -> list[float]:
    """Milliseconds that each of some steps takes to be logged, after the first ones."""
    import numpy as np

    from orchestrator.results import StepMetrics

    matrix = np.random.default_rng(seed).random((220, 220))
    names = [name for name in StepMetrics.__dataclass_fields__ if name != "step"]
    times = []
    for step in range(1, steps + 1):
        matrix = matrix @ matrix  # the work of a step
        matrix /= matrix.max()
        metrics = StepMetrics(step=step, **dict.fromkeys(names, step / 7))
        started = time.perf_counter()
        log(metrics)
        times.append((time.perf_counter() - started) * 1000)
    return times[WARM_UP:]


@contextmanager
def writer(folder: Path, uri: str | None) -> Iterator[None]:
    """What sends the spool in `folder` to `uri`, until the end of the block."""
    if uri is None:
        yield
        return
    sends, ends = CONTEXT.Event(), CONTEXT.Event()
    process = CONTEXT.Process(target=send, args=(folder, uri, sends, ends), daemon=True)
    process.start()
    sends.wait()
    yield
    ends.set()
    process.join()


def send(folder: Path, uri: str, sends: Any, ends: Any) -> None:
    """In a process of its own, as the driver is."""
    from orchestrator.tracking.run import TrackedRun
    from orchestrator.tracking.writer import RunWriter

    run = TrackedRun(folder.name, folder / "mlflow.json", tags={}, params={}, spool_folder=folder / "spool")
    runs = RunWriter(uri, "tracking", folder / "artifacts")
    runs.start()
    runs.track(run)
    sends.set()
    ends.wait()
    runs.expedite()
    runs.finish(run, "FINISHED")
    runs.close(timeout_s=0)
    os._exit(0)  # a request that the slow server holds is left behind


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A server over HTTP with a database of its own."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    store = f"sqlite:///{folder / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    with open(folder / "mlflow.log", "wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--artifacts-destination", str(folder)], stdout=log, stderr=log
        )
    try:
        for _ in range(240):
            with suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            if server.poll() is not None:
                raise SystemExit((folder / "mlflow.log").read_text(encoding="utf-8"))
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


@contextmanager
def relay(address: str) -> Iterator[str]:
    """A server that passes everything on, a second late."""
    port, target = free_port(), int(address.rpartition(":")[2])
    process = CONTEXT.Process(target=run_relay, args=(port, target), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


def run_relay(port: int, target: int) -> None:
    async def pass_on(reader: asyncio.StreamReader, to: asyncio.StreamWriter, held_s: float) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(held_s)
            to.write(data)
            await to.drain()
        to.close()

    async def serve(reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        theirs, to = await asyncio.open_connection("127.0.0.1", target)
        with suppress(OSError):
            await asyncio.gather(pass_on(reader, to, HELD_S), pass_on(theirs, back, 0.0))

    async def listen() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(listen())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def render(facts: dict[str, Any], rounds: list[dict[str, list[float]]]) -> str:
    """A Markdown table: the call itself, and what a tracker adds to it, as the difference of medians in each round."""
    load = f"load {facts['load_before']:.1f} to {facts['load_after']:.1f}"
    title = f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {load}; {len(rounds)} rounds in turns"
    table = [title, "", "| | ms a step, p50 | p99 | added to nobody's, median of the rounds |", "|---|---:|---:|---:|"]
    for side in (*SIDES, BY_HAND):
        times = [one for taken in rounds for one in taken[side]]
        added = median(median(taken[side]) - median(taken["nobody"]) for taken in rounds)
        table.append(f"| {side} | {median(times):.3f} | {quantiles(times, n=100)[-1]:.3f} | {added:.3f} |")
    return "\n".join(table)


if __name__ == "__main__":
    main()
