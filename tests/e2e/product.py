"""The product as its users meet it: a spec file, a process, and the files and MLflow runs that it leaves.

Over 300 lines: all that the end-to-end tests start, kill and ask stands together.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240.0
Found = TypeVar("Found")

# What two runs of one cell must agree on, bit for bit; the other metrics measure the machine.
DETERMINISTIC = ("loss", "grad_norm", "learning_rate", "bytes_seen", "train_bits_per_byte", "val_bits_per_byte")
STEP_METRICS = DETERMINISTIC[:-1]


@dataclass
class Job:
    """One spec with a storage folder of its own, and every process that was launched for it."""

    folder: Path
    spec: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    def start(self, command: str = "compare", *options: str) -> "Launch":
        """Starts the product in a session of its own, as a terminal would."""
        output = self.folder / f"output-{len(self.processes)}.txt"
        with open(output, "w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", command, *options, str(self.spec)],
                cwd=ROOT,
                env={**clean_environment(), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.processes.append(process)
        return Launch(process, output)

    def run(self, command: str = "compare", *options: str) -> "Launch":
        """Starts the product and waits for its end."""
        launch = self.start(command, *options)
        launch.wait()
        return launch

    def kill_leftovers(self) -> None:
        """Ends what a failed test left running: the processes of its own sessions and their Ray."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pid in ray_processes_of(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @property
    def report(self) -> dict[str, Any]:
        (file,) = self.storage.glob("*/report.json")
        return json.loads(file.read_text())

    def cells(self) -> list["CellFolder"]:
        return [CellFolder(path) for path in sorted((self.storage / "cells").glob("*")) if path.is_dir()]

    def cell(self, name: str = "") -> "CellFolder":
        """The only cell whose id begins with `name`, as soon as its folder is there."""

        def find() -> CellFolder | None:
            found = [cell for cell in self.cells() if cell.path.name.startswith(name)]
            return found[0] if found else None

        return wait_for(find, f"a cell {name}*", alive=self.processes[-1] if self.processes else None)


@dataclass(frozen=True)
class Launch:
    """One process of the product."""

    process: subprocess.Popen[str]
    output_file: Path

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:.0f} s:\n{self.output}") from None

    def interrupt_as_a_terminal(self) -> None:
        """Ctrl-C reaches every process of the foreground group, not only the driver."""
        os.killpg(self.process.pid, signal.SIGINT)


@dataclass(frozen=True)
class CellFolder:
    """What a cell keeps on disk."""

    path: Path

    def spool(self) -> list[dict[str, Any]]:
        file = self.path / "spool" / "steps.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def entries(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self.spool() if entry["kind"] == kind]

    @property
    def step(self) -> int:
        """The last step in the spool, 0 before the first."""
        return max((entry["fields"]["step"] for entry in self.entries("step")), default=0)

    def phases(self, attempt: int) -> list[dict[str, Any]]:
        return [entry["fields"] for entry in self.entries("phase") if entry["attempt"] == attempt]

    def wait_for_step(self, step: int, launch: Launch) -> None:
        wait_for(lambda: self.step >= step, f"step {step} of {self.path.name}", alive=launch.process)

    def wait_for_checkpoint(self, launch: Launch) -> int:
        """The step of the newest committed checkpoint, once there is one."""
        return wait_for(lambda: self.checkpoint_step, f"a checkpoint of {self.path.name}", alive=launch.process)

    @property
    def checkpoint_step(self) -> int:
        """Of the newest manifest that is whole: one that is being written is of no checkpoint yet."""
        manifests = sorted((self.path / "checkpoints").glob("*/manifest.json"), reverse=True)
        whole = (text for text in (file.read_text() for file in manifests) if text.endswith("}"))
        return next((json.loads(text)["step"] for text in whole), 0)

    def worker_pid(self, rank: int, attempt: int = 1) -> int:
        file = self.path / "workers" / f"rank-{rank}.json"

        def find() -> int | None:
            document = json.loads(file.read_text()) if file.exists() else {}
            return document["pid"] if document.get("attempt") == attempt else None

        return wait_for(find, f"{file}")

    @contextmanager
    def held(self, attempt: int = 1) -> Iterator[None]:
        """Training stands still meanwhile, so that it cannot end too early, however fast the machine.

        Rank 1 sleeps, and the others wait for it in their next collective.
        """
        pid = self.worker_pid(1, attempt)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def write_job(folder: Path, **changes: Any) -> Job:
    """A small comparison with data and storage below `folder`; `changes` replace dotted keys of the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, first in (("train", 0), ("validation", 10_000)):
        rows = [_row(number) for number in range(first, first + (240 if split == "train" else 24))]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec: dict[str, Any] = {
        "name": "e2e",
        "backbones": ["tiny-llama2"],
        "seeds": [0],
        "storage": str(folder / "storage"),
        "recipe": {
            "data": {
                "train": "train.jsonl",
                "validation": "validation.jsonl",
                "format": "prompt_completion",
                "parity": "per_backbone",
            },
            "sequence_length": 128,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "packing": True,
            "budget": {"kind": "steps", "amount": 60},
            "optimizer": {"learning_rate": 3e-3, "warmup": 0.1},
            "activation_checkpointing": False,
            "evaluate": {"every": 0.25},
            "checkpoint": {"every": 0.1},
        },
        "placement": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 1},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = spec
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    if spec["storage"] is None:
        del spec["storage"]
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    return Job(folder, file)


def wait_for(
    find: Callable[[], Found | None],
    what: str,
    *,
    timeout_s: float = DEADLINE_S,
    alive: subprocess.Popen[str] | None = None,
) -> Found:
    """Polls until `find` gives something true. Fails when time is up or `alive` ended."""
    deadline = time.monotonic() + timeout_s
    while True:
        ended = alive is not None and alive.poll() is not None
        found = find()
        if found:
            return found
        assert not ended, f"the process ended with {alive and alive.returncode} before there was {what}"
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:.0f} s"
        time.sleep(0.02)


def tracked_runs(uri: str) -> list[Any]:
    """Every MLflow run of the experiment."""
    client = tracking_client(uri)
    experiment = client.get_experiment_by_name("backbones")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id], max_results=1000))


def tracking_client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def sqlite_uri(job: Job) -> str:
    return f"sqlite:///{job.storage / 'mlflow.db'}"


def run_of(uri: str, cell_id: str) -> Any:
    """The MLflow run of a cell ("all" for the parent), of which there must be one."""
    (run,) = [run for run in tracked_runs(uri) if run.data.tags["cell_id"] == cell_id]
    return run


def histories(uri: str, cell_id: str, keys: Sequence[str] = DETERMINISTIC) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every stored point of each metric, sorted by step; a doubled step shows as two points."""
    client, run_id = tracking_client(uri), run_of(uri, cell_id).info.run_id
    return {key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key)) for key in keys}


def assert_every_step_once(uri: str, cell_id: str, steps: int) -> None:
    points = histories(uri, cell_id)
    for key in STEP_METRICS:
        assert [step for step, _ in points[key]] == list(range(1, steps + 1)), key
    evaluated = [step for step, _ in points["val_bits_per_byte"]]
    assert len(evaluated) == len(set(evaluated))
    assert evaluated[0] == 0
    assert evaluated[-1] == steps


def ray_processes_of(driver_pid: int) -> dict[int, str]:
    """Pid and name of the processes of the Ray session that a driver started; Ray names the session after its pid."""
    session = re.compile(rf"session_[0-9_-]+_{driver_pid}\b")
    return {pid: name for pid, name, traces in _processes() if session.search(traces)}


def working_processes_of(driver_pid: int) -> dict[int, str]:
    """The same without Ray's two agents, which need a minute to believe that the rest of a killed Ray is gone."""
    agents = ("ray::DashboardA", "ray::RuntimeEnv")
    return {pid: name for pid, name in ray_processes_of(driver_pid).items() if not name.startswith(agents)}


def _processes() -> Iterator[tuple[int, str, str]]:
    """Pid, name, and what may name the Ray session: command line, environment, open files. Ray's workers rename
    themselves, which overwrites their command line."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            words = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
            links = [os.readlink(link) for link in (entry / "fd").iterdir()]
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue
        yield int(entry.name), name, "\n".join([words.replace(b"\0", b"\n").decode(errors="replace"), *links])


def _row(number: int) -> dict[str, str]:
    """Text that is easy to learn but not constant, so that a wrong order or a repeated step changes the loss."""
    words = " ".join(f"{word}{number * factor % 97}" for word, factor in (("alpha", 3), ("beta", 7), ("gamma", 11)))
    answer = f"{words}; the square of {number} is {number * number} and its half is {number / 2}."
    return {"prompt": f"What is known about {number}?", "completion": answer}


def clean_environment() -> dict[str, str]:
    """Ours without what would point the product to another cluster, server or storage."""
    dropped = ("MLFLOW_", "RAY_", "BACKBONE_")
    return {key: value for key, value in os.environ.items() if not key.startswith(dropped)}


def free_port() -> int:
    """A port that stays free until a server takes it, however late.

    Below the range from which the kernel hands out ports, and above Ray's workers': a Ray that starts or lingers
    meanwhile does not land on it.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("100 ports tried, none of them free")


def wait_until_it_answers(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, "the MLflow server ended before it answered"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)  # polling a process that offers no other sign
    raise AssertionError(f"{address} did not answer in 180 s")
