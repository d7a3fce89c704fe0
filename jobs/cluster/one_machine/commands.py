"""What each service is started with. No secret among it: the token goes by the name of its file."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster.one_machine.state import State

# Server-side settings that MLflow leaves open by default; each default has been the way in of a published attack.
MLFLOW_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Resources:
    """What Ray may give away; None: what the machine has."""

    cpus: int | None = None
    gpus: int | None = None


def dashboard_url(state: State) -> str:
    return f"http://127.0.0.1:{state.ports.dashboard}"


def mlflow_url(state: State) -> str:
    return f"http://127.0.0.1:{state.ports.mlflow}"


def ray_command(state: State, folder: Path, resources: Resources) -> list[str]:
    """The head. In the foreground it watches its processes, and takes them along when it or one of them ends."""
    ports = state.ports
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--temp-dir={folder}", f"--port={ports.ray}", f"--ray-client-server-port={ports.client}"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={ports.dashboard}"]
    # Given by the kernel when it binds: an agent whose port was taken since lives on and takes no job, silently.
    command += ["--dashboard-agent-listen-port=0"]
    command += [f"--num-cpus={resources.cpus}"] if resources.cpus is not None else []
    return command + ([f"--num-gpus={resources.gpus}"] if resources.gpus is not None else [])


def mlflow_command(port: int, database: str, artifacts: Path) -> list[str]:
    """The tracking server. One worker: SQLite's locks, and one machine's load, ask for no more."""
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri={database}", f"--artifacts-destination={artifacts}"]
    hosts = f"localhost:{port},127.0.0.1:{port}"
    return [*command, f"--allowed-hosts={hosts}", f"--cors-allowed-origins=http://localhost:{port}"]


def dispatcher_command(storage: Path) -> list[str]:
    return [sys.executable, "-m", "jobs.dispatcher", "start", f"--storage={storage}"]


def ray_environment(state: State, storage: Path) -> dict[str, str]:
    """What every process of the cluster inherits, drivers of jobs among them."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # `python` of entry points
    return {
        **inherited,
        "PATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": state.token,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # the dispatcher never idles, so draining only waits in vain
        "MLFLOW_TRACKING_URI": mlflow_url(state),
        "BACKBONE_STORAGE": str(storage),
    }


def mlflow_environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**inherited, **MLFLOW_SETTINGS}


def dispatcher_environment(state: State, storage: Path, gcs_address: str) -> dict[str, str]:
    return {**ray_environment(state, storage), "RAY_ADDRESS": gcs_address}
