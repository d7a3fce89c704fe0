"""`<schedule>/<tick>`: which firing of which clock a job belongs to, such as `nightly/2026-11-22T02:00Z`.

A tick is the instant in UTC, never a local time: daylight saving gives the same local time twice. Ticks of the clock
are whole minutes; a firing that a person asked for also has seconds, so the two never meet.
"""

import re
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import InputError
from orchestrator.spec_files.spec import Name

_TICK = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?Z", re.ASCII)
_NAME: TypeAdapter[str] = TypeAdapter(Name)


def check_schedule_name(name: str) -> None:
    """A schedule's name is also a folder's. Raises InputError."""
    try:
        _NAME.validate_python(name, strict=True)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{name!r} is no name for a schedule; {rule}") from None


def tick_text(tick_s: int, by_hand: bool = False) -> str:
    """Unix seconds as `2026-11-22T02:00Z`; with the seconds where a person fired."""
    return datetime.fromtimestamp(tick_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ" if by_hand else "%Y-%m-%dT%H:%MZ")


def parse_occurrence(occurrence: str) -> tuple[str, int]:
    """The schedule's name and the tick in Unix seconds. Raises InputError for anything but `<schedule>/<tick>`."""
    name, _, tick = occurrence.partition("/")
    check_schedule_name(name)
    try:
        if not _TICK.fullmatch(tick):
            raise ValueError(tick)
        return name, int(datetime.fromisoformat(tick).timestamp())
    except ValueError:
        raise InputError(
            f"{occurrence!r} is no occurrence of a schedule; write <schedule>/<tick in UTC>, such as "
            "nightly/2026-11-22T02:00Z"
        ) from None
