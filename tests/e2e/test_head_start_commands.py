"""The head start commands of cluster.yaml, really executed on this machine, in their order, by the shell `ray up` uses.

What is not as on AWS stands in `substitutions` (paths, ports, the autoscaler) and in STAND_INS (programs that a test
may not run or that this machine may not have); everything else runs as it is written.
"""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from product import ROOT, clean_environment, free_port

from jobs.cluster.endpoint import http_get
from jobs.cluster.one_machine.services import MARK, Service, processes_of, stop

pytestmark = pytest.mark.e2e

CONFIG = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
VENV = Path(sys.executable).parent
LIMIT_S = 300

STAND_INS = {
    "sudo": 'exec "$@"',
    "mountpoint": 'test -d "$2"',
    "systemctl": "exit 3",  # the unit is not active
    # Runs the command in the background, as the unit would, with the variables that the unit would set.
    "systemd-run": """
        while [ "${1#--}" != "$1" ]; do
            case "$1" in --setenv=*) export "${1#--setenv=}";; esac
            shift
        done
        setsid "$@" < /dev/null > "$HOME/mlflow.log" 2>&1 &""",
    # `ray stop` would end every Ray on this machine, other people's too; a fresh head has none to end.
    "ray": f'[ "$1" = stop ] || exec {VENV}/ray "$@"',
}


@dataclass
class Head:
    """A folder that stands for the head's file system, and the commands with their substitutions."""

    folder: Path
    ray: int = field(default_factory=free_port)
    objects: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    mlflow: int = field(default_factory=free_port)
    client: int = field(default_factory=free_port)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def substitutions(self) -> list[tuple[str, str]]:
        """(as written, as executed here)."""
        unshared = f"--temp-dir={self.temp} --ray-client-server-port={self.client}"
        return [
            # On AWS the head runs one Ray, which `auto` finds; here there may be others.
            ("~/venv/bin/python -m jobs", f"RAY_ADDRESS=127.0.0.1:{self.ray} ~/venv/bin/python -m jobs"),
            ("/shared", str(self.folder / "shared")),
            ("/home/ubuntu/venv/bin", str(VENV)),
            ("~/venv/bin", str(VENV)),
            ("--autoscaling-config=~/ray_bootstrap_config.yaml", unshared),  # the autoscaler would call AWS
            ("~/ray_bootstrap_config.yaml", str(ROOT / "cluster.yaml")),  # as `ray up` copies it to the head
            ("--dashboard-port=8265", f"--dashboard-port={self.dashboard} --dashboard-agent-listen-port=0"),
            ("--port=6379", f"--port={self.ray}"),
            ("--object-manager-port=8076", f"--object-manager-port={self.objects}"),
            (":5000", f":{self.mlflow}"),
            ("--port=5000", f"--port={self.mlflow}"),
            ("ulimit -n 65536", "ulimit -n $(ulimit -Hn)"),  # a sandbox may allow less
        ]

    @property
    def service(self) -> Service:
        return Service("head", self.mark, str(self.temp))

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def temp(self) -> Path:
        return Path(f"/tmp/head-{self.mark[:8]}")  # short: Ray's sockets lie below it

    @property
    def token(self) -> str:
        return (self.home / ".ray" / "auth_token").read_text()

    def prepare(self) -> None:
        for folder in (self.home, self.folder / "bin", self.folder / "shared" / "backbone" / "runs"):
            folder.mkdir(parents=True)
        (self.folder / "shared" / "backbone" / "mlflow" / "artifacts").mkdir(parents=True)
        for name, script in STAND_INS.items():
            program = self.folder / "bin" / name
            program.write_text(f"#!/usr/bin/env bash\n{script}\n")
            program.chmod(0o755)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """As `ray up` runs it over SSH: after ~/.bashrc, with two variables that the launcher always exports."""
        for written, executed in self.substitutions:
            command = command.replace(written, executed)
        launcher = f"source ~/.bashrc; export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && ({command})"
        environment = {**clean_environment(), "HOME": str(self.home), MARK: self.mark}
        output = self.folder / "output.txt"
        with open(output, "w") as stream:  # a pipe would stay open as long as the services that inherit it
            ran = subprocess.run(
                ["bash", "-c", launcher],
                env={**environment, "PATH": f"{self.folder / 'bin'}:{VENV}:{os.environ['PATH']}"},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_S,
                check=False,
            )
        return subprocess.CompletedProcess(command, ran.returncode, output.read_text())

    def ask_ray(self, token: str | None) -> int | None:
        return http_get(f"http://127.0.0.1:{self.dashboard}/api/jobs/", token=token).status


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """The head after its start, with the token and the ~/.bashrc that its set-up commands make."""
    head = Head(tmp_path_factory.mktemp("head"))
    head.prepare()
    with ExitStack() as at_the_end:
        at_the_end.callback(stop, head.service, 10)
        setup = [command for command in CONFIG["setup_commands"] if "~/.bashrc" in command]
        setup += [command for command in CONFIG["head_setup_commands"] if "get-auth-token" in command]
        assert len(setup) == 2
        (head.home / ".bashrc").touch()
        for command in [*setup, *CONFIG["head_start_ray_commands"]]:
            ran = head.run(command)
            assert ran.returncode == 0, f"{ran.args}\n{ran.stdout}"
        yield head


def test_each_substitution_still_has_something_to_substitute(tmp_path: Path) -> None:
    text = "\n".join(CONFIG["head_start_ray_commands"])
    assert not [
        written for written, _ in Head(tmp_path).substitutions if written not in text and "~/venv" not in written
    ]


def test_the_cluster_answers_with_its_token_and_refuses_without(head: Head) -> None:
    assert head.ask_ray(head.token) == 200
    assert head.ask_ray(None) == 401
    assert head.ask_ray("0" * 64) == 403


def test_mlflow_answers_its_own_names_alone(head: Head) -> None:
    url = f"http://127.0.0.1:{head.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert http_get(url).status == 200
    assert http_get(url, host="evil.example").status == 403
    assert (head.folder / "shared" / "backbone" / "mlflow" / "mlflow.db").exists()


def test_a_driver_finds_storage_mlflow_and_models(head: Head) -> None:
    names = ("BACKBONE_STORAGE", "MLFLOW_TRACKING_URI", "HF_HUB_CACHE", "PYTHONWARNINGS")
    script = f"import os; print('found', *(os.environ.get(name) for name in {names}))"
    environment = f"RAY_AUTH_TOKEN_PATH={head.home}/.ray/auth_token RAY_AUTH_MODE=token"
    address = f"http://127.0.0.1:{head.dashboard}"
    ran = head.run(f'{environment} ray job submit --address {address} -- python -c "{script}"')
    assert ran.returncode == 0, ran.stdout
    shared = head.folder / "shared" / "backbone"
    assert f"found {shared / 'runs'} http://127.0.0.1:{head.mlflow} {shared / 'hf-cache'} None" in ran.stdout


def test_the_launchers_thread_limit_does_not_reach_ray(head: Head) -> None:
    (raylet,) = [process for process in processes_of(head.service) if process.name() == "raylet"]
    assert "OMP_NUM_THREADS" not in raylet.environ()


def test_the_head_takes_no_tasks(head: Head) -> None:
    answer = http_get(f"http://127.0.0.1:{head.dashboard}/api/cluster_status?format=0", token=head.token)
    assert answer.status == 200
    assert '"CPU"' not in answer.text


def test_nothing_starts_without_the_shared_storage(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.prepare()
    (head.home / ".bashrc").touch()
    (tmp_path / "shared").rename(tmp_path / "elsewhere")
    guards = [command for command in CONFIG["head_start_ray_commands"] if "mountpoint" in command]
    ran = head.run(guards[0])
    assert ran.returncode == 1
    assert "is not mounted; results would be lost" in ran.stdout
    assert not processes_of(head.service)
