"""When a schedule fires: cron, daylight saving, misfires, overlap. Pure: the clock is passed in, as Unix seconds."""

import difflib
import math
import zoneinfo
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import TypeVar

from cronsim import CronSim, CronSimError

from orchestrator.errors import InputError
from orchestrator.planning.occurrence import check_schedule_name, tick_text
from orchestrator.spec_files.spec import seconds

Choice = TypeVar("Choice", bound=StrEnum)
SHORTEST_GRACE_S, LONGEST_GRACE_S = 60, 7 * 86400
COUNTED = 1000  # missed ticks beyond are not counted: a minute's clock that stood still for a year has 525,600
LONGEST_CRON = 200  # characters
REMEDY = "write five fields, minute hour day-of-month month day-of-week, such as '0 2 * * *' for every night at two"


class Overlap(StrEnum):
    """What happens to a tick while an earlier run is under way."""

    SKIP = "skip"  # it does not fire
    QUEUE = "queue"  # it fires: its job waits in the cluster's queue like any other


class CatchUp(StrEnum):
    """Which of several ticks found at once, each within the grace, fire."""

    NEWEST = "newest"
    ALL = "all"  # oldest first


class FiringState(StrEnum):
    """What became of a tick."""

    FIRING = "FIRING"  # decided and recorded; not submitted for certain yet
    FIRED = "FIRED"  # submitted; the job is under way, or was when last looked at
    OVER = "OVER"  # submitted, and its job has ended
    FAILED = "FAILED"  # the queue refused the job: the spec is wrong by now
    MISSED = "MISSED"  # found later than the grace allows
    COALESCED = "COALESCED"  # a newer tick, found at the same time, stands for it
    OVERLAPPED = "OVERLAPPED"  # an earlier run was still under way
    PAUSED = "PAUSED"  # fell into a pause


@dataclass(frozen=True)
class Schedule:
    """A clock and its rules. Ticks up to `handled_s` were dealt with, whatever the clock says later."""

    name: str
    cron: str
    timezone: str
    created_s: float
    handled_s: float
    grace_s: float = 3600.0
    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.NEWEST
    paused: bool = False


@dataclass(frozen=True)
class Unfired:
    """Ticks that do not fire, from `first_s` to `last_s`: `number` of them, or at least that many from COUNTED on."""

    state: FiringState
    first_s: int
    last_s: int
    number: int
    reason: str


@dataclass(frozen=True)
class Due:
    """What to do now. The schedule continues from `handled_s`."""

    fires: tuple[int, ...]
    unfired: tuple[Unfired, ...]
    handled_s: float


def new_schedule(
    name: str,
    cron: str,
    timezone: str,
    now_s: float,
    *,
    grace: str = "1h",
    overlap: str = "skip",
    catch_up: str = "newest",
) -> Schedule:
    """A schedule whose first tick is the next one. Raises InputError for whatever it could not follow."""
    check_schedule_name(name)
    _check_timezone(timezone)
    cron = " ".join(cron.split())
    _check_cron(cron, timezone, now_s)
    rules = _choose(Overlap, overlap, "overlap"), _choose(CatchUp, catch_up, "catch-up")
    if rules == (Overlap.SKIP, CatchUp.ALL):
        raise InputError(
            "catch-up 'all' starts several runs at once, and overlap 'skip' forbids that; use overlap 'queue'"
        )
    return Schedule(name, cron, timezone, now_s, now_s, _grace_s(grace), *rules)


def due(schedule: Schedule, now_s: float, is_active: Callable[[], bool]) -> Due:
    """Which ticks fire now, and which do not and why. `is_active`: whether an earlier run is still under way.

    A tick is an instant in UTC and is dealt with once: a clock that is set back finds nothing new.
    """
    if schedule.paused:
        return Due((), (), schedule.handled_s)
    expired_s = math.ceil(now_s - schedule.grace_s) - 1  # the latest second that is beyond the grace
    late = list(islice(ticks(schedule, schedule.handled_s, expired_s), COUNTED))
    fresh = list(ticks(schedule, max(schedule.handled_s, expired_s), now_s))
    fires = fresh if schedule.catch_up is CatchUp.ALL else fresh[-1:]
    passed = fresh[: len(fresh) - len(fires)]
    unfired = []
    if late:
        why = f"found later than the grace of {_span(schedule.grace_s)} allows"
        unfired.append(unfired_ticks(FiringState.MISSED, late, why))
    if passed:
        why = f"{tick_text(fresh[-1])} stands for it: both were found at once"
        unfired.append(unfired_ticks(FiringState.COALESCED, passed, why))
    if fires and schedule.overlap is Overlap.SKIP and is_active():
        why = "the run before it was still under way"
        unfired.append(unfired_ticks(FiringState.OVERLAPPED, fires, why))
        fires = []
    handled_s = fresh[-1] if fresh else expired_s if late else schedule.handled_s
    return Due(tuple(fires), tuple(unfired), handled_s)


def ticks(schedule: Schedule, after_s: float, until_s: float) -> Iterator[int]:
    """The ticks in (after, until], ascending, each instant once. Unix seconds."""
    latest_s = after_s
    for moment in CronSim(schedule.cron, datetime.fromtimestamp(after_s, zoneinfo.ZoneInfo(schedule.timezone))):
        tick_s = int(moment.astimezone(UTC).timestamp())
        if tick_s > until_s:
            return
        if tick_s > latest_s:  # started inside the doubled hour, cronsim begins with its first half
            latest_s = tick_s
            yield tick_s


def find_next_tick_s(schedule: Schedule, now_s: float) -> int | None:
    """When it fires next; None where it is paused or no date is left."""
    return None if schedule.paused else next(ticks(schedule, max(now_s, schedule.handled_s), math.inf), None)


def pass_over(schedule: Schedule, now_s: float) -> Unfired | None:
    """The ticks up to now that a pause swallowed."""
    found = list(islice(ticks(schedule, schedule.handled_s, now_s), COUNTED))
    return unfired_ticks(FiringState.PAUSED, found, "the schedule was paused") if found else None


def unfired_ticks(state: FiringState, found: list[int], reason: str) -> Unfired:
    """Neighbouring ticks with one fate."""
    return Unfired(state, found[0], found[-1], len(found), reason)


def _choose(rules: type[Choice], text: str, what: str) -> Choice:
    try:
        return rules(text)
    except ValueError:
        raise InputError(f"no {what} rule {text!r}; there are: {', '.join(rules)}") from None


def _check_timezone(timezone: str) -> None:
    known = zoneinfo.available_timezones()
    if timezone not in known:
        near = difflib.get_close_matches(timezone, sorted(known), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "write an IANA name such as Europe/Berlin or UTC"
        raise InputError(f"no timezone {timezone!r}; {hint}")


def _check_cron(cron: str, timezone: str, now_s: float) -> None:
    if len(cron.split()) != 5 or len(cron) > LONGEST_CRON:
        raise InputError(f"cron {cron[:LONGEST_CRON]!r} has {len(cron.split())} fields; {REMEDY}")
    try:
        next(CronSim(cron, datetime.fromtimestamp(now_s, zoneinfo.ZoneInfo(timezone))))
    except StopIteration:
        raise InputError(f"cron {cron!r} never fires in the next 50 years; choose a date that comes") from None
    except CronSimError as error:
        what = str(error).lower()
        detail = f"{what}, or a date that no year has" if what == "bad day-of-month" else what
        raise InputError(f"cron {cron!r} cannot be followed ({detail}); {REMEDY}") from None


def _grace_s(text: str) -> float:
    try:
        grace_s = seconds(text)
    except ValueError as error:
        raise InputError(f"grace {text!r}: {error}") from None
    if not SHORTEST_GRACE_S <= grace_s <= LONGEST_GRACE_S:
        raise InputError(f"grace {text!r} is not between 1m and 7d; with 1m a late tick hardly ever fires")
    return grace_s


def _span(grace_s: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if grace_s % length == 0:
            return f"{grace_s / length:.0f}{unit}"
    return f"{grace_s:g}s"
