"""A real PostgreSQL server, and stores on both kinds of database."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

POSTGRES = (*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path("/usr/local/bin"), Path("/usr/bin"))
START_LIMIT_S = 60.0


@pytest.fixture(scope="session")
def new_postgres_database() -> Iterator[Callable[[], str]]:
    """The URL of an empty database, each time it is called, on a server of the tests' own."""
    binaries = next((folder for folder in POSTGRES if (folder / "initdb").exists()), None)
    if binaries is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("needs PostgreSQL's server programs and `pip install psycopg[binary]`")
    user = _server_user()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        shutil.chown(folder, user)
        quick = ["--auth=trust", "--no-sync", "--username=tests"]
        _run([binaries / "initdb", *quick, "-D", folder / "data"], user)
        server = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
            user=user,
            cwd=folder,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = f"tests@/{{}}?host={folder}"
            _wait_until_it_answers(binaries, folder)

            def create() -> str:
                name = f"queue_{uuid.uuid4().hex[:8]}"
                _run([binaries / "createdb", "-h", folder, "-U", "tests", name], user)
                return f"postgresql+psycopg://{address.format(name)}"

            yield create
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, whoever is still connected: the data goes with it
            server.wait(START_LIMIT_S)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'queue.db'}"
    return str(request.getfixturevalue("new_postgres_database")())


def _server_user() -> str:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid()).pw_name
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _run(command: list[object], user: str) -> None:
    subprocess.run(list(map(str, command)), user=user, cwd="/", check=True, capture_output=True)


def _wait_until_it_answers(binaries: Path, folder: Path) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while subprocess.run([binaries / "pg_isready", "-q", "-h", folder], check=False).returncode:
        assert time.monotonic() < limit, "PostgreSQL did not start"
        time.sleep(0.1)
