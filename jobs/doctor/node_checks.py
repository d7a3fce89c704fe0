"""What the nodes' facts mean. Pure: facts in, findings out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.doctor.finding import Finding, ok, problem, warning

LITTLE_GIB, TOO_LITTLE_GIB = 50.0, 5.0
RAY_STOPS_AT = 0.95  # used share of a disk at which Ray creates no more objects
CLOCK_WARNING_S, CLOCK_PROBLEM_S = 1.0, 60.0


@dataclass(frozen=True)
class ExaminedNode:
    """One node as the cluster knows it; `facts` is None when it did not answer."""

    node_id: str
    address: str
    is_head: bool
    facts: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        role = "head" if self.is_head else "node"
        return f"{role} {self.address}"


def check_nodes(nodes: Sequence[ExaminedNode], storage: str) -> list[Finding]:
    """Everything that a node's own facts say, in the order of the table in docs/cluster.md."""
    answering = [node for node in nodes if node.facts is not None]
    found = [_silent(node) for node in nodes if node.facts is None]
    if not answering:
        return found
    found += [ok("nodes", f"{len(answering)} of {len(nodes)} nodes answer")]
    found += check_versions(answering)
    for node in answering:
        found += check_gpus(node)
        found += check_disks(node, storage)
        found += check_interface(node, len(nodes))
        found += check_listeners(node)
        found += check_token_of(node)
        found += check_mlflow_settings(node)
        found += check_hub(node)
    return found + check_drivers(answering)


def check_versions(nodes: Sequence[ExaminedNode]) -> list[Finding]:
    """The same Python and packages as the head has (the first node where there is none)."""
    model = next((node for node in nodes if node.is_head), nodes[0])
    expected = _facts(model)["versions"]
    found = []
    for node in nodes:
        for package, version in _facts(node)["versions"].items():
            if version != expected[package]:
                sentence = f"{node.name} has {package} {version or 'none'}, {model.name} {expected[package] or 'none'}"
                remedy = "install the same on every node: pip install --constraint constraints.txt ."
                found.append(problem("versions", sentence, remedy))
    missing = [package for package, version in expected.items() if not version]
    if missing:
        remedy = "pip install --constraint constraints.txt . on every node"
        found.append(problem("versions", f"the {model.name} lacks {', '.join(missing)}", remedy))
    shown = ", ".join(f"{package} {version}" for package, version in expected.items())
    return found or [ok("versions", f"the same on {len(nodes)} nodes: {shown}")]


def check_gpus(node: ExaminedNode) -> list[Finding]:
    facts = _facts(node)
    if facts["gpu_fault"]:
        remedy = "install or restart the NVIDIA driver there, or take the node out of the cluster"
        return [problem("gpus", f"{node.name}: a driver is installed but broken: {facts['gpu_fault']}", remedy)]
    if not facts["gpus"]:
        return []
    names = ", ".join(sorted(set(facts["gpus"])))
    return [ok("gpus", f"{node.name}: {len(facts['gpus'])} x {names}, driver {facts['driver']}")]


def check_drivers(nodes: Sequence[ExaminedNode]) -> list[Finding]:
    by_driver: dict[str, list[str]] = {}
    for node in nodes:
        if _facts(node)["driver"]:
            by_driver.setdefault(_facts(node)["driver"], []).append(node.name)
    if len(by_driver) < 2:
        return []
    shown = "; ".join(f"{driver} on {', '.join(names)}" for driver, names in by_driver.items())
    return [
        warning("gpus", f"NVIDIA drivers differ: {shown}", "NCCL between them may fail: use one image for all nodes")
    ]


def check_disks(node: ExaminedNode, storage: str) -> list[Finding]:
    found = []
    for path, disk in _facts(node)["disks"].items():
        if disk is None:
            continue
        free, used = disk["free_gib"], 1 - disk["free_gib"] / max(disk["total_gib"], 1e-9)
        sentence = f"{node.name}: {free:.1f} GiB free at {path} ({used:.0%} used)"
        use = (
            "a full finetune of 7B writes 84 GB a checkpoint"
            if path == storage
            else "Ray spills objects and logs there"
        )
        remedy = f"free some, or choose a larger disk; {use}"
        if free < TOO_LITTLE_GIB or (path == "/tmp" and used > RAY_STOPS_AT):
            found.append(problem("disk", sentence, remedy))
        elif free < LITTLE_GIB:
            found.append(warning("disk", sentence, remedy))
        else:
            found.append(ok("disk", sentence))
    return found


def check_interface(node: ExaminedNode, nodes: int) -> list[Finding]:
    """Which interface gloo and NCCL will use: the one that is named, else the one with the node's own address.

    Left to itself, gloo resolves the host's name; where that means loopback, no other node connects.
    """
    facts = _facts(node)
    remedy = (
        "export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME before `ray start` there, with the interface of the "
        "default route (`ip route show default`)"
    )
    for variable, value in facts["interface_variables"].items():
        names = [name.lstrip("^=") for name in value.split(",")]
        if not value.startswith("^") and not any(i.startswith(n) for n in names for i in facts["interfaces"]):
            has = ", ".join(facts["interfaces"])
            return [problem("network", f"{node.name}: {variable} is {value}, but its interfaces are {has}", remedy)]
    named = facts["interface_variables"].get("GLOO_SOCKET_IFNAME")
    own = next((name for name, address in facts["interfaces"].items() if address == node.address), None)
    if named or own:
        return [ok("network", f"{node.name}: workers talk over {named or own}")]
    address = facts["hostname_address"]
    if address and not address.startswith("127."):
        return [ok("network", f"{node.name}: workers talk over {address}, the address of {facts['hostname']}")]
    resolves = f"{facts['hostname']} resolves to {address or 'nothing'}"
    sentence = f"{node.name}: no interface has that address, {resolves}, and GLOO_SOCKET_IFNAME is not set"
    if nodes == 1:
        return [warning("network", f"{sentence}; fine on one node, workers of several will not connect", remedy)]
    return [problem("network", f"{sentence}: workers announce 127.0.0.1 and will not connect", remedy)]


def check_listeners(node: ExaminedNode) -> list[Finding]:
    """Who listens on more than loopback, and what stands between them and the network."""
    facts, found = _facts(node), []
    open_mlflow = [one for one in facts["listeners"] if one["program"] == "mlflow"]
    for one in open_mlflow:
        sentence = f"{node.name}: MLflow listens on {one['address']}:{one['port']}; it has no login"
        remedy = "start it with --host=127.0.0.1 and reach it through SSH, or put a login in front of it"
        found.append(problem("listeners", sentence, remedy))
    ray = [one for one in facts["listeners"] if one["program"] != "mlflow"]
    if ray:
        sentence = f"{node.name}: Ray listens on more than loopback, always ({_by_program(ray)})"
        if facts["auth_mode"].lower() == "token":
            found.append(ok("listeners", f"{sentence}; the token guards it, and only a firewall hides its traffic"))
        else:
            found.append(
                problem("listeners", f"{sentence}, and no token guards it", "RAY_AUTH_MODE=token on every node")
            )
    return found


def check_mlflow_settings(node: ExaminedNode) -> list[Finding]:
    """Of an MLflow server that runs there, as far as this user can see it: what MLflow leaves open by default."""
    open_settings = [name for name, value in _facts(node)["mlflow_settings"].items() if value.lower() != "false"]
    if not open_settings:
        return []
    remedy = f"start it again with {' '.join(f'{name}=false' for name in open_settings)}"
    return [problem("mlflow", f"{node.name}: its MLflow server runs with {', '.join(open_settings)} on", remedy)]


def check_token_of(node: ExaminedNode) -> list[Finding]:
    mode = _facts(node)["token_mode"]
    if mode and int(mode, 8) & 0o077:
        sentence = f"{node.name}: the token file has mode {mode}: other users there can read it"
        return [problem("token file", sentence, "chmod 0600 it; if it was read, make a new token")]
    return []


def check_hub(node: ExaminedNode) -> list[Finding]:
    hub = _facts(node)["hub"]
    models = len(hub["cached_models"])
    cached = f"{models} models in {hub['cache']}"
    token = f"HF_TOKEN is {'set' if hub['token_is_set'] else 'not set'}"
    if hub["offline"]:
        if models:
            return [ok("hub", f"{node.name}: offline, {cached}")]
        remedy = "download the backbones there first (`hf download`), or unset HF_HUB_OFFLINE"
        return [warning("hub", f"{node.name}: offline, and {cached}: only folders can be trained", remedy)]
    if hub["reachable"]:
        return [ok("hub", f"{node.name}: {hub['endpoint']} answers, {cached}, {token}")]
    if models:
        remedy = "export HF_HUB_OFFLINE=1 before `ray start`, so that cached models load without waiting for it"
    else:
        remedy = "open the way there, set HF_ENDPOINT to a mirror, or download into a shared HF_HUB_CACHE elsewhere"
    return [warning("hub", f"{node.name}: {hub['endpoint']} does not answer; {cached}", remedy)]


def check_storage(
    nodes: Sequence[ExaminedNode], storage: str, nonces: Mapping[str, str], read: Mapping[str, Mapping[str, str]]
) -> list[Finding]:
    """Whether every node writes to, and reads from, the same storage as the head.

    nonces: the file that each node wrote, by node id. read: what each node could read, by node id and file.
    """
    answering = [node for node in nodes if node.facts is not None]
    if not answering:
        return []
    found, writers = [], []
    for node in answering:
        fault = _facts(node)["storage_fault"]
        if fault:
            sentence = f"{node.name}: {storage} is of no use: {fault}"
            found.append(problem("storage", sentence, f"mount the shared storage at {storage} on every node"))
        else:
            writers.append(node)
    model = next((node for node in writers if node.is_head), writers[0] if writers else None)
    for node in writers:
        assert model is not None
        if not _see_each_other(node, model, nonces, read):
            sentence = f"{node.name}: its {storage} is not the {model.name}'s: what one writes the other does not see"
            remedy = f"mount the same file system (NFS, EFS, Lustre) at {storage} on both; results would be lost"
            found.append(problem("storage", sentence, remedy))
    return found or [ok("storage", f"{storage} is the same on {len(answering)} nodes")]


def check_clocks(nodes: Sequence[ExaminedNode], clocks: Mapping[str, Sequence[float]]) -> list[Finding]:
    """Offsets from the doctor's own clock: (seconds, by how much that may be wrong), by node id."""
    found = []
    for node in nodes:
        if node.node_id not in clocks:
            continue
        offset, error = clocks[node.node_id]
        surely = abs(offset) - error
        sentence = f"{node.name}: its clock is {offset:+.3f} s off, give or take {error:.3f} s"
        if surely > CLOCK_PROBLEM_S:
            found.append(problem("clocks", sentence, "start time synchronisation there (chrony or systemd-timesyncd)"))
        elif surely > CLOCK_WARNING_S:
            found.append(warning("clocks", sentence, "start time synchronisation there; schedules and logs go by it"))
    worst = max((error for _, error in clocks.values()), default=0.0)
    return found or ([ok("clocks", f"{len(clocks)} clocks agree, to {worst:.3f} s")] if clocks else [])


def _see_each_other(
    node: ExaminedNode, model: ExaminedNode, nonces: Mapping[str, str], read: Mapping[str, Mapping[str, str]]
) -> bool:
    forth = nonces[model.node_id] in read.get(node.node_id, {})
    back = nonces[node.node_id] in read.get(model.node_id, {})
    return forth and back


def _by_program(listeners: Sequence[Mapping[str, Any]]) -> str:
    """`gcs_server 6379, raylet 33577 and 41033, ray on 9 ports`."""
    ports: dict[str, list[int]] = {}
    for one in listeners:
        ports.setdefault(one["program"], []).append(one["port"])
    return ", ".join(
        f"{program} {' and '.join(map(str, mine))}" if len(mine) < 4 else f"{program} on {len(mine)} ports"
        for program, mine in ports.items()
    )


def _silent(node: ExaminedNode) -> Finding:
    remedy = "look at raylet.err in its session_latest/logs, restart Ray there, or take it out of the cluster"
    return problem("nodes", f"{node.name} does not answer: a task of no demand did not finish there in time", remedy)


def _facts(node: ExaminedNode) -> Mapping[str, Any]:
    assert node.facts is not None
    return node.facts
