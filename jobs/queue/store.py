"""Where the queue keeps what it must not forget: SQLite (WAL) or PostgreSQL, through SQLAlchemy.

Over 300 lines: the tables, how each version of them becomes the next, and what is read from and written to them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.pool import StaticPool

from jobs.queue.model import StopKind
from jobs.queue.rows import CellRow, EventRow, JobRow, JobState, LeaseRow
from orchestrator.errors import InputError, StoreError
from orchestrator.results import CellStatus
from orchestrator.tracking.run import without_password

Row = JobRow | CellRow | LeaseRow
POSTGRES_LOCK = 0x6261636B  # one dispatcher per database: an advisory lock that its connection holds

metadata = MetaData()
_jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(300), primary_key=True),
    *(
        Column(name, Text, nullable=False)
        for name in ("kind", "owner", "storage", "spec_file", "state", "reason", "stop")
    ),
    *(Column(name, Text) for name in ("code", "occurrence", "driver")),
    *(Column(name, Integer, nullable=False) for name in ("priority", "attempt", "losses")),
    *(Column(name, Boolean, nullable=False) for name in ("preemptible", "in_turn")),
    Column("arguments", JSON, nullable=False),
    Column("gpu_hours", Float),
    Column("hours", Float),
    Column("submitted_s", Float, nullable=False),
    Column("ended_s", Float),
    Column("exit_code", Integer),
)
_cells = Table(
    "cells",
    metadata,
    Column("job_id", String(300), primary_key=True),
    Column("cell_id", String(300), primary_key=True),
    *(Column(name, Integer, nullable=False) for name in ("position", "workers", "gpus_per_worker", "cpus_per_worker")),
    *(Column(name, Text, nullable=False) for name in ("state", "likeness", "note")),
    Column("accelerator", Text),
    Column("worlds", JSON),
    *(Column(name, Float, nullable=False) for name in ("predicted_s", "queued_s", "trained_s")),
)
_leases = Table(
    "leases",
    metadata,
    Column("lease_id", Integer, primary_key=True, autoincrement=False),
    *(Column(name, Text, nullable=False) for name in ("job_id", "cell_id", "owner", "reason", "stop_reason", "ended")),
    Column("gpus", Integer, nullable=False),
    Column("placement", JSON, nullable=False),
    Column("granted_s", Float, nullable=False),
    Column("stop_kind", Text),
    Column("stop_asked_s", Float),
    Column("ended_s", Float),
)
_events = Table(
    "events",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("time_s", Float, nullable=False),
    *(Column(name, Text, nullable=False) for name in ("kind", "job_id", "cell_id", "text")),
)
_facts = Table("facts", metadata, Column("name", String(100), primary_key=True), Column("value", Text, nullable=False))
_TABLES = {JobRow: _jobs, CellRow: _cells, LeaseRow: _leases}


def _first_schema(connection: Connection) -> None:
    """Version 1: the tables above."""
    metadata.create_all(connection)


def _add_hours(connection: Connection) -> None:
    """Version 2: jobs have a limit on the wall clock."""
    if "hours" not in {column["name"] for column in inspect(connection).get_columns(_jobs.name)}:
        connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN hours FLOAT")


def _add_worlds(connection: Connection) -> None:
    """Version 3: cells may be elastic."""
    if "worlds" not in {column["name"] for column in inspect(connection).get_columns(_cells.name)}:
        connection.exec_driver_sql("ALTER TABLE cells ADD COLUMN worlds JSON")


# Version n is reached from n - 1 by the n-th function. They are never edited once released, only added to: whoever
# changes the tables above writes a step here; a new store passes through all of them, with the tables as they are now.
MIGRATIONS = (_first_schema, _add_hours, _add_worlds)


class Store:
    """One database, one connection, one dispatcher: a second one is refused. Raises StoreError."""

    def __init__(self, url: str):
        self.url = url
        self.engine = _engine(url)
        self._is_claimed = False
        self._upserts = {table: self._upsert(table) for table in metadata.sorted_tables if table is not _events}
        with ExitStack() as until_it_is_open:
            until_it_is_open.callback(self.engine.dispose)
            with self._explained():
                self._connection = self.engine.connect()
                # Where it cannot be used it is closed at once: until then the server keeps our lock.
                until_it_is_open.callback(self._connection.close)
                self._claim()
                self._migrate()
            until_it_is_open.pop_all()

    def close(self) -> None:
        """The next dispatcher may have the database at once: a server notices late that a connection is gone."""
        if self._is_claimed and not self._connection.closed and self.engine.dialect.name == "postgresql":
            with suppress(DatabaseError):
                self._connection.execute(select(func.pg_advisory_unlock(POSTGRES_LOCK)))
        self._connection.close()
        self.engine.dispose()

    def save(self, rows: Iterable[Row], events: Sequence[EventRow] = (), facts: dict[str, str] | None = None) -> None:
        """All of it, or nothing. Raises StoreError."""
        by_table: dict[Table, list[dict[str, Any]]] = {}
        for row in rows:
            by_table.setdefault(_TABLES[type(row)], []).append(dict(vars(row)))
        if facts:
            by_table[_facts] = [{"name": name, "value": value} for name, value in facts.items()]
        with self._transaction():
            for table, values in by_table.items():
                self._put(table, values)
            if events:
                self._connection.execute(insert(_events), [dict(vars(one)) for one in events])

    def jobs(self) -> list[JobRow]:
        rows = self._select(select(_jobs).order_by(_jobs.c.submitted_s, _jobs.c.job_id))
        return [
            JobRow(**{**one, "state": JobState(one["state"]), "arguments": tuple(one["arguments"])}) for one in rows
        ]

    def cells(self) -> list[CellRow]:
        rows = self._select(select(_cells).order_by(_cells.c.job_id, _cells.c.position))
        return [
            CellRow(**{**one, "state": CellStatus(one["state"]), "worlds": tuple(one["worlds"] or ())}) for one in rows
        ]

    def leases(self) -> list[LeaseRow]:
        """All there ever were, oldest first."""
        rows = self._select(select(_leases).order_by(_leases.c.lease_id))
        return [_as_lease(one) for one in rows]

    def events(self, job_id: str | None = None, limit: int = 1000) -> list[EventRow]:
        """The latest ones, oldest first."""
        query = select(_events).order_by(_events.c.number.desc()).limit(limit)
        rows = self._select(query if job_id is None else query.where(_events.c.job_id == job_id))
        return [EventRow(**{key: one[key] for key in _names(EventRow)}) for one in reversed(rows)]

    def fact(self, name: str) -> str | None:
        rows = self._select(select(_facts).where(_facts.c.name == name))
        return str(rows[0]["value"]) if rows else None

    def _select(self, query: Any) -> list[dict[str, Any]]:
        with self._transaction():
            return [dict(row) for row in self._connection.execute(query).mappings()]

    def _put(self, table: Table, rows: list[dict[str, Any]]) -> None:
        self._connection.execute(self._upserts[table], rows)

    def _upsert(self, table: Table) -> Any:
        new = (sqlite if self.engine.dialect.name == "sqlite" else postgresql).insert(table)
        changed = {column.name: new.excluded[column.name] for column in table.columns if not column.primary_key}
        return new.on_conflict_do_update(index_elements=table.primary_key, set_=changed)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            if self._connection.invalidated:  # the database was restarted: its lock went with the old connection
                self._is_claimed = False
            if not self._is_claimed:
                self._claim()
            with self._connection.begin():
                yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise StoreError(_explain(self.url, error)) from error

    def _claim(self) -> None:
        """Makes sure that no other dispatcher has this database."""
        with self._connection.begin():
            if self.engine.dialect.name == "sqlite":  # with locking_mode EXCLUSIVE, a write keeps the file's lock
                self._connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS claim (taken INTEGER)")
                self._connection.exec_driver_sql("DELETE FROM claim")
            elif not self._connection.execute(select(func.pg_try_advisory_lock(POSTGRES_LOCK))).scalar():
                raise StoreError(_taken(self.url))
        self._is_claimed = True

    def _migrate(self) -> None:
        has_facts = inspect(self._connection).has_table(_facts.name)
        self._connection.rollback()  # the inspection opened a transaction
        version = int(self.fact("schema") or 0) if has_facts else 0
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{shown(self.url)} was written by a newer version (schema {version}; this one knows "
                f"{len(MIGRATIONS)}); upgrade backbone-orchestrator on the head, or start with another store"
            )
        if 0 < version < len(MIGRATIONS):
            self._back_up(version)
        for number in range(version, len(MIGRATIONS)):
            with self._connection.begin():
                MIGRATIONS[number](self._connection)
                self._put(_facts, [{"name": "schema", "value": str(number + 1)}])

    def _back_up(self, version: int) -> None:
        """Keeps a SQLite store as it was; the file alone would lack what its write-ahead log holds."""
        file = self.engine.url.database
        if self.engine.dialect.name != "sqlite" or not file:
            return
        kept, unfinished = Path(f"{file}.schema-{version}"), Path(f"{file}.schema-{version}.partial")
        unfinished.unlink(missing_ok=True)
        connection: Any = self._connection.connection.driver_connection  # VACUUM runs in no transaction
        connection.execute("VACUUM INTO ?", (str(unfinished),))
        self._connection.rollback()
        os.replace(unfinished, kept)


def sibling_engine(url: str, name: str) -> Engine:
    """An engine for other tables: in a file beside a SQLite store, which is locked, else in the same database."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        parsed = parsed.set(database=str(Path(parsed.database).with_name(f"{name}.db")))
    return create_engine(parsed)


def shown(url: str) -> str:
    """The store's address without its password."""
    return without_password(make_url(url).render_as_string(hide_password=True))


def _engine(url: str) -> Engine:
    try:
        if not url.startswith("sqlite"):
            return _server_engine(url)
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": 5.0})
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise InputError(
            f"the queue's store '{url.split('@')[-1]}' cannot be used ({error}); give sqlite:////absolute/queue.db, or "
            "postgresql+psycopg://user@host/database with `pip install psycopg[binary]`"
        ) from error
    if engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # or sqlite3 would leave changes of tables outside of the transaction
        # EXCLUSIVE needs no shared memory, so WAL works on a network file system too; and it refuses a second process.
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _server_engine(url: str) -> Engine:
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def watch_the_client(connection: Any, _: Any) -> None:
        # A machine that is switched off says nothing: the server, which holds its lock, has to find out soon.
        with connection.cursor() as cursor:
            for setting in ("idle = 10", "interval = 5", "count = 3"):
                cursor.execute(f"SET tcp_keepalives_{setting}")
        connection.commit()

    return engine


def _as_lease(stored: dict[str, Any]) -> LeaseRow:
    stop_kind = None if stored["stop_kind"] is None else StopKind(stored["stop_kind"])
    placement = tuple((node, workers) for node, workers in stored["placement"])
    return LeaseRow(**{**stored, "placement": placement, "stop_kind": stop_kind})


def _names(row: type) -> list[str]:
    return [one.name for one in fields(row)]


def _taken(url: str) -> str:
    return (
        f"{shown(url)} is held by another dispatcher; there is one per cluster: stop the other one, or use its cluster"
    )


def _explain(url: str, error: DatabaseError) -> str:
    text = str(error.orig)
    if "locked" in text:
        return _taken(url)
    if "malformed" in text or "not a database" in text:
        return (
            f"{shown(url)} is damaged ({text}); move it away and start the dispatcher again: results and checkpoints "
            "are in the storage, so jobs that are submitted again continue from there"
        )
    return f"{shown(url)} cannot be used: {text}; check that it exists and may be written"
