"""A cluster of two nodes on one machine: each a network namespace with an address of its own. Needs root and `ip`."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from product import ROOT, CellFolder, Job, clean_environment, tracked_runs, wait_for, write_job

ADDRESSES = {"head": "10.77.0.1", "worker": "10.77.0.2"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class TwoNodes:
    """Head and worker with two CPUs each, MLflow beside the head, and the product's dispatcher."""

    folder: Path
    name: str = field(default_factory=lambda: f"bb{secrets.token_hex(2)}")
    starts: int = 0

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **clean_environment(),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_health_check_period_ms": "1000",  # a dead node is noticed in seconds, for the test's sake
            "RAY_health_check_timeout_ms": "2000",
            "BACKBONE_STORAGE": str(self.storage),
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
            "HF_HUB_OFFLINE": "1",
        }

    def lay_cables(self) -> None:
        """Two namespaces, and a cable between them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.storage.mkdir()
        token = self.folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        head, worker = self._namespace("head"), self._namespace("worker")
        for namespace in (head, worker):
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("link", "add", "cable", "netns", head, "type", "veth", "peer", "name", "cable", "netns", worker)
        for node, address in ADDRESSES.items():
            _ip("-n", self._namespace(node), "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", self._namespace(node), "link", "set", "cable", "up")

    def start_mlflow(self) -> None:
        database = f"sqlite:///{self.storage / 'mlflow.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", "--port=5000", "--workers=1"]
        options = [f"--backend-store-uri={database}", f"--artifacts-destination={self.storage / 'mlartifacts'}"]
        self._start("head", "mlflow", [*command, *options], {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
        self.wait_until_it_answers("http://127.0.0.1:5000/health")

    def start_ray(self) -> None:
        """A fresh cluster on both nodes, with a dispatcher."""
        self.starts += 1
        ports = ["--port=6379", "--dashboard-host=127.0.0.1", "--dashboard-port=8265"]
        self._start("head", "ray", [*self._ray("head"), "--head", f"--temp-dir={self._temporary}", *ports])
        self.wait_until_it_answers("http://127.0.0.1:8265/")
        self.start_worker()
        self.start_dispatcher()

    def start_worker(self) -> None:
        self._start("worker", "ray", [*self._ray("worker"), f"--address={ADDRESSES['head']}:6379"])

    def start_dispatcher(self) -> None:
        started = self.run(sys.executable, "-m", "jobs.dispatcher", "start", f"--storage={self.storage}")
        assert started.returncode == 0, started.stdout

    def run(self, *command: str, cwd: Path = ROOT, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """A command on the head, as a person there would type it; both streams, without colours."""
        result = subprocess.run(
            ["ip", "netns", "exec", self._namespace("head"), *command],
            cwd=cwd,
            env={**self.environment, "RAY_ADDRESS": f"{ADDRESSES['head']}:6379"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        result.stdout = ANSI.sub("", result.stdout)
        return result

    def backbone(self, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """The command line of the product."""
        return self.run(sys.executable, "-m", "jobs.cli", *arguments, cwd=cwd)

    def ask(self, *arguments: str, cwd: Path = ROOT) -> dict[str, Any]:
        """A command that answers in JSON."""
        result = self.backbone(*arguments, "--json", cwd=cwd)
        assert result.returncode == 0, result.stdout
        answer: dict[str, Any] = json.loads(result.stdout[result.stdout.index("{") :])
        return answer

    def resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """What the cluster has, and what of it is free."""
        code = (
            "import json, ray; ray.init(logging_level='ERROR', log_to_driver=False); "
            "print('FOUND', json.dumps([ray.cluster_resources(), ray.available_resources()]))"
        )
        result = self.run(sys.executable, "-c", code)
        (line,) = [line for line in result.stdout.splitlines() if line.startswith("FOUND")]
        has, free = json.loads(line.removeprefix("FOUND"))
        return _countable(has), _countable(free)

    def pids(self, node: str, words: str) -> list[int]:
        """The processes of a node whose command line has these words."""
        found = _ip("netns", "pids", self._namespace(node)).split()
        return [int(pid) for pid in found if words in _command_line(int(pid))]

    def kill(self, node: str, words: str) -> int:
        """kill -9 of every process of a node whose command line has these words; how many there were."""
        pids = self.pids(node, words)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def kill_node(self, node: str, keep: str = "mlflow") -> None:
        """Every process of a node, at once and until none is left."""

        def gone() -> bool:
            pids = _ip("netns", "pids", self._namespace(node)).split()
            left = [pid for pid in pids if keep not in _command_line(int(pid))]
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            return not left

        wait_for(gone, f"end of everything on the {node}", timeout_s=30)

    def take_away(self) -> None:
        """Leaves nothing."""
        for node in ADDRESSES:
            with suppress(subprocess.CalledProcessError):
                self.kill_node(node, keep="nothing is kept")
                _ip("netns", "delete", self._namespace(node))
        for number in range(self.starts + 1):
            shutil.rmtree(f"/tmp/{self.name}{number}", ignore_errors=True)

    def wait_until_it_answers(self, url: str) -> None:
        code = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=2)"
        wait_for(lambda: self.run(sys.executable, "-c", code).returncode == 0, f"an answer of {url}", timeout_s=120)

    @property
    def _temporary(self) -> str:
        return f"/tmp/{self.name}{self.starts}"  # short: Ray makes sockets below it

    def _ray(self, node: str) -> list[str]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        return [*command, f"--node-ip-address={ADDRESSES[node]}", "--num-cpus=2", "--object-store-memory=200000000"]

    def _start(self, node: str, name: str, command: Sequence[str], variables: dict[str, str] | None = None) -> None:
        with open(self.folder / f"{node}-{name}.log", "ab") as log:
            subprocess.Popen(
                ["ip", "netns", "exec", self._namespace(node), *command],
                cwd=self.folder,
                env={**self.environment, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _namespace(self, node: str) -> str:
        return f"{self.name}-{node}"


def find_missing() -> str:
    """Why this machine cannot have such a cluster, or an empty string: found by making a cable and taking it away."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and `ip`"
    name = f"bb{secrets.token_hex(2)}"
    try:
        _ip("netns", "add", name)
        try:
            _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        finally:
            _ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"needs network namespaces: {error.stderr.strip()}"
    return ""


def _countable(resources: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if name in ("CPU", "GPU")}


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """A cluster that runs; skips the test where this machine cannot have one."""
    if missing := find_missing():
        pytest.skip(missing)
    nodes = TwoNodes(folder / "cluster")
    try:
        nodes.lay_cables()
        nodes.start_mlflow()
        nodes.start_ray()
        yield nodes
    finally:
        nodes.take_away()


def new_job(cluster: TwoNodes, name: str, steps: int, **changes: Any) -> Job:
    changes = {"storage": None, "name": name, "recipe__budget__amount": steps, **changes}
    return write_job(cluster.folder / name, **changes)


def cell_of(cluster: TwoNodes, cell_id: str) -> CellFolder:
    return CellFolder(cluster.storage / "cells" / cell_id)


def submit(cluster: TwoNodes, job: Job, *options: str) -> dict[str, Any]:
    return cluster.ask("submit", job.spec.name, *options, cwd=job.folder)


def wait_until_over(cluster: TwoNodes, *job_ids: str, timeout_s: float = 600) -> dict[str, dict[str, Any]]:
    """Each question is a job of its own on the cluster, so the reports are waited for first."""
    reports = [cluster.storage / job_id / "report.json" for job_id in job_ids]
    wait_for(lambda: all(report.exists() for report in reports), f"reports of {job_ids}", timeout_s=timeout_s)

    def over() -> dict[str, dict[str, Any]] | None:
        jobs = {job["job_id"]: job for job in cluster.ask("queue")["jobs"]}
        return jobs if all(jobs[job_id]["ended_s"] for job_id in job_ids) else None

    return wait_for(over, f"the end of {job_ids}", timeout_s=120)


def attempts_of(cell: CellFolder) -> int:
    return int(yaml.safe_load((cell.path / "attempts.json").read_text())["count"])


def assert_nothing_leaks(cluster: TwoNodes) -> None:
    wait_for(lambda: len(set(map(str, cluster.resources()))) == 1, "all resources free", timeout_s=60)
    assert cluster.ask("queue")["leases"] == []


def runs_of(cluster: TwoNodes, job_id: str) -> list[Any]:
    uri = f"sqlite:///{cluster.storage / 'mlflow.db'}"
    return [run for run in tracked_runs(uri) if run.data.tags["comparison_id"] == job_id]
