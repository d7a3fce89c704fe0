"""`cluster.yaml`: accepted by Ray, valid against the installed tools, closed to strangers. Contacts no cloud."""

import copy
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
CONFIG: dict[str, Any] = yaml.safe_load(TEXT)
COMMAND_LISTS = [key for key in CONFIG if key.endswith("_commands")]

SECRETS = {
    "AWS key id": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "AWS secret key": r"(?i)aws_secret_access_key\s*[:=]",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "GitHub token": r"\b(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,}",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "Ray token (64 hex digits)": r"\b[0-9a-f]{64}\b",
    "token or password by value": r"(?i)\b\w*(?:token|password|secret|api_key)\s*=\s*[^\s$<]",
    "password in a URL": r"://[^\s/:@]+:[^\s/@$]+@",
}


def all_commands() -> list[str]:
    return [command for key in COMMAND_LISTS for command in CONFIG[key]]


def programs(command: str) -> list[list[str]]:
    """The argument vectors in a shell command line, split at `&&`, `||`, `|`, `;` and parentheses."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    argvs: list[list[str]] = [[]]
    for token in lexer:
        if set(token) <= set("&|;()"):
            argvs.append([])
        else:
            argvs[-1].append(token)
    return [argv for argv in argvs if argv]


def arguments_of(tool: str, subcommand: str) -> list[list[str]]:
    """What follows `tool subcommand`, wherever the file calls it."""
    found = []
    for argv in (argv for command in all_commands() for argv in programs(command)):
        names = [Path(word).name for word in argv]
        starts = [i for i, pair in enumerate(pairwise(names)) if pair == (tool, subcommand)]
        found += [argv[start + 2 :] for start in starts]
    return found


def options(arguments: list[str]) -> dict[str, str]:
    """`--name=value` arguments; a flag and an option with a separate value map to an empty string."""
    return {name: value for name, _, value in (word.partition("=") for word in arguments if word.startswith("--"))}


def documented_options(tool: str, subcommand: str) -> set[str]:
    program = Path(sys.executable).with_name(tool)
    shown = subprocess.run([program, subcommand, "--help"], capture_output=True, text=True, check=True).stdout
    return {name for line in shown.splitlines() for name in re.findall(r"(--[a-z][a-z-]*)", line[:40])}


def secrets_in(text: str) -> list[str]:
    return [name for name, pattern in SECRETS.items() if re.search(pattern, text)]


def the_command_with(words: str, key: str) -> str:
    (command,) = [command for command in CONFIG[key] if words in command]
    return str(command)


# --- Ray accepts it ---


def test_the_file_passes_the_validation_that_ray_up_runs() -> None:
    validate_config(prepare_config(copy.deepcopy(CONFIG)))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda config: config.update(idle_timeout_minuts=5), jsonschema.ValidationError),
        (lambda config: config["available_node_types"]["gpu_worker"].update(max_worker=4), jsonschema.ValidationError),
        (lambda config: config["auth"].update(token="x"), jsonschema.ValidationError),
        (lambda config: config.update(max_workers="two"), jsonschema.ValidationError),
        (lambda config: config["setup_commands"].append({"run": "pip"}), jsonschema.ValidationError),
        (lambda config: config.update(head_node_type="heads"), ValueError),
        (lambda config: config["available_node_types"]["gpu_worker"].update(min_workers=99), ValueError),
    ],
    ids=["unknown key", "unknown node key", "unknown auth key", "wrong type", "not a command", "no such head", "min"],
)
def test_a_damaged_file_fails_that_validation(damage: Callable[[dict[str, Any]], None], error: type[Exception]) -> None:
    config = copy.deepcopy(CONFIG)
    damage(config)
    with pytest.raises(error):
        validate_config(prepare_config(config))


# --- its commands exist ---


@pytest.mark.parametrize("command", all_commands())
def test_every_command_is_valid_shell(command: str) -> None:
    checked = subprocess.run(["bash", "-n", "-c", f"({command})"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("tool", "subcommand"), [("ray", "start"), ("ray", "get-auth-token"), ("mlflow", "server"), ("hf", "download")]
)
def test_every_option_exists_in_the_installed_version(tool: str, subcommand: str) -> None:
    calls, documented = arguments_of(tool, subcommand), documented_options(tool, subcommand)
    assert calls, f"cluster.yaml never runs `{tool} {subcommand}`"
    assert "--no-such-option" not in documented
    for call in calls:
        assert not options(call).keys() - documented, f"`{tool} {subcommand} --help` does not list these options"


def test_every_file_that_the_launcher_copies_exists() -> None:
    missing = [local for local in CONFIG["file_mounts"].values() if not (ROOT / local).exists()]
    assert not missing, f"`ray up` would stop at these file_mounts: {missing}"


def test_the_nodes_install_the_project_with_its_constraints() -> None:
    install = the_command_with("pip install", "setup_commands")
    assert "--constraint constraints.txt ." in install
    assert {"constraints.txt", "pyproject.toml"} <= set(CONFIG["file_mounts"].values())


# --- security ---


def test_no_secret_is_written_in_the_file() -> None:
    assert secrets_in(TEXT) == []


@pytest.mark.parametrize(
    "planted",
    [
        "export RAY_AUTH_TOKEN=0f1e2d3c",
        "- echo " + "0a" * 32 + " > ~/.ray/auth_token",
        "HF_TOKEN=hf_" + "x" * 30,
        "--backend-store-uri=postgresql://mlflow:hunter2@db/mlflow",
        "aws_access_key_id: AKIA" + "A" * 16,
    ],
)
def test_the_secret_scan_finds_a_planted_secret(planted: str) -> None:
    assert secrets_in(f"{TEXT}\n{planted}\n")


def test_every_ray_process_starts_with_token_authentication() -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        before_start, _, _ = the_command_with("ray start", key).partition("ray start")
        assert re.search(r"export [^&]*\bRAY_AUTH_MODE=token\b", before_start), (
            f"{key}: export RAY_AUTH_MODE=token first"
        )
    assert "export RAY_AUTH_MODE=token" in the_command_with(".bashrc", "setup_commands")


def test_the_token_is_private_kept_and_never_printed(tmp_path: Path) -> None:
    (tmp_path / "venv").symlink_to(sys.prefix)
    command = the_command_with("get-auth-token", "head_setup_commands")
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    token_file = tmp_path / ".ray" / "auth_token"
    tokens = []
    for _ in range(2):
        run = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True)
        tokens.append(token_file.read_text())
        assert tokens[-1] not in run.stdout + run.stderr
    assert len(tokens[0]) == 64 and tokens[0] == tokens[1]
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(token_file.parent.stat().st_mode) == 0o700


def test_workers_get_the_token_from_the_head_not_from_this_repository() -> None:
    assert CONFIG["cluster_synced_files"] == ["~/.ray/auth_token"]
    assert not [path for path in CONFIG["file_mounts"] if "token" in path or ".ssh" in path]


def test_the_dashboard_and_mlflow_listen_on_loopback_only() -> None:
    (head,) = [call for call in arguments_of("ray", "start") if "--head" in call]
    (server,) = arguments_of("mlflow", "server")
    assert options(head)["--dashboard-host"] == "127.0.0.1"
    assert options(server)["--host"] == "127.0.0.1"


def test_mlflow_runs_no_jobs_unpickles_nothing_and_names_its_hosts() -> None:
    command = the_command_with("mlflow server", "head_start_ray_commands")
    (server,) = arguments_of("mlflow", "server")
    assert "--setenv=MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in command
    assert "--setenv=MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false" in command
    hosts = options(server)["--allowed-hosts"].split(",")
    assert hosts and not [host for host in hosts if "*" in host]
    assert options(server)["--backend-store-uri"].startswith(("sqlite:////shared/", "postgresql://"))
    assert "--disable-security-middleware" not in server


def test_drivers_find_the_mlflow_server_and_the_shared_storage() -> None:
    start = the_command_with("ray start --head", "head_start_ray_commands")
    (server,) = arguments_of("mlflow", "server")
    assert f"MLFLOW_TRACKING_URI=http://127.0.0.1:{options(server)['--port']} " in start
    assert re.search(r"\bBACKBONE_STORAGE=/shared/\S+", start)


def test_no_node_lets_ray_create_a_security_group_open_to_the_internet() -> None:
    for name, node_type in CONFIG["available_node_types"].items():
        assert node_type["node_config"].get("SecurityGroupIds"), f"{name}: without one Ray opens SSH to 0.0.0.0/0"
    assert "0.0.0.0" not in TEXT


# --- nodes ---


def test_gpu_workers_scale_from_zero_and_the_head_takes_no_tasks() -> None:
    node_types = prepare_config(copy.deepcopy(CONFIG))["available_node_types"]
    worker, head = node_types["gpu_worker"], node_types[CONFIG["head_node_type"]]
    assert worker["resources"]["GPU"] > 0
    assert worker["min_workers"] == 0 < worker["max_workers"] <= CONFIG["max_workers"]
    assert 0 < CONFIG["idle_timeout_minutes"] <= 30
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0


def test_no_node_starts_ray_without_the_shared_storage() -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = CONFIG[key]
        guard = next(i for i, command in enumerate(commands) if command.startswith("mountpoint -q /shared"))
        assert guard < next(i for i, command in enumerate(commands) if "ray start" in command)


def test_models_are_fetched_once_at_pinned_revisions_and_workers_stay_offline() -> None:
    for call in arguments_of("hf", "download"):
        assert re.fullmatch(r"[0-9a-f]{40}", call[call.index("--revision") + 1]), f"{call[0]}: pin 40 hex digits"
    cache = re.search(r"HF_HUB_CACHE=(\S+)", the_command_with("ray start", "worker_start_ray_commands"))
    assert cache and all(
        f"HF_HUB_CACHE={cache[1]} " in command for command in all_commands() if "hf download" in command
    )
    assert "HF_HUB_OFFLINE=1" in the_command_with("ray start", "worker_start_ray_commands")


# --- the queue ---


def test_the_dispatcher_starts_last_on_the_head_and_with_the_drivers_storage() -> None:
    commands = CONFIG["head_start_ray_commands"]
    order = [
        next(i for i, command in enumerate(commands) if words in command)
        for words in ("mlflow server", "/health", "ray start --head", "jobs.dispatcher start")
    ]
    assert order == sorted(order) and order[-1] == len(commands) - 1
    storage = re.search(r"BACKBONE_STORAGE=(\S+)", the_command_with("ray start --head", "head_start_ray_commands"))
    assert storage and f" start --storage {storage[1]} " in commands[-1]
    assert not [command for command in CONFIG["worker_start_ray_commands"] if "dispatcher" in command]


# --- the variant for machines of one's own ---

ON_PREMISE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "on-premise.yaml").read_text(encoding="utf-8"))
# (as on AWS, as there): the only differences between the commands of the two files
DIFFERENCES = (
    ("-o ubuntu -g ubuntu", "-o $USER -g $(id -gn)"),
    ("--uid=ubuntu", "--uid=$USER"),
    ("/home/ubuntu/", "$HOME/"),
    (" --autoscaling-config ~/ray_bootstrap_config.yaml", " --may-grow"),  # it does not say what those machines have
)
AWS_ONLY = ("boto3",)


def test_the_variant_passes_the_validation_that_ray_up_runs() -> None:
    validate_config(prepare_config(copy.deepcopy(ON_PREMISE)))


def test_the_variant_holds_no_secret() -> None:
    assert secrets_in((ROOT / "deploy" / "on-premise.yaml").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("key", [key for key in COMMAND_LISTS if key != "initialization_commands"])
def test_the_variants_commands_are_those_of_aws_but_for_names(key: str) -> None:
    expected = []
    for command in CONFIG[key]:
        for on_aws, there in DIFFERENCES:
            command = command.replace(on_aws, there)
        expected += [] if any(word in command for word in AWS_ONLY) else [command]
    assert ON_PREMISE[key] == expected


def test_the_variant_copies_the_same_files() -> None:
    for key in ("file_mounts", "rsync_exclude", "cluster_synced_files"):
        assert ON_PREMISE[key] == CONFIG[key]
