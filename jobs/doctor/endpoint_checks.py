"""What can be seen of a cluster from anywhere: does its job API answer, to whom, and in which version."""

import json
import os
import stat
from importlib import metadata
from urllib.parse import urlsplit

from jobs.cluster.endpoint import Answer, find_token, http_get, is_loopback, token_path
from jobs.doctor.finding import Finding, ok, problem, warning

CHECK, REACHABLE = "token", "reachable"
SUBMIT_PATH = "/api/jobs/"
EXPORT = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE, with the cluster's token in FILE (mode 0600)"


def check_endpoint(url: str) -> list[Finding]:
    """Reachable, closed to strangers, open to us, same version. `url` is the dashboard's, http or https."""
    url = url.rstrip("/")
    stranger = http_get(url + SUBMIT_PATH)
    if stranger.status is None:
        return [_unreachable(url, stranger)]
    found = [_check_stranger(url, stranger), *check_token_file()]
    if stranger.status in (401, 403):
        found += _check_ours(url)
    if urlsplit(url).scheme == "http" and not is_loopback(url):
        remedy = "reach it through an SSH tunnel (`ray dashboard cluster.yaml`), or put TLS in front and use https"
        found.append(warning("encryption", f"the token travels to {url} unencrypted", remedy))
    version = _check_version(url, stranger.status == 200)
    return [*found, *([version] if version else [])]


def check_token_file() -> list[Finding]:
    """Whether others on this machine can read the token."""
    path = token_path()
    if not path.is_file():
        return []
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        sentence = f"{path} has mode {mode:04o}: others on this machine can read the token, and run code with it"
        return [problem("token file", sentence, f"chmod 0600 {path}; if it was read, make a new token")]
    return [ok("token file", f"{path} has mode {mode:04o}")]


def _check_stranger(url: str, answer: Answer) -> Finding:
    if answer.status == 200:
        sentence = f"{url} answers WITHOUT A TOKEN: whoever reaches it can run any code on the cluster"
        return problem(CHECK, sentence, "end it now; start it again with RAY_AUTH_MODE=token (`backbone up` does)")
    if answer.status in (401, 403):
        return ok(CHECK, f"{url} refuses those who have no token")
    sentence = f"{url} answers {answer.status}: something else listens there"
    return problem(REACHABLE, sentence, "give the address of Ray's dashboard, usually http://HOST:8265")


def _check_ours(url: str) -> list[Finding]:
    token = find_token()
    if token is None:
        return [problem(CHECK, "no token is set here, and the cluster demands one", EXPORT)]
    found = []
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        found.append(problem(CHECK, "RAY_AUTH_MODE is not 'token', so Ray's clients send no token", EXPORT))
    status = http_get(url + SUBMIT_PATH, token=token).status
    if status == 200:
        return [*found, ok(CHECK, f"{url} takes our token")]
    if status in (401, 403):
        remedy = "copy the cluster's token again (docs/cluster.md); RAY_AUTH_TOKEN, where set, goes before the file"
        return [*found, problem(CHECK, f"{url} refuses our token: it is another cluster's, or an old one", remedy)]
    sentence = f"the job API answers {status or 'nothing'} to our token"
    return [*found, problem(REACHABLE, sentence, "look at dashboard.log in the head's session_latest/logs")]


def _check_version(url: str, is_open: bool) -> Finding | None:
    answer = http_get(f"{url}/api/version", token=None if is_open else find_token())
    if answer.status != 200:
        return None
    theirs, ours = _version(answer.text), metadata.version("ray")
    if theirs == ours:
        return ok("versions", f"the cluster runs ray {theirs}, as here")
    sentence = f"the cluster runs ray {theirs}, this machine {ours}"
    return warning("versions", sentence, f"pip install 'ray=={theirs}' here")


def _version(text: str) -> str:
    try:
        return str(json.loads(text).get("ray_version", "unknown"))
    except (ValueError, AttributeError):
        return "unknown"


def _unreachable(url: str, answer: Answer) -> Finding:
    remedy = "check the address; is the cluster up, and the tunnel (`ray dashboard cluster.yaml`) open?"
    return problem(REACHABLE, f"nothing answers at {url}: {answer.text}", remedy)
