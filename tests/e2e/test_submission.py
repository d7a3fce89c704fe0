"""The queue from a laptop, on a cluster of one machine: idempotent, on a clock, and silent about secrets.

Over 300 lines: starting the cluster costs more than all that is asked of it.
"""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from product import ROOT, Job, clean_environment, free_port, wait_for, write_job

from jobs.results.documents import load_report

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
CANARY = "canary-3f9a1c77"


class OneMachine:
    """`backbone up` in a folder of its own, with secrets in its environment."""

    def __init__(self, folder: Path):
        self.folder, self.storage = folder, folder / "storage"
        self.folder.mkdir(parents=True)
        self.ports = {name: free_port() for name in ("port", "dashboard-port", "mlflow-port")}
        self.address = f"http://127.0.0.1:{self.ports['dashboard-port']}"
        self.token = folder / "token"

    @property
    def environment(self) -> dict[str, str]:
        secrets = {"HF_TOKEN": CANARY, "MLFLOW_TRACKING_PASSWORD": CANARY, "MLFLOW_TRACKING_USERNAME": "ada"}
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        return {**clean_environment(), **secrets, **auth, "HF_HUB_OFFLINE": "1"}

    def run(self, *arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", *arguments],
            cwd=cwd,
            env={**self.environment, "PYTHONPATH": str(ROOT), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """A command that goes on while others are given."""
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments],
            cwd=ROOT,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def up(self) -> None:
        options = [f"--{name}={port}" for name, port in self.ports.items()]
        started = self.run("up", f"--storage={self.storage}", "--num-cpus=4", *options)
        assert started.returncode == 0, started.stdout + started.stderr

    def ask(self, *arguments: str, cwd: Path = ROOT, address: str = "") -> Any:
        answer = self.run(*arguments, "--json", f"--address={address or self.address}", cwd=cwd)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return json.loads(answer.stdout)

    def job(self, name: str, **changes: Any) -> Job:
        return write_job(self.folder / name, storage=None, name=name, recipe__budget__amount=8, **changes)

    def wait_until_over(self, job_id: str, facts: str = "report.json") -> dict[str, Any]:
        report = self.storage / job_id / facts  # a question is a job on the cluster: look before asking
        wait_for(report.exists, f"a report of {job_id}", timeout_s=300)

        def over() -> dict[str, Any] | None:
            job: dict[str, Any] = self.ask("status", job_id)
            return job if job["ended_s"] else None

        return wait_for(over, f"the end of {job_id}", timeout_s=120)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneMachine]:
    one = OneMachine(tmp_path_factory.mktemp("machine") / "one")
    try:
        one.up()
        yield one
    finally:
        ended = one.run("down", f"--storage={one.storage}")
    assert ended.returncode == 0, ended.stdout + ended.stderr


class LosingProxy(BaseHTTPRequestHandler):
    """Passes everything on to the cluster, but drops the answer to the first submission of a job."""

    target = ""
    dropped = 0

    def do_GET(self) -> None:
        self._pass_on(None)

    def do_DELETE(self) -> None:
        self._pass_on(None)

    def do_PUT(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_POST = do_PUT

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""

    def _pass_on(self, body: bytes | None) -> None:
        headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Content-Length")}
        request = urllib.request.Request(type(self).target + self.path, body, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        if self.command == "POST" and self.path == "/api/jobs/" and type(self).dropped == 0:
            type(self).dropped += 1
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def test_the_same_submission_twice_and_once_with_its_reply_lost_is_one_job(machine: OneMachine) -> None:
    job = machine.job("once", recipe__budget={"kind": "steps", "ladder": [8, 4]})
    first = machine.ask("submit", job.spec.name, cwd=job.folder)
    LosingProxy.target = machine.address
    with ThreadingHTTPServer(("127.0.0.1", 0), LosingProxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.server_port}"
        second = machine.ask("submit", job.spec.name, cwd=job.folder, address=address)
        proxy.shutdown()
    third = machine.ask("submit", job.spec.name, cwd=job.folder)

    assert LosingProxy.dropped == 1
    assert first["job_id"] == second["job_id"] == third["job_id"]
    assert [one["job_id"] for one in machine.ask("queue")["jobs"]] == [first["job_id"]]
    over = machine.wait_until_over(first["job_id"])
    assert over["state"] == "SUCCEEDED", over
    assert over["attempt"] == 1
    _check_ladder(machine.storage / first["job_id"], [4, 8])
    assert [event["kind"] for event in over["events"]].count("submitted") == 1
    again = machine.run("submit", job.spec.name, "--wait", f"--address={machine.address}", cwd=job.folder)
    assert again.returncode == 0
    assert "succeeded" in again.stdout


@pytest.mark.chaos  # test_growth.py and test_adoption.py show its parts: by hand
def test_a_backbone_joins_a_comparison_in_the_queue_and_only_its_cell_trains(machine: OneMachine) -> None:
    first, joins = ["tiny-llama2", "tiny-mistral"], "tiny-qwen"
    shared = {"seeds": [0], "recipe__data__parity": "intersection", "placement__workers": 1}
    for names in (first, [*first, joins]):
        job = machine.job("grows", backbones=names, **shared)
        submitted = machine.ask("submit", job.spec.name, "--no-certificate", cwd=job.folder)
        over = machine.wait_until_over(submitted["job_id"])
        assert over["state"] == "SUCCEEDED", over
    ended = {cell["cell_id"]: (cell["state"], cell["note"]) for cell in over["cells"]}
    report = json.loads((machine.storage / over["job_id"] / "report.json").read_text())
    found = ("SUCCEEDED", "found finished in the storage")
    for cell in report["cells"]:
        assert (cell["backbone_id"] == joins) == ("adoption" not in cell)
        assert ended[cell["cell_id"]] == (("SUCCEEDED", "") if cell["backbone_id"] == joins else found)
    assert machine.ask("queue")["leases"] == []


def test_a_schedule_fires_twice_and_the_second_run_shows_its_history(machine: OneMachine) -> None:
    job = machine.job("nightly-spec")
    added = machine.ask(
        "schedule", "add", "nightly", job.spec.name, "--cron=* * * * *", "--overlap=queue", cwd=job.folder
    )
    assert added["next"]

    wait_for(lambda: len(list(machine.storage.glob("nightly-spec-*"))) >= 2, "two firings", timeout_s=300)

    def fired() -> list[dict[str, Any]] | None:
        history: list[dict[str, Any]] = machine.ask("schedule", "show", "nightly")["history"]
        jobs = [firing for firing in history if firing["job_id"]]
        return jobs if len(jobs) >= 2 else None

    firings = wait_for(fired, "two firings told of", timeout_s=60)
    machine.ask("schedule", "pause", "nightly")
    one, two = (machine.wait_until_over(firing["job_id"]) for firing in firings[:2])
    assert (one["state"], two["state"]) == ("SUCCEEDED", "SUCCEEDED")
    assert one["cells"][0]["cell_id"] != two["cells"][0]["cell_id"], "each firing measures anew"
    report = json.loads((machine.storage / two["job_id"] / "report.json").read_text())
    rows = report["history"]["rows"]
    assert {row["backbone_id"] for row in rows} == {"tiny-llama2"}
    first_tick = one["occurrence"].partition("/")[2]
    assert {earlier["tick"] for row in rows for earlier in row["earlier"]} == {first_tick}
    assert "nightly/" in (machine.storage / two["job_id"] / "report.html").read_text()


def test_a_benchmark_is_submitted_and_a_certificate_takes_a_lease(machine: OneMachine) -> None:
    job = machine.job("speed")
    submitted = machine.ask("submit", job.spec.name, "--benchmark", "--steps=4", "--warmup=1", cwd=job.folder)
    assert (submitted["kind"], submitted["in_turn"]) == ("benchmark", True)
    address = f"127.0.0.1:{machine.ports['port']}"
    certified = machine.run("certify", "tiny-llama2", f"--storage={machine.storage}", RAY_ADDRESS=address)
    assert certified.returncode == 0, certified.stdout + certified.stderr
    hopeless = machine.run("certify", "tiny-llama2", "--workers=999", RAY_ADDRESS=address)
    assert hopeless.returncode != 0
    assert "never fits: the cluster has" in hopeless.stderr, hopeless.stdout + hopeless.stderr

    over = machine.wait_until_over(submitted["job_id"], "benchmark.json")
    assert over["state"] == "SUCCEEDED", over
    facts = json.loads((machine.storage / submitted["job_id"] / "benchmark.json").read_text())
    assert facts["benchmark"]["measured_steps"] == 4
    assert [cell["status"] for cell in facts["cells"]] == ["SUCCEEDED"]
    rows = [one for one in machine.ask("queue")["jobs"] if one["kind"] == "certificate"]
    row, refused = sorted(rows, key=lambda one: float(one["submitted_s"]))
    assert refused["state"] == "FAILED"
    (granted, ended) = [e for e in machine.ask("status", row["job_id"])["events"] if e["kind"] in ("granted", "ended")]
    assert row["state"] == "SUCCEEDED"
    assert granted["time_s"] < ended["time_s"]
    assert machine.ask("queue")["leases"] == []


def test_a_certificate_that_is_stopped_in_the_queue_ends(machine: OneMachine) -> None:
    """Its proofs have no checkpoint: they end at once, and give their lease back."""
    address = f"127.0.0.1:{machine.ports['port']}"
    certify = machine.start("certify", "tiny-mistral", f"--storage={machine.storage}", RAY_ADDRESS=address)
    folder, name = machine.storage / "certificates", "tiny-mistral"
    (begun,) = wait_for(lambda: list(folder.glob(f".{name}-*")), "the beginning of the proofs", alive=certify)
    machine.ask("stop", f"certificate-{name}-{begun.name.rpartition('-')[2][:12]}")
    said, _ = certify.communicate(timeout=120)
    assert certify.returncode == 1
    assert "the proofs were not finished: stopped by" in said
    assert list(folder.glob(f".{name}-*")) == []
    assert machine.ask("queue")["leases"] == []


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("wrong token", "refuses this token"),
        ("no token", "wants a token and none was sent"),
        ("nobody there", "nothing answers at"),
        ("999 workers", "never fits: the cluster has"),
        ("bad spec", "did you mean 'recipe.precision'?"),
    ],
)
def test_what_cannot_work_is_said_within_seconds(machine: OneMachine, what: str, said: str) -> None:
    changes: dict[str, Any] = {"999 workers": {"placement__workers": 999, "recipe__global_batch_size": 1998}}.get(
        what, {}
    )
    changes |= {"recipe__precison": "fp32"} if what == "bad spec" else {}
    job = machine.job(what.replace(" ", "-"), **changes)
    wrong = machine.folder / "no-token-of-this-cluster"
    wrong.write_text("0" * 64)
    variables = {"wrong token": {"RAY_AUTH_TOKEN_PATH": str(wrong)}, "no token": {"RAY_AUTH_TOKEN_PATH": "/nowhere"}}
    address = f"http://127.0.0.1:{free_port()}" if what == "nobody there" else machine.address
    refused = machine.run("submit", job.spec.name, f"--address={address}", cwd=job.folder, **variables.get(what, {}))
    assert refused.returncode == (2 if what in ("999 workers", "bad spec") else 1), refused.stdout + refused.stderr
    assert said in refused.stderr, refused.stderr


def test_no_secret_is_found_anywhere(machine: OneMachine) -> None:
    """In the storage (queue, MLflow, logs, reports, code) and in Ray's session, after jobs ran with secrets at hand."""
    token = machine.token.read_text().strip()
    listing = urllib.request.Request(f"{machine.address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(listing, timeout=30) as answer:
        told = answer.read()
    assert b"jobs.compare" in told
    assert CANARY.encode() not in told
    places = [machine.storage, *map(Path, _sessions(machine))]
    found = [
        str(path)
        for place in places
        for path in place.rglob("*")
        if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes()
    ]
    assert found == []
    assert any("queue.db" in str(path) for path in machine.storage.rglob("*"))


def _check_ladder(folder: Path, amounts: list[int]) -> None:
    """Every budget was trained to its end and has a report of its own; the job's is of the largest."""
    report = load_report(folder / "report.json")
    budgets = report["ladder"]["budgets"]
    assert [one["amount"] for one in budgets] == amounts and report["ladder"]["sentence"]
    for one in budgets:
        (cell,) = load_report(folder.with_name(one["id"]) / "report.json")["cells"]
        assert cell["metrics"]["steps"] == one["amount"]
        assert one["scores"][cell["backbone_id"]]["0"] == pytest.approx(cell["metrics"]["val_bits_per_byte"])
        assert cell["mlflow_run_id"]
    assert report["cells"] == [cell]
    assert "Score against budget" in (folder / "report.html").read_text()


def _sessions(machine: OneMachine) -> set[str]:
    """Ray's session folders of this cluster, as its processes name them."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            inherited = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(machine.storage) in inherited:
            found |= {word.partition("=")[2] for word in words if word.startswith(("--session-dir=", "--session_dir="))}
    assert found, "Ray's processes name their session"
    return {name for name in found if os.path.isdir(name)}
