"""`backbone demonstrations, act`: what experts and models do in simulators."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jobs.cli import tables
from jobs.cli.evaluate import find_exported
from jobs.cli.options import Plugins, Storage, load_plugins, storage_folder
from jobs.formats import percent
from orchestrator.cell_job import RolloutRequest
from orchestrator.errors import InputError
from orchestrator.layout import FILMS, ROLLOUTS
from orchestrator.rollouts.results import BLIND, RANDOM, TRAINED, EpisodeFacts, wilson

POLICIES = {TRAINED: "the model", RANDOM: "a random one", BLIND: "the model, told of another episode"}
MOST_PROCESSES = 8  # that simulate
EnvironmentName = Annotated[
    str, typer.Argument(metavar="ENVIRONMENT", help="Such as minigrid:BabyAI-GoToLocal-v0.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(demonstrations)
    app.command()(act)


def demonstrations(
    environment: EnvironmentName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that is made.", show_default=False)],
    episodes: Annotated[int, typer.Option(min=2, help="That succeed; one in ten of them is held out.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides every episode.")] = 0,
) -> None:
    """Has the expert of an environment act, as a data set in the format `actions` with an image a step."""
    from orchestrator.environments.demonstrations import HELD_OUT, TRAIN, record_demonstrations

    folder = out.expanduser().absolute()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=tables.out) as progress:
        task = progress.add_task("episodes", total=episodes)

        def tell(kept: int, thrown_away: int) -> None:
            thrown = f", {thrown_away} thrown away" if thrown_away else ""
            progress.update(task, completed=kept, description=f"episodes{thrown}")

        made = record_demonstrations(environment, episodes, seed, folder, tell)
    counts, steps = made["episodes"], made["steps"]
    tables.out.print(
        f"{counts['train']} episodes ({steps['train']} steps) to learn from, {counts['held_out']} "
        f"({steps['held_out']}, without {steps['repeated']} that training has too) held out, "
        f"{counts['thrown_away']} thrown away because the expert failed; "
        f"{made['instructions']} instructions, images of {made['image'][1]} x {made['image'][0]}",
        highlight=False,
        soft_wrap=True,
    )
    if made["cut_off"]:
        tables.out.print(
            f"{made['cut_off']} of {steps['train']} steps have an action beyond the 1st and 99th percentile, which is "
            "cut off when it is learned",
            highlight=False,
            soft_wrap=True,
        )
    tables.out.print(f"{folder / TRAIN}\n{folder / HELD_OUT}", highlight=False, soft_wrap=True)


def act(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder that a finetune exported, or its cell's id.")],
    environment: Annotated[str, typer.Option(metavar="NAME", help="Such as minigrid:BabyAI-GoToLocal-v0.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Decides which; as that of rollouts in a spec.")] = 0,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Of an episode, where the environment's own limit is larger.")
    ] = None,
    execute: Annotated[
        int | None,
        typer.Option(min=1, help="Actions of a chunk that are taken before the model looks again.", show_default="all"),
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="DIR", help=f"For films of a success and of a failure: {', '.join(FILMS)}.")
    ] = None,
    plugin: Plugins = None,
    storage: Storage = None,
) -> None:
    """Has a finetuned model act in a simulator, and says how often it succeeds."""
    load_plugins(plugin)
    from orchestrator.environments.fleet import Fleet
    from orchestrator.environments.registry import find_missing_simulator, find_problem
    from orchestrator.rollouts.model import open_policy
    from orchestrator.rollouts.results import collect, write_results
    from orchestrator.rollouts.stage import film, play_all, require_dimensions

    if problem := find_problem(environment) or find_missing_simulator(environment):
        raise InputError(problem)
    folder = Path(model).expanduser()
    folder = (folder if folder.is_dir() else find_exported(storage_folder(storage), model)).resolve()
    policy = open_policy(folder, execute)
    asked = RolloutRequest(environment, episodes, seed, max_steps, execute)
    with Fleet(environment, min(os.cpu_count() or 1, MOST_PROCESSES)) as fleet:
        require_dimensions(fleet, asked, policy.dimensions)
        played = play_all(policy, fleet, asked)
        if video is not None:
            target = video.expanduser().absolute()
            target.mkdir(parents=True, exist_ok=True)
            film(fleet, played[TRAINED], *(target / name for name in FILMS))
    results = collect(asked, played)
    write_results(folder / ROLLOUTS, results, model=str(folder), chunk=policy.chunk, execute=policy.execute)
    _print_success(results["episodes"])
    tables.out.print(f"episodes: {folder / ROLLOUTS}", highlight=False, soft_wrap=True)


def _print_success(episodes: dict[str, list[EpisodeFacts]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("policy", "success", "95 % interval", "episodes", "steps"):
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for policy, facts in episodes.items():
        successes, count = sum(one["success"] for one in facts), len(facts)
        low, high = wilson(successes, count)
        steps = sum(one["length"] for one in facts) / count
        interval = f"{percent(low)} to {percent(high)}"
        table.add_row(POLICIES[policy], percent(successes / count), interval, str(count), f"{steps:.1f}")
    tables.print_wide(table)
