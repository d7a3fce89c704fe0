"""`backbone demonstrations, act`: what experts and models do in simulators."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.cli import tables

EnvironmentName = Annotated[
    str, typer.Argument(metavar="ENVIRONMENT", help="Such as minigrid:BabyAI-GoToLocal-v0.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(demonstrations)


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
        f"({steps['held_out']}) held out, {counts['thrown_away']} thrown away because the expert failed; "
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
