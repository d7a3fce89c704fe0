"""MLflow and the dispatcher: what runs beside Ray on the head."""

import re
from collections.abc import Mapping
from importlib import metadata
from urllib.parse import urlsplit

from jobs.cluster.endpoint import http_get
from jobs.doctor.finding import Finding, ok, problem, warning
from orchestrator.tracking.run import without_password

OLDEST_MLFLOW = (3, 17, 2)  # the first without the path traversal of CVE-2026-53995


def check_mlflow(uri: str) -> list[Finding]:
    """Whether drivers will reach their tracking server, and whether it is closed as far as can be seen from outside."""
    shown = without_password(uri)
    if not uri:
        return [ok("mlflow", "drivers are given no MLflow server; each job writes SQLite below its storage")]
    if urlsplit(uri).scheme not in ("http", "https"):
        return [ok("mlflow", f"drivers write to {shown} directly")]
    answer = http_get(f"{uri.rstrip('/')}/health")
    if answer.status is None:
        remedy = "start it; until then steps wait in the storage's spools, and nothing is lost"
        return [problem("mlflow", f"nothing answers at {shown}: {answer.text}", remedy)]
    if answer.status in (401, 403):
        return [ok("mlflow", f"{shown} answers, and demands a login")]
    return [_check_mlflow_version(uri, shown), *_check_mlflow_names(uri, shown)]


def check_dispatcher(answer: Mapping[str, str] | None) -> Finding:
    """From what its actor said. Without it jobs still run, but nobody orders them."""
    remedy = "on the head: python -m jobs.dispatcher start --storage STORAGE (`backbone up` does it too)"
    if answer is None:
        return warning("dispatcher", "it could not be asked", remedy)
    if answer["fault"]:
        return warning("dispatcher", f"{answer['fault']}: jobs are not queued and have no priorities", remedy)
    return ok("dispatcher", "it answers")


def _check_mlflow_version(uri: str, shown: str) -> Finding:
    text = http_get(f"{uri.rstrip('/')}/version").text.strip()
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    if numbers is None:
        return warning("mlflow", f"{shown} answers, but does not say its version", "is it an MLflow server?")
    if tuple(int(number) for number in numbers.groups()) < OLDEST_MLFLOW:
        oldest = ".".join(map(str, OLDEST_MLFLOW))
        remedy = f"pip install 'mlflow>={oldest}' there, and start it again"
        return problem("mlflow", f"{shown} is MLflow {text}, which has published holes", remedy)
    ours = metadata.version("mlflow")
    beside = "" if text == ours else f" ({ours} is installed here)"
    return ok("mlflow", f"{shown} is MLflow {text}{beside}")


def _check_mlflow_names(uri: str, shown: str) -> list[Finding]:
    """A server that takes any Host header can be reached from a web page by rebinding a name to its address."""
    path = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get?experiment_id=0"
    if http_get(path, host="backbone-doctor.invalid").status == 403:
        return []
    remedy = "start it with --allowed-hosts=localhost:PORT,127.0.0.1:PORT and without --disable-security-middleware"
    return [warning("mlflow", f"{shown} takes requests for any host name", remedy)]
