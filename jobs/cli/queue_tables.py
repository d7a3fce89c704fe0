"""What the queue's commands print. No torch, ray, mlflow or transformers."""

from datetime import datetime

from rich.table import Table
from rich.text import Text

from jobs.cli.tables import out
from jobs.dispatch.wire import JobStatus, JobSummary, QueueListing, ScheduleFacts, ScheduleListing, SyncAnswer
from jobs.formats import duration

COLOURS = {
    "RUNNING": "green",
    "SUCCEEDED": "green",
    "QUEUED": "yellow",
    "PREEMPTED": "yellow",
    "FAILED": "red",
    "CANCELLED": "red",
    "INTERRUPTED": "red",
}


def print_submitted(job: JobStatus) -> None:
    """What became of a submission, and what to type next."""
    _say(f"{job['job_id']}: {_sentence(job)}")
    if job["state"] in ("QUEUED", "RUNNING"):
        _say(f"follow it with `backbone logs -f {job['job_id']}`; results go to {job['storage']}/{job['job_id']}")


def print_queue(answer: QueueListing) -> None:
    """Every job that is not over, then the latest that are."""
    jobs = answer["jobs"]
    under_way = [job for job in jobs if job["ended_s"] is None]
    over = [job for job in jobs if job["ended_s"] is not None][-10:]
    table = _table("job", "state", "owner", "priority", "cells", "submitted", "")
    for job in (*under_way, *over):
        table.add_row(
            job["job_id"],
            _state(job["state"]),
            job["owner"],
            str(job["priority"]),
            _counts(job),
            _clock(job["submitted_s"]),
            job["waiting"] or job["stop"] or job["reason"],
        )
    out.print(table if jobs else "the queue is empty; `backbone submit SPEC` fills it")
    gpus, cpus = sum(node["gpus"] for node in answer["nodes"]), sum(node["cpus"] for node in answer["nodes"])
    _say(f"\n{len(answer['nodes'])} nodes, {gpus} GPUs, {cpus} CPUs; {len(answer['leases'])} cells train")
    if answer["trouble"]:
        _say(f"the dispatcher has trouble: {answer['trouble']}")


def print_status(job: JobStatus) -> None:
    """One job: its cells and the latest decisions about them."""
    _say(f"{job['job_id']}: {_sentence(job)}; owner {job['owner']}, priority {job['priority']}")
    table = _table("cell", "state", "trained", "expected", "")
    for cell in job["cells"]:
        over = cell["state"] not in ("QUEUED", "PREEMPTED", "RUNNING")
        expected = "" if over else duration(cell["predicted_s"])
        table.add_row(cell["cell_id"], _state(cell["state"]), duration(cell["trained_s"]), expected, cell["note"])
    out.print(table)
    for event in job["events"]:
        of = f" {event['cell_id']}" if event["cell_id"] else ""
        _say(f"{_clock(event['time_s'])} {event['kind']}{of}: {event['text']}")


def print_sync(answer: SyncAnswer) -> None:
    """What MLflow still lacks."""
    waiting = answer["waiting"]
    _say(
        f"being sent to MLflow: {', '.join(waiting)}" if waiting else "MLflow has everything of the jobs that are over"
    )
    if answer["trouble"]:
        _say(answer["trouble"])


def print_schedules(answer: ScheduleListing) -> None:
    """A row for each schedule."""
    table = _table("name", "cron", "timezone", "next", "spec")
    for one in answer["schedules"]:
        when = "paused" if one["paused"] else one["next"] or "never"
        table.add_row(one["name"], one["cron"], one["timezone"], when, one["spec"])
    out.print(table if answer["schedules"] else "no schedules; `backbone schedule add NAME SPEC --cron EXPR` adds one")


def print_schedule(answer: ScheduleFacts) -> None:
    """One schedule with its latest ticks, or what was done to it."""
    if "removed" in answer:
        return _say(f"removed {answer['removed']}; its jobs and results stay")
    if "occurrence" in answer:
        return _say(f"{answer['occurrence']} fires now; `backbone queue` shows it")
    when = "paused" if answer["paused"] else f"next {answer['next']}"
    rules = f"grace {float(answer['grace_s']):.0f} s, overlap {answer['overlap']}, catch-up {answer['catch_up']}"
    _say(f"{answer['name']}: {answer['spec']} at '{answer['cron']}' {answer['timezone']}; {when}; {rules}")
    if answer.get("history"):
        table = _table("occurrence", "state", "job", "")
        for firing in answer["history"]:
            job = f"{firing['job_id']} {firing['job_state'].lower()}" if firing["job_id"] else ""
            table.add_row(firing["occurrence"], firing["state"].lower(), job, firing["reason"])
        out.print(table)


def _sentence(job: JobSummary) -> str:
    why = job["waiting"] or job["stop"] or job["reason"]
    return f"{job['state'].lower()}{f' ({why})' if why else ''}, {_counts(job) or 'nothing to run'}"


def _counts(job: JobSummary) -> str:
    return ", ".join(f"{number} {state.lower()}" for state, number in job["counts"].items())


def _state(state: str) -> Text:
    return Text(state.lower(), style=COLOURS.get(state, ""))


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%m-%d %H:%M:%S")


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)
