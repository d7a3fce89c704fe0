"""Schedules that outlive the process: what each submits, what it fired, and what it owes after a crash.

A firing is recorded as owed before it is submitted, and as fired afterwards. A crash in between submits it again, under
the same occurrence, which the queue knows; so no firing is lost and none counts twice.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)

from jobs.dispatch.schedules.rule import (
    CatchUp,
    FiringState,
    Overlap,
    Schedule,
    Unfired,
    due,
    new_schedule,
    pass_over,
)
from jobs.dispatch.wire import Template
from orchestrator.errors import InputError, SpecError
from orchestrator.planning.occurrence import tick_text

metadata = MetaData()
_schedules = Table(
    "schedules",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("template", JSON, nullable=False),
    *(Column(name, Text, nullable=False) for name in ("cron", "timezone", "overlap", "catch_up")),
    *(Column(name, Float, nullable=False) for name in ("created_s", "handled_s", "grace_s")),
    Column("paused", Boolean, nullable=False),
)
_firings = Table(
    "firings",
    metadata,
    Column("occurrence", String(100), primary_key=True),
    Column("schedule", String(64), nullable=False, index=True),
    *(Column(name, Text, nullable=False) for name in ("state", "reason")),
    *(Column(name, BigInteger, nullable=False) for name in ("first_s", "tick_s", "number")),
    Column("recorded_s", Float, nullable=False),
)


@dataclass(frozen=True)
class StoredSchedule:
    """A schedule, and the job that it submits: `template` is plain data that only the submitter reads."""

    schedule: Schedule
    template: Template


@dataclass(frozen=True)
class Firing:
    """What became of a tick, or of neighbouring ticks with one fate: `number` of them from `first_s` to `tick_s`."""

    occurrence: str
    schedule: str
    state: FiringState
    reason: str
    first_s: int
    tick_s: int
    number: int
    recorded_s: float


Fire = Callable[[StoredSchedule, str], None]  # (the schedule, the occurrence): submits, idempotent by occurrence
IsActive = Callable[[str], bool]  # whether the occurrence's job has not ended


class ScheduleStore:
    """The schedules of one database. Its process is the only one that ticks; no transaction spans a callback."""

    def __init__(self, engine: Engine):
        self._engine = engine
        with engine.begin() as connection:
            create_tables(connection)

    def add(
        self, name: str, template: Template, cron: str, timezone: str, now_s: float, **rules: str
    ) -> StoredSchedule:
        """A new schedule; `rules` are those of `new_schedule`. Adding the same one again changes nothing."""
        template = json.loads(json.dumps(template))  # as it comes back, so that the same one is seen to be the same
        stored = StoredSchedule(new_schedule(name, cron, timezone, now_s, **rules), template)
        found = self._find(name)
        if found is None:
            with self._engine.begin() as connection:
                connection.execute(insert(_schedules).values(_row(stored)))
            return stored
        if _content(found) != _content(stored):
            raise InputError(f"there is a schedule {name!r} already, and it differs; remove it first, or choose a name")
        return found

    def all(self) -> list[StoredSchedule]:
        """Every schedule, by name."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(_schedules).order_by(_schedules.c.name)).mappings().all()
        return [_stored(dict(row)) for row in rows]

    def show(self, name: str) -> StoredSchedule:
        """The schedule of that name. Raises InputError that lists those there are."""
        found = self._find(name)
        if found is None:
            names = ", ".join(stored.schedule.name for stored in self.all())
            raise InputError(f"no schedule {name!r}; {f'there are: {names}' if names else 'there is none yet'}")
        return found

    def pause(self, name: str) -> StoredSchedule:
        """Ticks do not fire until `resume`; a run that is under way goes on."""
        paused = replace(self.show(name).schedule, paused=True)
        with self._engine.begin() as connection:
            _update(connection, paused)
        return self.show(name)

    def resume(self, name: str, now_s: float) -> StoredSchedule:
        """Fires from the next tick after `now_s`; what fell into the pause is recorded, and does not fire."""
        schedule = self.show(name).schedule
        if schedule.paused:
            passed = pass_over(schedule, now_s)
            with self._engine.begin() as connection:
                _record(connection, [_unfired(name, passed, now_s)] if passed else [])
                _update(connection, replace(schedule, paused=False, handled_s=now_s))
        return self.show(name)

    def remove(self, name: str) -> None:
        """Forgets the schedule and its firings; their jobs and results stay."""
        self.show(name)
        with self._engine.begin() as connection:
            connection.execute(delete(_firings).where(_firings.c.schedule == name))
            connection.execute(delete(_schedules).where(_schedules.c.name == name))

    def history(self, name: str, limit: int = 100) -> list[Firing]:
        """What became of the latest ticks, oldest first."""
        self.show(name)
        return list(reversed(self._firings(name, limit=limit)))

    def run_now(self, name: str, now_s: float) -> str:
        """Owes a firing that a person asked for, whatever the rules say; the next `tick` submits it."""
        self.show(name)
        occurrence, second = f"{name}/{tick_text(int(now_s), by_hand=True)}", int(now_s)
        owed = Firing(occurrence, name, FiringState.FIRING, "asked for by a person", second, second, 1, now_s)
        with self._engine.begin() as connection:
            _record(connection, [owed])
        return occurrence

    def tick(self, now_s: float, fire: Fire, is_active: IsActive) -> None:
        """Decides every tick that is due and submits what is owed.

        A job that the queue refuses as wrong is recorded as failed. Any other error leaves the firing owed to the next
        `tick`, keeps no other schedule from firing, and is raised in an ExceptionGroup at the end.
        """
        errors: list[Exception] = []
        for name in [stored.schedule.name for stored in self.all()]:
            stored = self._find(name)  # anew: firing the one before took its time
            if stored is None:
                continue
            try:
                self._decide(stored.schedule, now_s, is_active)
                self._fire_what_is_owed(stored, fire)
            except Exception as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("schedules that could not fire now, and will be tried again", errors)

    def _decide(self, schedule: Schedule, now_s: float, is_active: IsActive) -> None:
        """Records what fires and what does not, together with how far the schedule is handled."""
        decided = due(schedule, now_s, lambda: self._has_active(schedule.name, is_active))
        if decided.handled_s == schedule.handled_s:
            return
        owed = [_owed(schedule.name, tick_s, now_s) for tick_s in decided.fires]
        unfired = [_unfired(schedule.name, ticks, now_s) for ticks in decided.unfired]
        with self._engine.begin() as connection:
            _record(connection, owed + unfired)
            _handled(connection, schedule.name, decided.handled_s)

    def _fire_what_is_owed(self, stored: StoredSchedule, fire: Fire) -> None:
        for firing in reversed(self._firings(stored.schedule.name, FiringState.FIRING)):
            try:
                fire(stored, firing.occurrence)
            except (InputError, SpecError) as error:
                self._settle(firing.occurrence, FiringState.FAILED, str(error))
            else:
                self._settle(firing.occurrence, FiringState.FIRED, firing.reason)

    def _has_active(self, name: str, is_active: IsActive) -> bool:
        """Whether a firing is owed or under way. Those that have ended are never asked about again."""
        if self._firings(name, FiringState.FIRING):
            return True
        active = False
        for firing in self._firings(name, FiringState.FIRED):
            if is_active(firing.occurrence):
                active = True
            else:
                self._settle(firing.occurrence, FiringState.OVER, firing.reason)
        return active

    def _settle(self, occurrence: str, state: FiringState, reason: str) -> None:
        here = _firings.c.occurrence == occurrence
        with self._engine.begin() as connection:
            connection.execute(update(_firings).where(here).values(state=str(state), reason=reason))

    def _firings(self, name: str, state: FiringState | None = None, limit: int | None = None) -> list[Firing]:
        """Newest first."""
        query = select(_firings).where(_firings.c.schedule == name)
        if state is not None:
            query = query.where(_firings.c.state == str(state))
        query = query.order_by(_firings.c.tick_s.desc(), _firings.c.occurrence.desc()).limit(limit)
        with self._engine.begin() as connection:
            rows = connection.execute(query).mappings().all()
        return [Firing(**{**row, "state": FiringState(row["state"])}) for row in rows]

    def _find(self, name: str) -> StoredSchedule | None:
        with self._engine.begin() as connection:
            row = connection.execute(select(_schedules).where(_schedules.c.name == name)).mappings().one_or_none()
        return None if row is None else _stored(dict(row))


def create_tables(connection: Connection) -> None:
    """The tables, where they are missing."""
    metadata.create_all(connection)


def _record(connection: Connection, firings: Iterable[Firing]) -> None:
    """A tick has one fate: what was recorded first stays."""
    for firing in firings:
        here = _firings.c.occurrence == firing.occurrence
        if connection.execute(select(_firings.c.state).where(here)).first() is None:
            connection.execute(insert(_firings).values(vars(firing) | {"state": str(firing.state)}))


def _owed(name: str, tick_s: int, now_s: float) -> Firing:
    occurrence = f"{name}/{tick_text(tick_s)}"
    return Firing(occurrence, name, FiringState.FIRING, "", tick_s, tick_s, 1, now_s)


def _unfired(name: str, unfired: Unfired, now_s: float) -> Firing:
    occurrence = f"{name}/{tick_text(unfired.last_s)}"
    reason, first_s, last_s = unfired.reason, unfired.first_s, unfired.last_s
    return Firing(occurrence, name, unfired.state, reason, first_s, last_s, unfired.number, now_s)


def _update(connection: Connection, schedule: Schedule) -> None:
    changing = {"paused": schedule.paused, "handled_s": schedule.handled_s}
    connection.execute(update(_schedules).where(_schedules.c.name == schedule.name).values(changing))


def _handled(connection: Connection, name: str, handled_s: float) -> None:
    connection.execute(update(_schedules).where(_schedules.c.name == name).values({"handled_s": handled_s}))


def _row(stored: StoredSchedule) -> dict[str, object]:
    rules = {"overlap": str(stored.schedule.overlap), "catch_up": str(stored.schedule.catch_up)}
    return vars(stored.schedule) | rules | {"template": stored.template}


def _stored(row: dict[str, Any]) -> StoredSchedule:  # a row of the table
    template = row.pop("template")
    rules = {"overlap": Overlap(row["overlap"]), "catch_up": CatchUp(row["catch_up"])}
    return StoredSchedule(Schedule(**{**row, **rules}), template)


def _content(stored: StoredSchedule) -> tuple[Schedule, Template]:
    """What a person chose."""
    return replace(stored.schedule, created_s=0.0, handled_s=0.0, paused=False), stored.template
