"""The cluster's token: a file that only its owner reads, made when it is missing, never printed."""

import os
import secrets
import stat
import tempfile
from pathlib import Path

from rich.console import Console

from jobs.cluster.endpoint import token_path
from orchestrator.errors import InputError


def ensure_token(console: Console) -> Path:
    """The token file, made with mode 0600 if it is missing. Raises InputError for one that cannot serve."""
    if "RAY_AUTH_TOKEN" in os.environ:
        raise InputError(
            "RAY_AUTH_TOKEN is set, and every job would inherit it; put the token into a file with mode 0600, "
            "set RAY_AUTH_TOKEN_PATH to that file, and unset RAY_AUTH_TOKEN"
        )
    path = token_path()
    if not path.exists():
        _create(path)
        console.print(f"made a token: {path}", highlight=False, soft_wrap=True)
    if not path.read_text(encoding="utf-8").strip():
        raise InputError(f"the token file {path} is empty; delete it, and run this again to get a new token")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)  # `ray get-auth-token --generate` leaves it readable for everybody
        console.print(f"made {path} readable for you alone", highlight=False, soft_wrap=True)
    return path


def _create(path: Path) -> None:
    """Whole or not at all, and never over another's: a link fails where the name exists."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent)  # mode 0600
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(secrets.token_hex(32))
        os.link(name, path)
    except FileExistsError:
        pass  # another process made one meanwhile
    finally:
        os.unlink(name)
