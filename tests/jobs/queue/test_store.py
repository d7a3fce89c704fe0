"""The store: what it keeps, whom it lets in, and what it does with a file of another version.

Over 300 lines: one store on two kinds of database.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, text

from jobs.queue import store as store_module
from jobs.queue.rows import CellRow, EventRow, JobRow, JobState, LeaseRow
from jobs.queue.store import Store, shown
from orchestrator.errors import InputError, StoreError
from orchestrator.results import CellStatus

JOB = JobRow(
    job_id="which-1",
    kind="comparison",
    owner="ada",
    priority=2,
    preemptible=True,
    storage="/shared",
    spec_file="which.yaml",
    arguments=("--plugin", "mine"),
    code="/shared/code.zip",
    occurrence=None,
    gpu_hours=2.5,
    in_turn=True,
    state=JobState.RUNNING,
    reason="",
    stop="",
    driver="which-1.1",
    attempt=1,
    losses=0,
    submitted_s=1000.25,
)
CELL = CellRow("which-1", "cell-a", 0, CellStatus.RUNNING, 2, 4, 8, "H100", 3600.0, 1000.25, "like", 12.5, "é ☃")
LEASE = LeaseRow(7, "which-1", "cell-a", "ada", 8, (("n0", 1), ("n1", 1)), 1001.0, "its turn")
EVENT = EventRow(1001.0, "granted", "which-1", "cell-a", "its turn")
HOLD = (
    "import sys; from jobs.queue.store import Store\n"
    "store = Store(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
)


@contextmanager
def held_by_another_process(url: str) -> Iterator["subprocess.Popen[str]"]:
    """A second dispatcher, as far as the store can tell."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_what_was_saved_is_there_when_it_is_opened_again(store_url: str) -> None:
    store = Store(store_url)
    store.save([JOB, CELL, LEASE], [EVENT], {"cluster": "a"})
    store.save([CELL, LEASE], facts={"cluster": "b"})
    store.close()
    store = Store(store_url)
    assert (store.jobs(), store.cells(), store.leases()) == ([JOB], [CELL], [LEASE])
    assert store.events() == [EVENT]
    assert store.fact("cluster") == "b" and store.fact("promised") is None
    store.close()


def test_a_save_that_fails_leaves_nothing_behind(store_url: str) -> None:
    store = Store(store_url)
    nameless = EventRow(1.0, None, "which-1", "", "")  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        store.save([JOB, CELL], [EVENT, nameless], {"cluster": "a"})
    assert not store.jobs() and not store.cells() and not store.events() and store.fact("cluster") is None
    store.save([JOB])
    assert store.jobs() == [JOB]
    store.close()


def test_the_latest_events_come_oldest_first_and_by_job(store_url: str) -> None:
    store = Store(store_url)
    store.save([], [EventRow(float(n), "k", f"job-{n % 2}", "", str(n)) for n in range(6)])
    assert [event.text for event in store.events(limit=3)] == ["3", "4", "5"]
    assert [event.text for event in store.events("job-0", limit=2)] == ["2", "4"]
    store.close()


def test_sqlite_writes_ahead_syncs_every_change_and_locks_the_file(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'new' / 'queue.db'}")
    with store.engine.connect() as connection:
        pragmas = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in PRAGMAS}
    assert pragmas == PRAGMAS
    store.close()


PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "locking_mode": "exclusive"}


def test_a_second_process_is_refused_with_the_remedy_until_the_first_is_killed(store_url: str) -> None:
    with held_by_another_process(store_url) as first:
        with pytest.raises(StoreError, match=r"held by another dispatcher.*stop the other one"):
            Store(store_url)
        first.send_signal(signal.SIGKILL)
        first.wait()
        store = open_patiently(store_url)
        store.save([JOB])
        store.close()


def open_patiently(url: str) -> Store:
    """A PostgreSQL server notices within a moment that the process which held the lock is gone."""
    limit = time.monotonic() + 30.0
    while True:
        try:
            return Store(url)
        except StoreError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.05)


def test_a_second_process_is_refused_while_the_first_one_migrates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    Store(url).close()

    def step(connection: Connection) -> None:
        found = subprocess.run([sys.executable, "-c", HOLD, url], capture_output=True, text=True, check=False)
        refusals.append(found.stderr)

    refusals: list[str] = []
    monkeypatch.setattr(store_module, "MIGRATIONS", (*store_module.MIGRATIONS, step))
    Store(url).close()
    assert "held by another dispatcher" in refusals[0]


def test_what_a_killed_process_saved_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    script = (
        "import os, sys; from jobs.queue.store import Store; from test_store import JOB, EVENT\n"
        "Store(sys.argv[1]).save([JOB], [EVENT]); os.kill(os.getpid(), 9)"
    )
    path = f"{Path(__file__).parent}:{Path(__file__).parents[3]}"
    process = subprocess.run([sys.executable, "-c", script, url], env={"PYTHONPATH": path}, check=False)
    assert process.returncode == -signal.SIGKILL
    store = Store(url)
    assert store.jobs() == [JOB] and store.events() == [EVENT]
    store.close()


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "queue.db"
    file.write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError, match=r"queue.db is damaged.*move it away"):
        Store(f"sqlite:///{file}")


def test_a_file_cut_short_is_named_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "queue.db"
    store = Store(f"sqlite:///{file}")
    store.save([], [EventRow(1.0, "k", "j", "", "x" * 1000)] * 200)
    store.close()
    with open(file, "r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xff" * 40960)
    with pytest.raises(StoreError, match="is damaged"):
        Store(f"sqlite:///{file}").events()


def test_a_store_of_a_newer_version_is_refused_and_left_alone(store_url: str) -> None:
    store = Store(store_url)
    store.save([JOB], facts={"schema": "99"})
    store.close()
    with pytest.raises(StoreError, match=r"schema 99; this one knows \d+.*upgrade"):
        Store(store_url)
    engine = create_engine(store_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT value FROM facts WHERE name = 'schema'")).scalar() == "99"
    engine.dispose()


def add_colour(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE cells ADD COLUMN colour TEXT")


def break_down(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE cells ADD COLUMN shape TEXT")
    raise RuntimeError("the machine went down here")


def test_an_older_store_is_migrated_after_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    store = Store(url)
    store.save([JOB, CELL])
    leave_in_the_log(store)
    monkeypatch.setattr(store_module, "MIGRATIONS", (*store_module.MIGRATIONS, add_colour))
    store = Store(url)
    newest = len(store_module.MIGRATIONS)
    assert store.jobs() == [JOB] and store.fact("schema") == str(newest)
    store.close()
    kept = create_engine(f"sqlite:///{tmp_path / f'queue.db.schema-{newest - 1}'}")
    with kept.connect() as connection:
        assert connection.execute(text("SELECT value FROM facts WHERE name = 'schema'")).scalar() == str(newest - 1)
        assert connection.execute(text("SELECT job_id FROM jobs")).scalar() == JOB.job_id
        assert "colour" not in set(connection.execute(text("SELECT * FROM cells")).keys())
    kept.dispose()


def test_a_store_of_the_first_schema_learns_the_limit_in_hours(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "MIGRATIONS", store_module.MIGRATIONS[:1])
        store = Store(store_url)
    with store.engine.begin() as connection:
        connection.execute(text("ALTER TABLE jobs DROP COLUMN hours"))
    store.close()
    store = open_patiently(store_url)
    store.save([replace(JOB, hours=1.5)])
    assert [job.hours for job in store.jobs()] == [1.5]
    store.close()


def leave_in_the_log(store: Store) -> None:
    """As after a kill: the latest changes are in the write-ahead log only."""
    file = Path(str(store.engine.url.database))
    images = {path: path.read_bytes() for path in (file, file.with_name(f"{file.name}-wal"))}
    store.close()
    for path, image in images.items():
        path.write_bytes(image)


def test_a_migration_that_breaks_down_halfway_changes_nothing(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(store_url)
    store.save([JOB, CELL])
    store.close()
    first = store_module.MIGRATIONS
    monkeypatch.setattr(store_module, "MIGRATIONS", (*first, add_colour, break_down))
    with pytest.raises(RuntimeError) as broken:
        open_patiently(store_url)
    monkeypatch.setattr(store_module, "MIGRATIONS", (*first, add_colour))
    store = open_patiently(store_url)  # although the error and its frames, which know the first connection, still live
    assert str(broken.value) == "the machine went down here"
    with store.engine.connect() as connection:
        columns = set(connection.execute(text("SELECT * FROM cells")).keys())
    assert "colour" in columns and "shape" not in columns
    store.close()


def test_a_postgres_server_that_restarts_is_reached_again_and_its_lock_taken_again(
    new_postgres_database: Callable[[], str],
) -> None:
    url = new_postgres_database()
    store, other = Store(url), create_engine(url)
    store.save([JOB])
    with other.connect() as connection:
        connection.execute(text(KILL_OTHERS))
    with pytest.raises(StoreError, match="cannot be used"):
        store.save([CELL])
    store.save([CELL])
    assert store.jobs() == [JOB] and store.cells() == [CELL]
    with pytest.raises(StoreError, match="held by another dispatcher"):
        Store(url)
    store.close()
    other.dispose()


def test_a_dispatcher_that_lost_its_lock_to_another_one_writes_nothing_more(
    new_postgres_database: Callable[[], str],
) -> None:
    url = new_postgres_database()
    store, other = Store(url), create_engine(url)
    with other.connect() as connection:
        connection.execute(text(KILL_OTHERS))
    with held_by_another_process(url):
        for _ in range(3):
            with pytest.raises(StoreError):
                store.save([JOB])
    with other.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == 0
    store.close()
    other.dispose()


KILL_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
    "AND datname = current_database()"
)


@pytest.mark.parametrize("url", ["queue.db", "nosuch://here", "mysql+nosuchdriver://here/x"])
def test_an_address_that_is_none_is_refused_with_examples(url: str) -> None:
    with pytest.raises(InputError, match=r"give sqlite:////absolute/queue.db"):
        Store(url)


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    url = f"postgresql+psycopg://me:secret@/queue?host={tmp_path}"
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert "cannot be used" in str(caught.value) and "secret" not in str(caught.value)
    assert "secret" not in shown(url)
