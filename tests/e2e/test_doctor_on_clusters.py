"""The doctor at clusters that really run: a sound one, one with a node whose storage is its own, one that hangs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from product import clean_environment, free_port, wait_for, write_job

from jobs.cluster.endpoint import http_get
from jobs.cluster.one_machine.services import Service, processes_of, start, stop

pytestmark = pytest.mark.e2e

LIMIT_S = 200
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
DOCTOR = """
import sys
from pathlib import Path
from rich.console import Console
from jobs.doctor import doctor
spec, address, storage, deadline_s = sys.argv[1:]
sys.exit(doctor(Path(spec) if spec else None, address, Path(storage), True, Console(), float(deadline_s)))
"""


@dataclass
class Cluster:
    """A head, and nodes on this same machine; each has its own temporary folder."""

    folder: Path
    gcs: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    services: list[Service] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **clean_environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "BACKBONE_STORAGE": str(self.storage),
            "HF_HUB_OFFLINE": "1",
        }

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def start_head(self) -> None:
        self.storage.mkdir(parents=True)
        token = self.folder / "token"
        token.write_text("ab" * 32)
        token.chmod(0o600)
        ports = [f"--port={self.gcs}", f"--dashboard-port={self.dashboard}", "--dashboard-host=127.0.0.1"]
        self._start([*RAY, "--head", *ports, f"--ray-client-server-port={free_port()}", "--disable-usage-stats"])
        wait_for(lambda: self.api("/api/jobs/") is not None, "the job API", timeout_s=LIMIT_S)

    def start_node(self, prefix: tuple[str, ...] = ()) -> None:
        nodes = self.living_nodes()
        self._start([*prefix, *RAY, f"--address=127.0.0.1:{self.gcs}"])
        wait_for(lambda: self.living_nodes() == nodes + 1, "another node", timeout_s=LIMIT_S)

    def api(self, path: str) -> Any:
        answer = http_get(self.url + path, token="ab" * 32)
        return json.loads(answer.text) if answer.status == 200 else None

    def living_nodes(self) -> int:
        nodes = self.api("/api/v0/nodes")["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in nodes)

    def doctor(self, spec: Path | None = None, address: str = "", deadline_s: float = 90) -> tuple[int, list[Any]]:
        arguments = [str(spec or ""), address or f"127.0.0.1:{self.gcs}", str(self.storage), str(deadline_s)]
        ran = subprocess.run(
            [sys.executable, "-c", DOCTOR, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert ran.stdout, ran.stderr
        assert "ab" * 32 not in ran.stdout + ran.stderr
        return ran.returncode, json.loads(ran.stdout)["findings"]

    def end(self) -> None:
        for service in reversed(self.services):
            for process in processes_of(service):
                process.send_signal(signal.SIGCONT)
            stop(service, 10)
            shutil.rmtree(service.folder, ignore_errors=True)

    def _start(self, command: list[str]) -> None:
        folder = tempfile.mkdtemp(prefix="doctor-")
        temp = [f"--temp-dir={folder}", "--num-cpus=2", "--dashboard-agent-listen-port=0"]
        service = Service(f"node{len(self.services)}", f"{folder}-{os.getpid()}", folder)
        self.services.append(start(service, [*command, *temp], self.environment))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        cluster.start_head()
        yield cluster
    finally:
        cluster.end()


def sentences(findings: list[Any], check: str, severity: str) -> list[str]:
    return [one["sentence"] for one in findings if (one["check"], one["severity"]) == (check, severity)]


def test_a_sound_cluster_a_demand_that_cannot_fit_and_a_local_storage(cluster: Cluster, tmp_path: Path) -> None:
    code, found = cluster.doctor()
    assert code == 0, [one for one in found if one["severity"] == "problem"]
    assert sentences(found, "storage", "ok") == [f"{cluster.storage} is the same on 1 nodes"]
    for check in ("token", "versions", "nodes", "clocks", "listeners", "mlflow"):
        assert sentences(found, check, "ok"), check
    assert sentences(found, "dispatcher", "warning")
    assert list(cluster.storage.iterdir()) == []

    job = write_job(tmp_path / "job", placement__workers=999, recipe__global_batch_size=999, recipe__micro_batch_size=1)
    code, found = cluster.doctor(job.spec)
    assert code == 1
    assert ["997 CPUs are missing" in one for one in sentences(found, "demand", "problem")] == [True]

    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can give a node a file system of its own")
    hide = (
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs -o size=64m local "{cluster.storage}" && exec "$@"',
        "sh",
    )
    cluster.start_node(hide)
    code, found = cluster.doctor()
    assert code == 1
    (sentence,) = sentences(found, "storage", "problem")
    assert sentence.startswith("node ") and f"its {cluster.storage} is not the head" in sentence
    (full,) = [one for one in sentences(found, "disk", "problem") if str(cluster.storage) in one]
    assert full.startswith("node ") and "0.1 GiB free" in full

    (raylet,) = [process for process in processes_of(cluster.services[1]) if process.name() == "raylet"]
    raylet.suspend()
    began = time.monotonic()
    code, found = cluster.doctor()
    assert time.monotonic() - began < 60
    assert code == 1
    (sentence,) = sentences(found, "nodes", "problem")
    assert sentence.startswith("node ") and "does not answer" in sentence
    assert sentences(found, "nodes", "ok") == ["1 of 2 nodes answer"]


def test_a_cluster_that_hangs_does_not_hang_the_doctor(cluster: Cluster) -> None:
    (gcs,) = [process for process in processes_of(cluster.services[0]) if process.name() == "gcs_server"]
    gcs.suspend()
    began = time.monotonic()
    code, found = cluster.doctor(deadline_s=15)
    assert time.monotonic() - began < 60
    assert code == 1
    assert any("was not through" in one or "could not be asked" in one for one in sentences(found, "nodes", "problem"))


def test_the_dashboards_address_is_enough_from_a_laptop(cluster: Cluster, tmp_path: Path) -> None:
    code, found = cluster.doctor(address=cluster.url)
    assert code == 0, found
    assert sentences(found, "token", "ok")


def test_an_open_cluster_is_a_problem(tmp_path: Path) -> None:
    class Open(Cluster):
        @property
        def environment(self) -> dict[str, str]:
            return {**super().environment, "RAY_AUTH_MODE": "disabled"}

    cluster = Open(tmp_path)
    try:
        cluster.start_head()
        code, found = cluster.doctor()
    finally:
        cluster.end()
    assert code == 1
    assert "WITHOUT A TOKEN" in sentences(found, "token", "problem")[0]
    assert "no token guards it" in sentences(found, "listeners", "problem")[0]
