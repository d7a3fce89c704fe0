"""What one node says of itself. Only the standard library, and nothing of ours: it is sent to nodes as it stands here,
so that it runs on one whose installation is the thing that is wrong. Hence no psutil for sockets and interfaces, and
copies of what stands elsewhere: `without_password`, `is_loopback`, GIB.

No value of a secret leaves a node: only whether it is set.
"""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

PACKAGES = ("ray", "torch", "transformers", "backbone-orchestrator")
MLFLOW_SETTINGS = ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION")  # on by default
GIB = 2**30
LISTENING = "0A"  # in /proc/net/tcp
GET_ADDRESS = 0x8915  # SIOCGIFADDR


def gather(storage: str, nonce_name: str, nonce: str) -> dict[str, Any]:
    """Every fact of this node as plain data; writes the nonce below the storage, if that exists here."""
    tracking_uri, served = os.environ.get("MLFLOW_TRACKING_URI", ""), served_sockets()
    return {
        "hostname": socket.gethostname(),
        "versions": versions(),
        **gpus(),
        "disks": {path: disk(path) for path in ("/tmp", storage) if path},
        "storage_fault": write_nonce(storage, nonce_name, nonce),
        "interfaces": interfaces(),
        "interface_variables": {
            name: os.environ[name] for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name in os.environ
        },
        "hostname_address": hostname_address(),
        "listeners": listeners(served),
        "mlflow_settings": mlflow_settings(served, port_of(tracking_uri)),
        "auth_mode": os.environ.get("RAY_AUTH_MODE", ""),
        "token_mode": token_mode(),
        "hub": hub(),
        "tracking_uri": without_password(tracking_uri),
    }


def versions() -> dict[str, str]:
    """Python and the packages that must be the same everywhere; '' for one that is not installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def gpus() -> dict[str, Any]:
    """Name and driver of each NVIDIA GPU, and why there is no answer where a driver is installed but broken."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"gpus": [], "driver": "", "gpu_fault": ""}
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        return {"gpus": [], "driver": "", "gpu_fault": f"nvidia-smi: {type(error).__name__}"}
    if ran.returncode:
        return {"gpus": [], "driver": "", "gpu_fault": (ran.stdout + ran.stderr).strip()[:200]}
    return parse_gpus(ran.stdout)


def parse_gpus(listing: str) -> dict[str, Any]:
    """Of lines such as `NVIDIA H100 80GB HBM3, 550.54.15`."""
    rows = [line.rsplit(",", 1) for line in listing.splitlines() if "," in line]
    return {"gpus": [row[0].strip() for row in rows], "driver": rows[0][1].strip() if rows else "", "gpu_fault": ""}


def disk(path: str) -> dict[str, float] | None:
    """Free and total GiB of the file system at `path`, which may not exist yet."""
    existing = next(parent for parent in (Path(path), *Path(path).parents) if parent.exists())
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(existing)
        return {"free_gib": usage.free / GIB, "total_gib": usage.total / GIB}
    return None


def write_nonce(storage: str, name: str, nonce: str) -> str:
    """Why this node cannot write to the storage; '' when it can, and did. Never creates the storage itself."""
    if not storage:
        return "none is set"
    if not Path(storage).is_dir():
        return "it does not exist"
    try:
        folder = Path(storage) / ".doctor"
        folder.mkdir(exist_ok=True)
        with open(folder / name, "w", encoding="utf-8") as stream:
            stream.write(nonce)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return f"it cannot be written: {error.strerror}"
    return ""


def read_nonces(storage: str, names: list[str], limit_s: float) -> dict[str, str]:
    """The nonces that this node can read. A network file system may show a new file late, hence several tries."""
    deadline = time.monotonic() + limit_s
    while True:
        found: dict[str, str] = {}
        for name in names:
            with contextlib.suppress(OSError):
                found[name] = (Path(storage) / ".doctor" / name).read_text(encoding="utf-8")
        if len(found) == len(names) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def remove_nonce(storage: str, name: str) -> None:
    """Clears up after `write_nonce`; the folder goes with its last file."""
    with contextlib.suppress(OSError):
        (Path(storage) / ".doctor" / name).unlink()
    with contextlib.suppress(OSError):
        (Path(storage) / ".doctor").rmdir()


def environment(name: str) -> str:
    """One variable as Ray's processes have it here."""
    return os.environ.get(name, "")


def clock_s() -> float:
    """Seconds since the epoch."""
    return time.time()


def interfaces() -> dict[str, str]:
    """The IPv4 address of each network interface; '' for one that has none."""
    return {name: interface_address(name) for _, name in socket.if_nameindex()}


def interface_address(name: str) -> str:
    """Asks the kernel, netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything, contextlib.suppress(OSError):
        answer = fcntl.ioctl(anything, GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    return ""


def hostname_address() -> str:
    """What gloo announces to its peers where no interface is named; '' when the host name resolves to nothing."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


def token_mode() -> str:
    """The mode of this node's token file, such as 0600; '' where there is none."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    with contextlib.suppress(OSError):
        return f"{stat.S_IMODE(path.stat().st_mode):04o}"
    return ""


def hub() -> dict[str, Any]:
    """How models reach this node."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    return {
        "cache": str(cache),
        "cached_models": sorted(path.name for path in cache.glob("models--*"))[:50],
        "offline": os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true"),
        "token_is_set": bool(os.environ.get("HF_TOKEN")),
        "endpoint": without_password(os.environ.get("HF_ENDPOINT", "https://huggingface.co")),
        "reachable": hub_answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co")),
    }


def hub_answers(endpoint: str, limit_s: float = 5.0) -> bool:
    """Whether the hub, or the proxy on the way to it, takes a connection."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    parts = urlsplit(proxy or endpoint)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=limit_s).close()
    except (OSError, ValueError):
        return False
    return True


def port_of(uri: str) -> int | None:
    """Of a URL; None where it names none."""
    with contextlib.suppress(ValueError):
        return urlsplit(uri).port
    return None


def without_password(uri: str) -> str:
    """A URI as it may be shown."""
    return re.sub(r"://[^/@]*@", "://***@", uri)


def listeners(served: list["Served"]) -> list[dict[str, Any]]:
    """Sockets of Ray's and MLflow's processes that listen on more than loopback: address, port, program."""
    found = [
        {"address": one.address, "port": one.port, "program": one.program}
        for one in served
        if not is_loopback(one.address)
    ]
    return sorted(found, key=lambda one: (one["program"], one["port"]))


def mlflow_settings(served: list["Served"], port: int | None) -> dict[str, str]:
    """What the MLflow server at `port` was told of the settings that are dangerous; its default where of nothing."""
    for one in served:
        if one.program == "mlflow" and one.port == port:
            with contextlib.suppress(OSError):
                told = (one.process / "environ").read_bytes().decode(errors="replace").split("\0")
                variables = dict(word.split("=", 1) for word in told if "=" in word)
                return {name: variables.get(name, "true") for name in MLFLOW_SETTINGS}
    return {}


class Served(NamedTuple):
    """One listening socket of Ray or MLflow."""

    address: str
    port: int
    program: str
    process: Path  # below /proc


def served_sockets(root: Path = Path("/proc")) -> list[Served]:
    """Of the processes that this user may look into."""
    listening = {}
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(OSError):
            listening.update(parse_sockets((root / table).read_text(encoding="utf-8")))
    processes = [process for process in root.iterdir() if process.name.isdigit()]
    return [
        Served(*listening[inode], program, process)
        for process in processes
        if (program := program_name(process))
        for inode in sorted(socket_inodes(process) & listening.keys())
    ]


def parse_sockets(table: str) -> dict[str, tuple[str, int]]:
    """Address and port by inode, of the listening rows of /proc/net/tcp or tcp6."""
    rows = [line.split() for line in table.splitlines()[1:]]
    return {row[9]: parse_address(row[1]) for row in rows if len(row) > 9 and row[3] == LISTENING}


def parse_address(field: str) -> tuple[str, int]:
    """`0100007F:1F90` is 127.0.0.1:8080: each 32-bit word is in the machine's byte order."""
    words, port = field.split(":")
    raw = b"".join(int(words[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(words), 8))
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw).removeprefix("::ffff:"), int(port, 16)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it."""
    return address.startswith("127.") or address == "::1"


def socket_inodes(process: Path) -> set[str]:
    """The sockets that a process has open."""
    found = set()
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def program_name(process: Path) -> str:
    """gcs_server, raylet, dashboard, mlflow, ray (its other processes); '' for anything else."""
    try:
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    for name, sign in (("gcs_server", "/gcs/gcs_server"), ("raylet", "/raylet/raylet"), ("dashboard", "dashboard.py")):
        if sign in command:
            return name
    if "mlflow" in command and ("server" in command or "uvicorn" in command):
        return "mlflow"
    return "ray" if command.startswith("ray::") or "/site-packages/ray/" in command or " ray." in command else ""
