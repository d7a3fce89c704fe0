"""Which ticks fire, on a clock that the test sets: daylight saving, misfires, overlap, pauses, clocks that jump.

Over 300 lines: one rule of time after the other, with the zones and dates that it has to survive.
"""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dispatch.schedules.rule import COUNTED, Due, FiringState, Schedule, due, find_next_tick_s, new_schedule, ticks
from orchestrator.errors import InputError
from orchestrator.planning.occurrence import parse_occurrence, tick_text

HOUR, DAY = 3600, 86400


def at(text: str) -> float:
    """`2026-11-22T02:00Z` as Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


def nightly(
    created: str = "2026-11-20T12:00Z", cron: str = "0 2 * * *", timezone: str = "UTC", **rules: str
) -> Schedule:
    return new_schedule("nightly", cron, timezone, at(created), **rules)


def fired(found: Due) -> list[str]:
    return [tick_text(tick_s) for tick_s in found.fires]


def unfired(found: Due) -> list[tuple[FiringState, str, str, int]]:
    return [(one.state, tick_text(one.first_s), tick_text(one.last_s), one.number) for one in found.unfired]


def idle() -> bool:
    return False


def busy() -> bool:
    return True


def ticks_between(schedule: Schedule, start: str, end: str) -> list[str]:
    return [tick_text(tick_s) for tick_s in ticks(schedule, at(start), at(end))]


# --- on time ---


def test_a_tick_fires_once_when_its_time_has_come() -> None:
    schedule = nightly()
    assert due(schedule, at("2026-11-21T01:59:59Z"), idle) == Due((), (), schedule.handled_s)
    found = due(schedule, at("2026-11-21T02:00:03Z"), idle)
    assert fired(found) == ["2026-11-21T02:00Z"]
    assert not found.unfired
    later = replace(schedule, handled_s=found.handled_s)
    assert due(later, at("2026-11-21T02:00:04Z"), idle) == Due((), (), found.handled_s)


def test_the_first_tick_is_the_next_one_after_it_was_added() -> None:
    schedule = nightly(created="2026-11-21T02:00:30Z")
    assert not due(schedule, at("2026-11-21T02:01Z"), idle).fires
    assert tick_text(find_next_tick_s(schedule, schedule.created_s) or 0) == "2026-11-22T02:00Z"


def test_local_time_is_that_of_the_timezone() -> None:
    assert ticks_between(nightly(timezone="Europe/Berlin"), "2026-11-21T00:00Z", "2026-11-21T12:00Z") == [
        "2026-11-21T01:00Z"
    ]


# --- daylight saving: Berlin skips 02:00 to 03:00 on 2026-03-29 and has it twice on 2026-10-25 ---


@pytest.mark.parametrize("cron", ["0 2 * * *", "30 2 * * *", "59 2 * * *", "15,45 2 * * *", "30 2,3 29 3 *"])
def test_a_time_that_is_skipped_fires_once_when_the_skipped_hour_is_over(cron: str) -> None:
    schedule = nightly(cron=cron, timezone="Europe/Berlin")
    found = ticks_between(schedule, "2026-03-28T12:00Z", "2026-03-29T01:29Z")
    assert found == ["2026-03-29T01:00Z"]  # 03:00 summer time


@pytest.mark.parametrize("minute", [0, 30, 59])
def test_a_time_that_comes_twice_fires_the_first_time_only(minute: int) -> None:
    schedule = nightly(cron=f"{minute} 2 * * *", timezone="Europe/Berlin")
    found = ticks_between(schedule, "2026-10-24T12:00Z", "2026-10-25T12:00Z")
    assert found == [f"2026-10-25T00:{minute:02d}Z"]  # summer time, one hour before it comes again


def test_a_restart_in_the_second_of_the_doubled_hours_does_not_fire_again() -> None:
    schedule = nightly(cron="30 2 * * *", timezone="Europe/Berlin", created="2026-10-24T12:00Z")
    first = due(schedule, at("2026-10-25T00:30Z"), idle)
    restarted = replace(schedule, handled_s=first.handled_s)
    assert fired(first) == ["2026-10-25T00:30Z"]
    for now in ("2026-10-25T01:29Z", "2026-10-25T01:30Z", "2026-10-25T01:31Z"):  # 02:30 winter time
        assert not due(restarted, at(now), idle).fires
    created_there = nightly(cron="45 2 * * *", timezone="Europe/Berlin", created="2026-10-25T01:40Z")
    assert not due(created_there, at("2026-10-25T02:30Z"), idle).fires


def test_every_hour_is_every_real_hour_whatever_the_local_clocks_do() -> None:
    schedule = nightly(cron="0 * * * *", timezone="Europe/Berlin")
    spring = ticks_between(schedule, "2026-03-28T23:30Z", "2026-03-29T03:30Z")
    autumn = ticks_between(schedule, "2026-10-24T23:30Z", "2026-10-25T03:30Z")
    assert [tick[-6:] for tick in spring] == [tick[-6:] for tick in autumn] == ["00:00Z", "01:00Z", "02:00Z", "03:00Z"]


# --- misfires ---


def test_a_scheduler_that_was_down_over_a_tick_fires_it_within_the_grace() -> None:
    assert fired(due(nightly(), at("2026-11-21T03:00Z"), idle)) == ["2026-11-21T02:00Z"]


def test_a_tick_found_after_the_grace_is_missed_and_says_why() -> None:
    found = due(nightly(), at("2026-11-21T03:00:01Z"), idle)
    assert not found.fires
    assert unfired(found) == [(FiringState.MISSED, "2026-11-21T02:00Z", "2026-11-21T02:00Z", 1)]
    assert found.unfired[0].reason == "found later than the grace of 1h allows"
    assert tick_text(find_next_tick_s(replace(nightly(), handled_s=found.handled_s), 0) or 0) == "2026-11-22T02:00Z"


def test_of_many_missed_ticks_one_run_stands_for_those_within_the_grace() -> None:
    schedule = nightly(cron="*/20 * * * *", created="2026-11-20T23:59Z")
    found = due(schedule, at("2026-11-21T02:05Z"), idle)
    assert fired(found) == ["2026-11-21T02:00Z"]
    assert unfired(found) == [
        (FiringState.MISSED, "2026-11-21T00:00Z", "2026-11-21T01:00Z", 4),
        (FiringState.COALESCED, "2026-11-21T01:20Z", "2026-11-21T01:40Z", 2),
    ]
    assert found.unfired[1].reason == "2026-11-21T02:00Z stands for it: both were found at once"


def test_catch_up_all_fires_each_missed_tick_within_the_grace_in_order() -> None:
    schedule = nightly(cron="*/20 * * * *", created="2026-11-20T23:59Z", catch_up="all", overlap="queue")
    found = due(schedule, at("2026-11-21T02:05Z"), busy)
    assert fired(found) == ["2026-11-21T01:20Z", "2026-11-21T01:40Z", "2026-11-21T02:00Z"]
    assert [one[0] for one in unfired(found)] == [FiringState.MISSED]


def test_a_year_of_missed_minutes_is_counted_up_to_a_limit_and_left_behind_at_once() -> None:
    schedule = nightly(cron="* * * * *", created="2025-11-21T00:00Z")
    found = due(schedule, at("2026-11-21T02:00Z"), idle)
    assert fired(found) == ["2026-11-21T02:00Z"]
    assert found.unfired[0].number == COUNTED
    assert not due(replace(schedule, handled_s=found.handled_s), at("2026-11-21T02:00:59Z"), idle).unfired
    nothing_fresh = nightly(cron="0-50 * * * *", created="2025-11-21T00:00Z", grace="1m")
    missed = due(nothing_fresh, at("2026-11-21T01:55Z"), idle)
    assert (missed.fires, missed.unfired[0].number) == ((), COUNTED)
    assert not due(replace(nothing_fresh, handled_s=missed.handled_s), at("2026-11-21T01:56Z"), idle).unfired


# --- overlap and pause ---


def test_a_tick_is_skipped_while_the_run_before_is_under_way() -> None:
    found = due(nightly(), at("2026-11-21T02:00Z"), busy)
    assert not found.fires
    assert unfired(found) == [(FiringState.OVERLAPPED, "2026-11-21T02:00Z", "2026-11-21T02:00Z", 1)]
    assert not due(replace(nightly(), handled_s=found.handled_s), at("2026-11-21T02:30Z"), idle).fires


def test_with_overlap_queue_a_tick_fires_beside_the_run_before() -> None:
    assert fired(due(nightly(overlap="queue"), at("2026-11-21T02:00Z"), busy)) == ["2026-11-21T02:00Z"]


def test_nobody_is_asked_what_is_under_way_unless_something_is_due() -> None:
    def never() -> bool:
        raise AssertionError("asked")

    due(nightly(), at("2026-11-20T13:00Z"), never)
    due(nightly(overlap="queue"), at("2026-11-21T02:00Z"), never)


def test_a_paused_schedule_decides_nothing() -> None:
    paused = replace(nightly(), paused=True)
    assert due(paused, at("2026-11-25T02:00Z"), idle) == Due((), (), paused.handled_s)
    assert find_next_tick_s(paused, at("2026-11-25T02:00Z")) is None


# --- clocks that jump ---


def test_a_clock_set_back_one_hour_does_not_fire_again() -> None:
    schedule = nightly()
    first = due(schedule, at("2026-11-21T02:10Z"), idle)
    after = replace(schedule, handled_s=first.handled_s)
    for now in ("2026-11-21T01:10Z", "2026-11-21T01:59Z", "2026-11-21T02:00Z", "2026-11-21T02:30Z"):
        assert due(after, at(now), idle) == Due((), (), first.handled_s)
    assert fired(due(after, at("2026-11-22T02:00Z"), idle)) == ["2026-11-22T02:00Z"]


CRONS = ("0 2 * * *", "30 2 * * *", "*/20 * * * *", "15,45 1-3 * * *", "0 */5 * * *", "30 0 * * 0", "5 4 28-31 * *")
# Cairo and Havana change at midnight, Lord Howe by half an hour.
ZONES = ("UTC", "Europe/Berlin", "America/Havana", "Africa/Cairo", "Asia/Kathmandu", "Australia/Lord_Howe")
CHANGES = (
    "03-07",
    "03-28",
    "04-04",
    "04-23",
    "10-03",
    "10-24",
    "10-28",
    "10-31",
)  # a day before one changes
AROUND = tuple(at(f"2026-{day}T00:00Z") for day in CHANGES)
READINGS = st.lists(st.integers(-2 * HOUR, 9 * HOUR), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(CRONS), st.sampled_from(ZONES), st.sampled_from(AROUND), READINGS, st.randoms(use_true_random=False)
)
def test_whatever_the_clock_reads_a_tick_has_at_most_one_fate(cron, zone, start_s, steps, random) -> None:  # type: ignore[no-untyped-def]
    """Readings go forwards and backwards; `due` must deal with each tick once, and with each that passed the clock."""
    rules = random.choice([{}, {"overlap": "queue"}, {"overlap": "queue", "catch_up": "all"}])
    schedule = new_schedule("any", cron, zone, start_s, **rules)
    fates: list[int] = []
    now_s = latest_s = start_s
    for step in steps:
        now_s += step
        latest_s = max(latest_s, now_s)
        found = due(schedule, now_s, lambda: random.random() < 0.3)
        assert found.handled_s >= schedule.handled_s
        for one in found.unfired:
            fates += ticks(schedule, one.first_s - 1, one.last_s)
        fates += found.fires
        schedule = replace(schedule, handled_s=found.handled_s)
    assert len(fates) == len(set(fates))
    assert sorted(fates) == list(ticks(schedule, start_s, latest_s))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CRONS), st.sampled_from(ZONES), st.sampled_from(AROUND), st.integers(0, 3 * DAY))
def test_where_one_starts_to_look_does_not_change_the_ticks(cron: str, zone: str, start_s: float, split_s: int) -> None:
    schedule, end_s = new_schedule("any", cron, zone, start_s), start_s + 3 * DAY
    parts = [*ticks(schedule, start_s, start_s + split_s), *ticks(schedule, start_s + split_s, end_s)]
    assert parts == list(ticks(schedule, start_s, end_s))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 23), st.integers(0, 59), st.sampled_from(ZONES), st.sampled_from(AROUND))
def test_a_time_of_day_fires_once_on_every_local_day(hour: int, minute: int, zone: str, start_s: float) -> None:
    """Wherever daylight saving puts its gap or its repetition, at midnight too."""
    schedule = new_schedule("any", f"{minute} {hour} * * *", zone, start_s)
    found = [datetime.fromtimestamp(tick_s, ZoneInfo(zone)) for tick_s in ticks(schedule, start_s, start_s + 8 * DAY)]
    days = [moment.date() for moment in found]
    assert len(days) in (7, 8, 9) and len(set(days)) == len(days)
    assert all((later - earlier).days == 1 for earlier, later in pairwise(days))


# --- what cannot be followed ---


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 2 * *", "has 4 fields; write five fields"),
        ("0 0 2 * * *", "has 6 fields; write five fields"),
        ("@daily", "has 1 fields; write five fields"),
        ("", "has 0 fields"),
        ("60 2 * * *", r"cannot be followed \(bad minute\)"),
        ("0 24 * * *", r"cannot be followed \(bad hour\)"),
        ("0 2 * * MON-FOO", r"cannot be followed \(bad day-of-week\)"),
        ("*/0 2 * * *", r"cannot be followed \(bad minute\)"),
        ("0 2 30 2 *", r"cannot be followed \(bad day-of-month, or a date that no year has\)"),
        ("0 2 */31 2 MON#5", "never fires in the next 50 years"),
    ],
)
def test_a_cron_expression_that_cannot_be_followed_is_refused(cron: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nightly(cron=cron)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="0123456789*/,-#LW MONFEB?²", max_size=30))
def test_any_text_is_a_cron_expression_or_refused(cron: str) -> None:
    try:
        schedule = nightly(cron=cron)
    except InputError:
        return
    assert find_next_tick_s(schedule, schedule.created_s) is not None


@pytest.mark.parametrize(
    ("timezone", "message"),
    [
        ("Europe/Berln", "did you mean 'Europe/Berlin'"),
        ("Europe", "no timezone 'Europe'"),
        ("../etc/passwd", "write an IANA name"),
        ("", "write an IANA name"),
    ],
)
def test_an_unknown_timezone_is_refused(timezone: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nightly(timezone=timezone)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "-x", "a b", "a\n", "x" * 65, "naïve"])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="is no name for a schedule; use up to 64 letters"):
        new_schedule(name, "0 2 * * *", "UTC", 0.0)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"overlap": "allow"}, "no overlap rule 'allow'; there are: skip, queue"),
        ({"catch_up": "none"}, "no catch-up rule 'none'; there are: newest, all"),
        ({"catch_up": "all"}, "use overlap 'queue'"),
        ({"grace": "10s"}, "is not between 1m and 7d"),
        ({"grace": "8d"}, "is not between 1m and 7d"),
        ({"grace": "soon"}, "write a duration such as 90s"),
    ],
)
def test_rules_that_do_not_exist_or_contradict_each_other_are_refused(rules: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nightly(**rules)


# --- occurrences ---


def test_an_occurrence_is_its_schedule_and_its_instant() -> None:
    assert parse_occurrence("nightly/2026-11-22T02:00Z") == ("nightly", int(at("2026-11-22T02:00Z")))
    assert parse_occurrence("nightly/2026-11-22T02:00:07Z") == ("nightly", int(at("2026-11-22T02:00:07Z")))
    assert datetime.fromtimestamp(at("2026-11-22T02:00Z"), UTC).hour == 2


@pytest.mark.parametrize(
    "text",
    ["nightly", "nightly/", "nightly/2026-11-22", "nightly/2026-13-22T02:00Z", "nightly/2026-11-22T02:00+01:00",
     "../2026-11-22T02:00Z", "nightly/../../x", "a/b/2026-11-22T02:00Z", "nightly/2026-11-22T02:00Z\n", "/x",
     "nightly/２026-11-22T02:00Z"],
)  # fmt: skip
def test_anything_else_is_no_occurrence(text: str) -> None:
    with pytest.raises(InputError, match=r"is no (occurrence of|name for) a schedule"):
        parse_occurrence(text)
