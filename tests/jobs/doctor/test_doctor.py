"""What the doctor makes of facts, of an endpoint that really listens, and of this machine. No Ray, no MLflow.

Over 300 lines: one healthy node, and every way in which it can be ill.
"""

import copy
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.doctor import doctor, node_facts
from jobs.doctor.demand import judge_demand
from jobs.doctor.endpoint_checks import check_endpoint
from jobs.doctor.examination import examine, judge
from jobs.doctor.finding import Finding, Severity, exit_code, findings_json, ok, print_findings, problem, warning
from jobs.doctor.node_checks import ExaminedNode, check_clocks, check_nodes, check_storage
from jobs.doctor.service_checks import check_dispatcher, check_mlflow
from jobs.queue.gangs import Demand
from jobs.queue.gangs import Node as Offer
from orchestrator.errors import InputError

TOKEN = "0123456789abcdef" * 4
STORAGE = "/shared/backbone"
GOOD: dict[str, Any] = {
    "hostname": "ip-10-0-0-7",
    "versions": {"python": "3.12.7", "ray": "2.60.0", "torch": "2.13.0", "backbone-orchestrator": "0.1.0"},
    "gpus": ["NVIDIA H100 80GB HBM3"] * 8,
    "driver": "580.65.06",
    "gpu_fault": "",
    "disks": {"/tmp": {"free_gib": 150.0, "total_gib": 200.0}, STORAGE: {"free_gib": 9000.0, "total_gib": 10000.0}},
    "storage_fault": "",
    "interfaces": {"lo": "127.0.0.1", "ens5": "10.0.0.7"},
    "interface_variables": {"GLOO_SOCKET_IFNAME": "ens5", "NCCL_SOCKET_IFNAME": "ens5"},
    "hostname_address": "10.0.0.7",
    "listeners": [{"address": "0.0.0.0", "port": 6379, "program": "gcs_server"}],
    "mlflow_settings": {},
    "auth_mode": "token",
    "token_mode": "0600",
    "hub": {
        "cache": "/shared/hf",
        "cached_models": ["models--microsoft--phi-2"],
        "offline": True,
        "token_is_set": False,
        "endpoint": "https://huggingface.co",
        "reachable": False,
    },
    "tracking_uri": "",
}


def a_node(name: str = "head", **changes: Any) -> ExaminedNode:
    """A node without fault, but for `changes`; `outer__inner` names a fact inside a fact."""
    facts = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = facts
        for parent in parents:
            target = target[parent]
        target[last] = value
    return ExaminedNode(name, f"10.0.0.{len(name)}", name == "head", facts)


def worst(findings: list[Finding], check: str) -> Finding:
    """The gravest finding of a check."""
    mine = [finding for finding in findings if finding.check == check]
    assert mine, f"nothing was found about {check}"
    return max(mine, key=lambda finding: list(Severity).index(finding.severity))


# --- what a node's facts mean ---


def test_a_cluster_without_fault_has_no_warning() -> None:
    found = check_nodes([a_node(), a_node("worker")], STORAGE)
    assert {finding.severity for finding in found} == {Severity.OK}
    checks = {finding.check for finding in found}
    assert checks == {"nodes", "versions", "gpus", "disk", "network", "listeners", "hub"}


@pytest.mark.parametrize(
    ("changes", "check", "severity", "words"),
    [
        ({"versions__ray": "2.59.0"}, "versions", "problem", "node 10.0.0.6 has ray 2.59.0, head 10.0.0.4 2.60.0"),
        ({"versions__torch": ""}, "versions", "problem", "has torch none, head 10.0.0.4 2.13.0"),
        ({"versions__python": "3.11.2"}, "versions", "problem", "has python 3.11.2"),
        ({"gpu_fault": "Failed to initialize NVML"}, "gpus", "problem", "Failed to initialize NVML"),
        ({"driver": "550.54.15"}, "gpus", "warning", "drivers differ"),
        ({"disks__/tmp": {"free_gib": 8.0, "total_gib": 200.0}}, "disk", "problem", "8.0 GiB free at /tmp (96% used)"),
        ({f"disks__{STORAGE}": {"free_gib": 1.0, "total_gib": 9.0}}, "disk", "problem", f"1.0 GiB free at {STORAGE}"),
        ({"disks__/tmp": {"free_gib": 30.0, "total_gib": 60.0}}, "disk", "warning", "30.0 GiB free"),
        ({"interface_variables": {"GLOO_SOCKET_IFNAME": "eth0"}}, "network", "problem", "is eth0, but its interfaces"),
        (
            {"interface_variables": {}, "hostname_address": "127.0.1.1"},
            "network",
            "problem",
            "ip-10-0-0-7 resolves to 127.0.1.1, and GLOO_SOCKET_IFNAME is not set",
        ),
        ({"interface_variables": {}, "hostname_address": ""}, "network", "problem", "resolves to nothing"),
        ({"auth_mode": ""}, "listeners", "problem", "no token guards it"),
        (
            {"listeners": [{"address": "0.0.0.0", "port": 5000, "program": "mlflow"}]},
            "listeners",
            "problem",
            "MLflow listens on 0.0.0.0:5000; it has no login",
        ),
        (
            {"mlflow_settings": {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true"}},
            "mlflow",
            "problem",
            "its MLflow server runs with MLFLOW_SERVER_ENABLE_JOB_EXECUTION on",
        ),
        ({"token_mode": "0644"}, "token file", "problem", "mode 0644"),
        ({"hub__cached_models": []}, "hub", "warning", "offline, and 0 models"),
        ({"hub__offline": False}, "hub", "warning", "https://huggingface.co does not answer"),
    ],
)
def test_each_fault_of_a_node_is_named_with_its_remedy(
    changes: dict[str, Any], check: str, severity: str, words: str
) -> None:
    found = worst(check_nodes([a_node(), a_node("worker", **changes)], STORAGE), check)
    assert found.severity == severity
    assert words in found.sentence
    assert found.remedy


def test_a_host_name_that_means_loopback_is_only_a_warning_on_one_node() -> None:
    alone = a_node(interface_variables={}, hostname_address="127.0.0.1")
    assert worst(check_nodes([alone], STORAGE), "network").severity is Severity.WARNING


def test_a_node_that_does_not_answer_is_a_finding() -> None:
    found = check_nodes([a_node(), ExaminedNode("worker", "10.0.0.6", False, None)], STORAGE)
    assert "node 10.0.0.6 does not answer" in worst(found, "nodes").sentence
    assert exit_code(found) == 1


def test_without_a_named_interface_the_one_with_the_nodes_own_address_is_used() -> None:
    nodes = [
        a_node(name, interface_variables={}, hostname_address="127.0.0.1", interfaces={"eth1": f"10.0.0.{len(name)}"})
        for name in ("head", "worker")
    ]
    found = [finding for finding in check_nodes(nodes, STORAGE) if finding.check == "network"]
    assert {finding.severity for finding in found} == {Severity.OK}
    assert all(finding.sentence.endswith("workers talk over eth1") for finding in found)


# --- shared storage and clocks ---


def storage_findings(sees: dict[str, list[str]]) -> list[Finding]:
    nodes = [a_node(), a_node("one"), a_node("other")]
    nonces = {node.node_id: f"n-{node.node_id}" for node in nodes}
    read = {name: {f"n-{seen}": "" for seen in others} for name, others in sees.items()}
    return check_storage(nodes, STORAGE, nonces, read)


def test_storage_that_every_node_shares_passes() -> None:
    everyone = ["head", "one", "other"]
    (found,) = storage_findings(dict.fromkeys(everyone, everyone))
    assert found == ok("storage", f"{STORAGE} is the same on 3 nodes")


def test_the_node_whose_storage_is_local_is_named_and_no_other() -> None:
    (found,) = storage_findings({"head": ["head", "other"], "one": ["one"], "other": ["head", "other"]})
    assert found.severity is Severity.PROBLEM
    assert found.sentence.startswith("node 10.0.0.3: its /shared/backbone is not the head 10.0.0.4's")


def test_storage_that_is_missing_or_read_only_is_named() -> None:
    nodes = [a_node(), a_node("one", storage_fault="it does not exist")]
    found = check_storage(nodes, STORAGE, {"head": "n", "one": "m"}, {"head": {"n": ""}})
    assert [finding.sentence for finding in found] == [
        "node 10.0.0.3: /shared/backbone is of no use: it does not exist"
    ]


@pytest.mark.parametrize(
    ("offset", "error", "severity"),
    [(0.1, 0.2, "ok"), (2.0, 1.5, "ok"), (3.0, 0.1, "warning"), (-3700.0, 0.5, "problem")],
)
def test_a_clock_is_wrong_only_by_what_the_round_trip_cannot_explain(
    offset: float, error: float, severity: str
) -> None:
    (found,) = check_clocks([a_node()], {"head": (offset, error)})
    assert found.severity == severity


# --- demand ---

NODES = [Offer("a", gpus=8, cpus=96, accelerator="H100"), Offer("b", gpus=8, cpus=96, accelerator="H100")]


@pytest.mark.parametrize(
    ("demand", "words"),
    [
        (Demand(999), "the cluster has 16 GPUs and 192 CPUs on 2 nodes. 983 GPUs are missing."),
        (Demand(2, gpus_per_worker=1, cpus_per_worker=100), "8 CPUs are missing"),
        (Demand(2, gpus_per_worker=5, cpus_per_worker=96, accelerator="A100"), "No node has an A100; there are: H100."),
        (Demand(3, gpus_per_worker=5), "Only 2 of its 3 workers fit"),
    ],
)
def test_a_demand_that_does_not_fit_says_what_is_missing(demand: Demand, words: str) -> None:
    found = judge_demand(demand, NODES, [])
    assert found.severity is Severity.PROBLEM
    assert words in found.sentence
    assert "lower placement.workers" in found.remedy


def test_a_demand_may_wait_for_the_autoscaler() -> None:
    assert "once the autoscaler has started nodes" in judge_demand(Demand(16), [], NODES).sentence
    refused = judge_demand(Demand(17), [], NODES)
    assert "the autoscaler may go up to 16 GPUs" in refused.sentence
    assert "max_workers" in refused.remedy


# --- the endpoint ---


class Server:
    """An HTTP server on loopback that answers by a function of path and headers, and counts what it was asked."""

    def __init__(self, answer: Callable[[str, Any], tuple[int, str]]):
        outer = self
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, text = answer(self.path, self.headers)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[str, Any], tuple[int, str]]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def guarded(path: str, headers: Any) -> tuple[int, str]:
    """A dashboard with token authentication."""
    given = headers.get("Authorization")
    if given is None:
        return 401, "no token"
    if given != f"Bearer {TOKEN}":
        return 403, "wrong token"
    return 200, json.dumps({"ray_version": metadata.version("ray")})


def wide_open(path: str, headers: Any) -> tuple[int, str]:
    return 200, json.dumps({"ray_version": "2.51.0"})


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the client's token would be; RAY_AUTH_MODE is as it should be."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    return tmp_path / "token"


def write_token(file: Path, token: str = TOKEN, mode: int = 0o600) -> None:
    file.write_text(token + "\n")
    file.chmod(mode)


def test_a_closed_cluster_with_our_token_is_well(serve: Callable[..., Server], token_file: Path) -> None:
    write_token(token_file)
    found = check_endpoint(serve(guarded).url)
    assert {finding.severity for finding in found} == {Severity.OK}
    assert any("takes our token" in finding.sentence for finding in found)


def test_an_open_dashboard_is_said_loudly_and_gets_no_token(serve: Callable[..., Server], token_file: Path) -> None:
    write_token(token_file)
    headers_seen: list[Any] = []

    def remember(path: str, headers: Any) -> tuple[int, str]:
        headers_seen.append(headers.get("Authorization"))
        return wide_open(path, headers)

    found = check_endpoint(serve(remember).url)
    assert "WITHOUT A TOKEN" in worst(found, "token").sentence
    assert exit_code(found) == 1
    assert set(headers_seen) == {None}


def test_no_token_a_wrong_token_and_a_silent_client_are_told_apart(
    serve: Callable[..., Server], token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(guarded).url
    sentences = [worst(check_endpoint(url), "token").sentence]
    write_token(token_file, "f" * 64)
    sentences.append(worst(check_endpoint(url), "token").sentence)
    write_token(token_file)
    monkeypatch.delenv("RAY_AUTH_MODE")
    sentences.append(worst(check_endpoint(url), "token").sentence)
    assert ["no token is set here" in sentences[0], "refuses our token" in sentences[1]] == [True, True]
    assert "RAY_AUTH_MODE is not 'token'" in sentences[2]


def test_a_token_file_that_others_can_read_is_a_problem(serve: Callable[..., Server], token_file: Path) -> None:
    write_token(token_file, mode=0o644)
    found = worst(check_endpoint(serve(guarded).url), "token file")
    assert found.severity is Severity.PROBLEM and "chmod 0600" in found.remedy


def test_another_version_is_a_warning(serve: Callable[..., Server], token_file: Path) -> None:
    found = worst(check_endpoint(serve(wide_open).url), "versions")
    assert found.severity is Severity.WARNING
    assert "the cluster runs ray 2.51.0" in found.sentence


def test_what_is_no_ray_dashboard_is_said_to_be_none(serve: Callable[..., Server], token_file: Path) -> None:
    found = check_endpoint(serve(lambda path, headers: (404, "")).url)
    assert "something else listens there" in worst(found, "reachable").sentence


def test_a_closed_port_and_a_server_that_never_answers_are_findings_within_seconds(token_file: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        found = check_endpoint(url)
        assert time.monotonic() - began < 15
    assert "timed out" in worst(found, "reachable").sentence
    assert "refused" in worst(check_endpoint(url), "reachable").sentence


def test_no_finding_shows_a_token(serve: Callable[..., Server], token_file: Path) -> None:
    write_token(token_file)
    for answer in (guarded, wide_open):
        assert TOKEN not in findings_json(check_endpoint(serve(answer).url))


def test_a_laptop_is_told_how_to_ask_the_nodes(
    serve: Callable[..., Server], token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_token(token_file)
    url = serve(guarded).url
    monkeypatch.setattr("jobs.doctor.examination.BOOTSTRAP", tmp_path / "no-ray-here")
    for noted in (None, "127.0.0.1:1"):  # no Ray was ever started here; one was, and is gone
        if noted:
            (tmp_path / "no-ray-here").write_text(noted)
        found = examine(None, url, tmp_path, 10)
        assert f"ray job submit --address {url} -- backbone doctor" in worst(found, "nodes").sentence
        assert exit_code(found) == 0


def test_a_gcs_that_does_not_answer_is_a_finding_within_seconds(tmp_path: Path, token_file: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    found = examine(None, f"127.0.0.1:{port}", tmp_path, 10)
    assert "nothing answers at 127.0.0.1" in worst(found, "reachable").sentence


def test_an_address_where_nothing_answers_is_the_only_finding(tmp_path: Path, token_file: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    (found,) = examine(None, url, tmp_path, 10)
    assert found.check == "reachable" and found.remedy


def test_an_address_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="write http://HOST:PORT of the dashboard"):
        examine(None, "ray://head", tmp_path, 10)


# --- MLflow and the dispatcher ---


def mlflow(version: str, checks_hosts: bool = True) -> Callable[[str, Any], tuple[int, str]]:
    def answer(path: str, headers: Any) -> tuple[int, str]:
        if checks_hosts and not headers["Host"].startswith("127.0.0.1"):
            return 403, "Invalid Host header"
        return 200, version if path == "/version" else "OK"

    return answer


def test_mlflow_must_answer_be_new_enough_and_refuse_other_names(serve: Callable[..., Server]) -> None:
    assert [one.severity for one in check_mlflow(serve(mlflow("3.17.2")).url)] == [Severity.OK]
    assert "published holes" in worst(check_mlflow(serve(mlflow("3.10.1")).url), "mlflow").sentence
    lax = worst(check_mlflow(serve(mlflow("3.17.2", checks_hosts=False)).url), "mlflow")
    assert lax.severity is Severity.WARNING and "--allowed-hosts" in lax.remedy


def test_mlflow_that_is_gone_is_a_problem_and_its_password_is_not_shown() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    (found,) = check_mlflow(f"http://me:canary@{address}")
    assert found.severity is Severity.PROBLEM
    assert "canary" not in found.sentence and address in found.sentence


@pytest.mark.parametrize(
    ("answer", "severity"), [({"fault": ""}, "ok"), ({"fault": "it is not there"}, "warning"), (None, "warning")]
)
def test_a_missing_dispatcher_is_a_warning(answer: dict[str, str] | None, severity: str) -> None:
    assert check_dispatcher(answer).severity == severity


# --- a probe that ended early ---


def test_what_a_late_probe_wrote_is_judged_and_the_rest_is_left_out() -> None:
    node = {"node_id": "head", "address": "10.0.0.4", "alive": True, "is_head": True, "resources": {"CPU": 4.0}}
    gone = {**node, "node_id": "old", "address": "10.0.0.9", "alive": False}
    assert judge({}, None) == []
    found = judge({"nodes": [node, gone]}, None)
    assert "1 nodes have left: 10.0.0.9" in worst(found, "nodes").sentence
    later = {"nodes": [node], "dispatcher": {"fault": ""}, "storage": STORAGE, "facts": {"head": GOOD}}
    assert exit_code(judge(later, None)) == 0


# --- what a node says of itself ---


def test_this_machine_can_say_everything_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-hf")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:canary-ml@127.0.0.1:9")
    facts = node_facts.gather(str(tmp_path), "name", "nonce")
    text = json.dumps(facts)
    assert set(facts) == set(GOOD)
    assert facts["interfaces"]["lo"] == "127.0.0.1"
    assert "canary" not in text
    assert facts["hub"]["token_is_set"] and not facts["hub"]["reachable"]
    assert facts["versions"]["ray"] == metadata.version("ray")
    assert facts["disks"][str(tmp_path)]["free_gib"] > 0
    assert node_facts.read_nonces(str(tmp_path), ["name"], 1) == {"name": "nonce"}
    node_facts.remove_nonce(str(tmp_path), "name")
    assert list(tmp_path.iterdir()) == []


def test_the_facts_need_nothing_but_the_standard_library() -> None:
    """It runs on nodes that lack everything else."""
    script = "import json, node_facts; print(json.dumps(node_facts.gather('/nowhere', 'n', 'n')))"
    folder = Path(node_facts.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_ENDPOINT": "http://127.0.0.1:9"}
    ran = subprocess.run(
        [sys.executable, "-S", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(ran.stdout)
    assert facts["storage_fault"] == "it does not exist"
    assert facts["versions"]["torch"] == ""


def test_storage_is_never_created_where_it_is_not_mounted(tmp_path: Path) -> None:
    missing = tmp_path / "shared"
    assert node_facts.write_nonce(str(missing), "name", "nonce") == "it does not exist"
    assert not missing.exists()


def test_a_nonce_that_others_write_late_is_still_found(tmp_path: Path) -> None:
    timer = threading.Timer(0.3, node_facts.write_nonce, (str(tmp_path), "late", "nonce"))
    timer.start()
    assert node_facts.read_nonces(str(tmp_path), ["late"], 10) == {"late": "nonce"}
    assert node_facts.read_nonces(str(tmp_path), ["never"], 0.1) == {}


def test_gpus_are_read_from_what_nvidia_smi_prints() -> None:
    listing = "NVIDIA H100 80GB HBM3, 580.65.06\nNVIDIA H100 80GB HBM3, 580.65.06\n"
    assert node_facts.parse_gpus(listing) == {
        "gpus": ["NVIDIA H100 80GB HBM3"] * 2,
        "driver": "580.65.06",
        "gpu_fault": "",
    }


def test_a_broken_driver_is_told_from_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node_facts.gpus() == {"gpus": [], "driver": "", "gpu_fault": ""}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    program.chmod(0o755)
    assert node_facts.gpus()["gpu_fault"].startswith("Failed to initialize NVML")


def test_listening_sockets_are_read_from_the_kernel() -> None:
    assert node_facts.parse_address("0100007F:1F90") == ("127.0.0.1", 8080)
    assert node_facts.parse_address("00000000000000000000000000000000:18EB") == ("::", 6379)
    assert node_facts.parse_address("0000000000000000FFFF0000020200C0:2711") == ("192.0.2.2", 10001)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        inode = str(os.fstat(listener.fileno()).st_ino)
        table = node_facts.parse_sockets(Path("/proc/net/tcp").read_text())
        assert inode in node_facts.socket_inodes(Path("/proc/self"))
        assert table[inode] == listener.getsockname()
    assert [node_facts.is_loopback(address) for address in ("127.0.0.1", "::1", "0.0.0.0", "::")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("/venv/lib/site-packages/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "gcs_server"),
        ("/venv/lib/site-packages/ray/core/src/ray/raylet/raylet --raylet_socket_name=x", "raylet"),
        ("python /venv/lib/site-packages/ray/dashboard/dashboard.py --host=127.0.0.1", "dashboard"),
        ("ray::DashboardAgent", "ray"),
        ("python -m uvicorn --log-config mlflow/x.json mlflow.server.fastapi_app:app", "mlflow"),
        ("sshd -D", ""),
    ],
)
def test_programs_are_known_by_their_command_line(tmp_path: Path, command: str, program: str) -> None:
    (tmp_path / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    assert node_facts.program_name(tmp_path) == program


def test_an_mlflow_server_is_held_to_what_it_was_told(tmp_path: Path) -> None:
    (tmp_path / "environ").write_bytes(b"HOME=/root\0MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false")
    served = [node_facts.Served("127.0.0.1", 5000, "mlflow", tmp_path)]
    assert node_facts.mlflow_settings(served, 5001) == {}
    assert node_facts.mlflow_settings(served, 5000) == {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true",
    }


def test_many_ports_of_one_program_are_counted() -> None:
    many = [{"address": "0.0.0.0", "port": port, "program": "ray"} for port in range(9)]
    found = check_nodes([a_node(listeners=[*GOOD["listeners"], *many])], STORAGE)
    assert "(gcs_server 6379, ray on 9 ports)" in worst(found, "listeners").sentence


# --- what is printed ---


def test_findings_are_a_table_with_the_worst_last_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = [problem("token", "open", "close it"), ok("disk", "much"), warning("hub", "far", "come closer")]
    console = Console(record=True, width=100)
    print_findings(found, console)
    text = capsys.readouterr().out
    assert text.index("much") < text.index("far") < text.index("open") < text.index("close it")
    assert "1 problems, 1 warnings" in text
    document = json.loads(findings_json(found))
    assert document["exit_code"] == 1
    assert document["findings"][0] == {
        "check": "token",
        "severity": "problem",
        "sentence": "open",
        "remedy": "close it",
    }


def test_a_large_sound_cluster_prints_a_few_rows_of_a_kind_but_every_problem(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [ok("disk", f"node {n}: much") for n in range(100)] + [problem("disk", f"bad {n}", "") for n in range(9)]
    print_findings(found, Console())
    text = capsys.readouterr().out
    assert text.count("much") == 4
    assert "and 96 more" in text
    assert text.count("bad ") == 9
    assert len(json.loads(findings_json(found))["findings"]) == 109


def test_the_command_returns_1_for_a_problem(
    serve: Callable[..., Server], token_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(None, serve(lambda path, headers: (404, "")).url, tmp_path, True, Console()) == 1
    assert json.loads(capsys.readouterr().out)["exit_code"] == 1
