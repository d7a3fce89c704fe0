"""`backbone submit, queue, status, logs, stop, cancel`: the cluster's queue from a terminal."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from jobs.cli import queue_tables as show
from jobs.cli.tables import out
from orchestrator.errors import InputError

if TYPE_CHECKING:
    from jobs.dispatch.client import QueueClient
    from jobs.dispatch.wire import ScheduleListing

Address = Annotated[
    str | None, typer.Option(metavar="URL", help="The cluster's job API; else RAY_ADDRESS, else http://127.0.0.1:8265.")
]
Insecure = Annotated[bool, typer.Option("--insecure-cluster", help="Talk to a cluster that wants no token.")]
Priority = Annotated[
    int | None, typer.Option(min=-1_000_000, max=1_000_000, help="Larger goes first; else the spec's policy.priority.")
]
Owner = Annotated[str | None, typer.Option(help="Whose share and quota it counts for; else you.")]
WorkingDir = Annotated[
    Path | None, typer.Option(help="The folder that travels with it; else this one, if the spec is inside.")
]
Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="MODULE", help="Registers backbones; repeatable.")
]
Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="A comparison or finetune.")]
ScheduleName = Annotated[str, typer.Argument(metavar="NAME", help="`backbone schedule list` shows them.")]
SCHEDULE_VERBS = {
    "show": "Shows a schedule's rules, its next tick and what became of the latest ones.",
    "history": "Shows what became of a schedule's latest ticks.",
    "pause": "Lets ticks pass without firing; a run that is under way goes on.",
    "resume": "Fires again, from the next tick on.",
    "run-now": "Fires once, now.",
    "remove": "Forgets a schedule; its jobs and results stay.",
}
Answer = TypeVar("Answer")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id that submit printed; `backbone queue` lists them.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    for command in (submit, queue, status, logs, stop, cancel, sync):
        app.command()(command)
    schedules = typer.Typer(help="Submits specs on a clock; docs/schedules.md has the rules.", no_args_is_help=True)
    schedules.command("add")(add_schedule)
    schedules.command("list")(list_schedules)
    for verb, does in SCHEDULE_VERBS.items():
        schedules.command(verb, help=does)(_about_schedule(verb))
    app.add_typer(schedules, name="schedule")


def submit(
    spec: Spec,
    address: Address = None,
    priority: Priority = None,
    owner: Owner = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow its output until it is over.")] = False,
    working_dir: WorkingDir = None,
    plugin: Plugins = None,
    skip_infeasible: Annotated[bool, typer.Option(help="Report cells that cannot fit instead of refusing.")] = False,
    certificate: Annotated[bool, typer.Option("--certificate/--no-certificate", help="As for compare.")] = True,
    keep_finished: Annotated[bool, typer.Option("--keep-finished", help="As for compare.")] = False,
    benchmark: Annotated[bool, typer.Option("--benchmark", help="Measure the comparison's speed instead.")] = False,
    steps: Annotated[int | None, typer.Option(help="As for benchmark.")] = None,
    warmup: Annotated[int | None, typer.Option(help="As for benchmark.")] = None,
    occurrence: Annotated[
        str | None, typer.Option(metavar="NAME", help="A benchmark to continue; else a new one.")
    ] = None,
    decide: Annotated[bool, typer.Option("--decide", help="Add seeds until the comparison is decided.")] = False,
    max_seeds: Annotated[int | None, typer.Option(min=2, help="As for decide.")] = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Puts a spec into the cluster's queue. The same spec again is the same job."""
    from orchestrator.planning.plan import check_spec

    check_spec(spec)  # what is wrong with the file is told before anything travels
    from jobs.dispatch.client import Benchmark, Submission

    chosen = {"measured": steps, "warm_up": warmup, "occurrence": occurrence}
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if given and not benchmark:
        raise InputError("--steps, --warmup and --occurrence are of a benchmark; add --benchmark, or leave them out")
    if (max_seeds is not None and not decide) or (decide and benchmark):
        raise InputError("--max-seeds is of --decide, which cannot be a benchmark; add --decide, or leave it out")
    measure = Benchmark(**given) if benchmark else None
    client = _client(address, insecure)
    job = client.submit(
        Submission(
            *(spec, priority, owner, tuple(plugin or ()), working_dir, skip_infeasible, certificate, measure),
            decide=decide,
            max_seeds=max_seeds,
            keep_finished=keep_finished,
        )
    )
    if as_json:
        print(json.dumps(job, indent=2))
    else:
        show.print_submitted(job)
    if wait:
        raise typer.Exit(_follow(client, job["job_id"]))


def queue(address: Address = None, insecure: Insecure = False, as_json: AsJson = False) -> None:
    """Shows what waits, what trains and why."""
    _print(_client(address, insecure).queue(), as_json, show.print_queue)


def status(job: JobId, address: Address = None, insecure: Insecure = False, as_json: AsJson = False) -> None:
    """Shows one job: its cells, and what the queue decided about them."""
    _print(_client(address, insecure).status(job), as_json, show.print_status)


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job is over.")] = False,
    address: Address = None,
    insecure: Insecure = False,
) -> None:
    """Prints what the job's driver printed."""
    client = _client(address, insecure)
    if follow:
        raise typer.Exit(_follow(client, job))
    print(client.logs(job), end="")


def stop(job: JobId, address: Address = None, insecure: Insecure = False, as_json: AsJson = False) -> None:
    """Stops a job at its next checkpoint; submitting it again continues it."""
    _print(_client(address, insecure).stop(job), as_json, show.print_status)


def cancel(job: JobId, address: Address = None, insecure: Insecure = False, as_json: AsJson = False) -> None:
    """Ends a job at once, without a new checkpoint."""
    _print(_client(address, insecure).cancel(job), as_json, show.print_status)


def sync(
    storage: Annotated[
        Path | None, typer.Option(help="Send from this folder on this machine, instead of asking a cluster.")
    ] = None,
    address: Address = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Gives MLflow what it lacks of jobs whose drivers are gone, and ends their runs."""
    if storage is None:
        return _print(_client(address, insecure).sync(), as_json, show.print_sync)
    from jobs.tracking.sync import LIMIT_S
    from jobs.tracking.sync import sync as sync_storage

    raise typer.Exit(sync_storage(storage.expanduser().absolute(), None, LIMIT_S, out).exit_code)


def add_schedule(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Names it, and its results.")],
    spec: Spec,
    cron: Annotated[str, typer.Option(help="Five fields, such as '0 2 * * *' for every night at two.")],
    timezone: Annotated[str, typer.Option(help="IANA, such as Europe/Berlin.")] = "UTC",
    grace: Annotated[str, typer.Option(help="How late a tick may still fire.")] = "1h",
    overlap: Annotated[str, typer.Option(help="skip, or queue, while an earlier run is under way.")] = "skip",
    catch_up: Annotated[str, typer.Option(help="newest, or all, of the ticks that were missed.")] = "newest",
    address: Address = None,
    priority: Priority = None,
    owner: Owner = None,
    working_dir: WorkingDir = None,
    plugin: Plugins = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Submits a spec at every tick of a clock; each run measures anew and is compared with its own history."""
    from jobs.dispatch.client import Submission
    from jobs.dispatch.schedules.rule import new_schedule
    from orchestrator.planning.plan import check_spec

    check_spec(spec)  # what is wrong here is told before anything travels
    new_schedule(name, cron, timezone, time.time(), grace=grace, overlap=overlap, catch_up=catch_up)
    submission = Submission(spec, priority, owner, tuple(plugin or ()), working_dir)
    client = _client(address, insecure)
    added = client.add_schedule(name, submission, cron, timezone, grace=grace, overlap=overlap, catch_up=catch_up)
    _print(added, as_json, show.print_schedule)


def list_schedules(address: Address = None, insecure: Insecure = False, as_json: AsJson = False) -> None:
    """Shows every schedule and when it fires next."""
    schedules = _client(address, insecure).schedules()
    listing: ScheduleListing = {"schedules": schedules}
    _print(listing, as_json, show.print_schedules)


def _about_schedule(verb: str) -> Callable[..., None]:
    """A command about one schedule."""

    def command(
        name: ScheduleName, address: Address = None, insecure: Insecure = False, as_json: AsJson = False
    ) -> None:
        asked = {"history": "show", "run-now": "run_now"}.get(verb, verb)
        _print(_client(address, insecure).schedule(asked, name), as_json, show.print_schedule)

    return command


def _client(address: str | None, insecure: bool) -> "QueueClient":
    from jobs.dispatch.client import QueueClient

    return QueueClient(address, insecure)


def _follow(client: "QueueClient", job_id: str) -> int:
    for text in client.follow(job_id):
        print(text, end="", flush=True)
    job = client.status(job_id)
    show.print_submitted(job)
    return 0 if job["state"] == "SUCCEEDED" else 1


def _print(answer: Answer, as_json: bool, draw: Callable[[Answer], None]) -> None:
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        draw(answer)
