"""`backbone doctor`: asks within a deadline, judges, prints."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from jobs.cluster.endpoint import is_loopback
from jobs.cluster.one_machine.state import load_state
from jobs.cluster.ray_cluster import LABEL
from jobs.doctor.demand import check_demand
from jobs.doctor.endpoint_checks import EXPORT, REACHABLE, check_endpoint, check_token_file
from jobs.doctor.finding import Finding, exit_code, findings_json, ok, print_findings, problem, warning
from jobs.doctor.node_checks import ExaminedNode, check_clocks, check_nodes, check_storage
from jobs.doctor.service_checks import check_dispatcher, check_mlflow
from jobs.queue import gangs
from orchestrator.errors import InputError
from orchestrator.hardware import GIB

DEADLINE_S = 90.0
CONNECT_LIMIT_S = 3.0
BOOTSTRAP = Path("/tmp/ray/ray_current_cluster")  # where `ray start` notes the GCS of this machine
AUTOSCALING = Path("~/ray_bootstrap_config.yaml")  # where `ray up` leaves the cluster's file on the head


def doctor(
    spec: Path | None,
    address: str | None,
    storage: Path | None,
    as_json: bool,
    console: Console,
    deadline_s: float = DEADLINE_S,
) -> int:
    """Checks a cluster, and returns 1 if anything is a problem.

    address: http(s)://HOST:PORT of the dashboard, HOST:PORT of the GCS, or None for RAY_ADDRESS, else this machine's.
    Nodes are asked where this machine is one of them. Raises SpecError, InputError.
    """
    findings = examine(spec, address or os.environ.get("RAY_ADDRESS") or "auto", storage, deadline_s)
    if as_json:
        print(findings_json(findings))
    else:
        print_findings(findings, console)
    return exit_code(findings)


def examine(spec: Path | None, address: str, storage: Path | None, deadline_s: float) -> list[Finding]:
    """Every finding, in the order of the checks."""
    if address.startswith(("http://", "https://")):
        return _examine_dashboard(spec, address, storage, deadline_s)
    gcs = find_gcs(storage, None) if address == "auto" else address
    if gcs is None:
        raise InputError("no cluster runs on this machine; set RAY_ADDRESS or give --address, or run `backbone up`")
    if refused := _connection_fault(gcs):
        gone = problem(REACHABLE, f"nothing answers at {gcs}: {refused}", "check the address; is the cluster up?")
        return [*check_token_file(), gone]
    document, faults = probe(gcs, storage, deadline_s)
    dashboard = document.get("dashboard")
    outside = check_endpoint(f"http://{dashboard}") if dashboard else check_token_file()
    return [*outside, *faults, *judge(document, spec)]


def _examine_dashboard(spec: Path | None, url: str, storage: Path | None, deadline_s: float) -> list[Finding]:
    """From outside; and from inside, where the address is this machine's own cluster and not a tunnel."""
    found = check_endpoint(url)
    if any(finding.check == REACHABLE for finding in found):
        return found
    gcs = find_gcs(storage, url) if is_loopback(url) else None
    document: dict[str, Any] = {}
    faults: list[Finding] = []
    if gcs is not None and not _connection_fault(gcs):
        document, faults = probe(gcs, storage, deadline_s)
    if document and _port(document["dashboard"]) == _port(url):
        return [*found, *faults, *judge(document, spec)]
    return [*found, *faults, _nodes_unseen(url), *([_demand_unseen()] if spec else [])]


def judge(document: Mapping[str, Any], spec: Path | None) -> list[Finding]:
    """What a probe's document means; it may have ended early."""
    if "nodes" not in document:
        return []
    alive = [node for node in document["nodes"] if node["alive"]]
    gone = [node["address"] for node in document["nodes"] if not node["alive"]]
    found = [check_dispatcher(document.get("dispatcher"))]
    if gone:
        sentence = f"{len(gone)} nodes have left: {', '.join(gone)}"
        found.append(warning("nodes", sentence, "fine where the autoscaler ended them; else see why they died"))
    if "facts" in document:
        found += _judge_facts(document, alive)
    if spec is not None:
        found.append(check_demand(spec, [_offer(node) for node in alive], AUTOSCALING))
    return found


def probe(gcs: str, storage: Path | None, deadline_s: float) -> tuple[dict[str, Any], list[Finding]]:
    """What the nodes said until the deadline, and why that is not everything."""
    with tempfile.TemporaryDirectory(prefix="backbone-doctor-") as folder:
        out, log = Path(folder) / "document.json", Path(folder) / "log"
        asked = str(storage.expanduser().absolute()) if storage else ""
        command = [sys.executable, "-m", "jobs.doctor.cluster_probe", gcs, asked, str(out)]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with open(log, "wb") as stream:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        try:
            code: int | None = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        document = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        return document, _probe_faults(code, log.read_text(encoding="utf-8", errors="replace"), gcs, deadline_s)


def find_gcs(storage: Path | None, dashboard: str | None) -> str | None:
    """HOST:PORT of a GCS that runs on this machine: of `backbone up` with this storage, else of `ray start`."""
    root = (storage or Path(os.environ.get("BACKBONE_STORAGE", "runs"))).expanduser().absolute()
    try:
        state = load_state(root)
    except InputError:
        state = None  # another machine's, on a storage that both see
    ray = state.find("ray") if state else None
    if state and ray and (dashboard is None or urlsplit(dashboard).port == state.ports.dashboard):
        noted = Path(ray.folder) / BOOTSTRAP.name
        if noted.is_file():
            return noted.read_text(encoding="utf-8").strip()
    return BOOTSTRAP.read_text(encoding="utf-8").strip() if BOOTSTRAP.is_file() else None


def _port(address: str) -> int | None:
    """Of a URL, or of HOST:PORT."""
    return urlsplit(address if "://" in address else f"//{address}").port


def _judge_facts(document: Mapping[str, Any], alive: Sequence[Mapping[str, Any]]) -> list[Finding]:
    facts, storage = document["facts"], document["storage"]
    nodes = [ExaminedNode(one["node_id"], one["address"], one["is_head"], facts.get(one["node_id"])) for one in alive]
    found = check_nodes(nodes, storage)
    if not storage:
        remedy = "export BACKBONE_STORAGE before `ray start` on the head, or give each spec its storage"
        found.append(warning("storage", "drivers are given no BACKBONE_STORAGE, so none was checked", remedy))
    elif "read" in document:
        found += check_storage(nodes, storage, document["nonces"], document["read"])
    if "clocks" in document:
        found += check_clocks(nodes, document["clocks"])
    head = next((node for node in nodes if node.is_head and node.facts is not None), None)
    return found + (check_mlflow(head.facts["tracking_uri"]) if head and head.facts else [])


def _offer(node: Mapping[str, Any]) -> gangs.Node:
    resources = node["resources"]
    accelerator = next((name.removeprefix(LABEL) for name in resources if name.startswith(LABEL)), None)
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    return gangs.Node(node["node_id"], gpus, cpus, int(resources.get("memory", 0) // GIB), accelerator)


def _connection_fault(gcs: str) -> str:
    host, _, port = gcs.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--address is {gcs!r}; write http://HOST:PORT of the dashboard, or HOST:PORT of the GCS")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_LIMIT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _probe_faults(code: int | None, log: str, gcs: str, deadline_s: float) -> list[Finding]:
    """Why a probe ended early; nothing if it did not."""
    words = log.strip().splitlines()
    logs = "look at gcs_server.out and raylet.err in the head's session_latest/logs"
    if code == 0:
        return []
    if code is None:
        return [problem("nodes", f"{gcs} was not through with its answers after {deadline_s:.0f} s", logs)]
    if "AuthenticationError" in log or "Unauthenticated" in log:
        reason = next((line for line in reversed(words) if "uthentica" in line), "")
        return [problem("token", f"{gcs} does not let us in: {reason[-300:]}", EXPORT)]
    last = words[-1][-300:] if words else f"exit code {code}"
    return [problem("nodes", f"{gcs} could not be asked: {last}", logs)]


def _nodes_unseen(address: str) -> Finding:
    command = f"ray job submit --address {address} -- backbone doctor"
    return ok("nodes", f"not asked, since this machine is none of them; to ask them: {command}")


def _demand_unseen() -> Finding:
    return warning("demand", "what the nodes offer is not known here", "run `backbone doctor SPEC` on the head")
