"""One HTTP question with a time limit, and the token that a Ray cluster wants with it. No ray, no mlflow."""

import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Answer:
    """`status` is None when nothing answered; then `text` says why."""

    status: int | None
    text: str


def http_get(url: str, *, token: str | None = None, host: str | None = None, timeout_s: float = 5.0) -> Answer:
    """GET. `token` goes as a bearer token; `host` replaces the Host header. Follows no redirect, raises nothing."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    if host is not None:
        headers["Host"] = host
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s) as answer:
            return Answer(answer.status, answer.read(200_000).decode(errors="replace"))
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read(2_000).decode(errors="replace"))
    except urllib.error.URLError as error:
        return Answer(None, str(error.reason))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Answer(None, str(error) or type(error).__name__)


def is_loopback(url: str) -> bool:
    """Whether only this machine, or a tunnel that ends here, serves the address."""
    return urlsplit(url).hostname in LOOPBACK


def token_path() -> Path:
    """Where Ray's servers and clients look for the token: RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser().absolute()


def find_token() -> str | None:
    """The token as Ray's clients look it up: RAY_AUTH_TOKEN, else the file."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    try:
        return token_path().read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to whoever is named there."""

    def redirect_request(self, *args: object, **more: object) -> None:
        return None
