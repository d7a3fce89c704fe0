"""`backbone eval`: tasks of lm-evaluation-harness on a model folder, or on what a finetune exported."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jobs.cli import tables
from jobs.cli.options import Storage, storage_folder
from orchestrator import layout
from orchestrator.cell_job import find_export
from orchestrator.errors import InputError
from orchestrator.layout import TASK_RESULTS, TASK_SAMPLES
from orchestrator.results import read_json
from orchestrator.tasks.results import STANDARD_ERROR


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("eval")(evaluate)


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A Hugging Face folder, or the id of a finetune's cell.")
    ],
    tasks: Annotated[str, typer.Option(metavar="NAME[,NAME]", help="Tasks, groups or tags of lm-evaluation-harness.")],
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with YAML of tasks; Python that they name is run.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N items of each task: a trial.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that the model answers at a time.")] = 8,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens of a window; else the model's context.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=f"Of {TASK_RESULTS} and {TASK_SAMPLES}; else the model's folder."),
    ] = None,
    storage: Storage = None,
) -> None:
    """Runs tasks of lm-evaluation-harness on a model, and adds the figures to the MLflow run of its cell."""
    root = storage_folder(storage)
    folder = Path(model).expanduser()
    folder = folder if folder.is_dir() else find_exported(root, model)
    from orchestrator.tasks.harness import open_tasks, run_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise InputError("--tasks names no task; write --tasks NAME or --tasks NAME,NAME")
    where = None if include_path is None else include_path.expanduser().absolute()
    opened = open_tasks(names, where)
    from orchestrator.tasks.folder import open_folder

    lm = open_folder(folder, batch_size, max_length)
    results = run_tasks(lm, opened, limit)
    target = (output or folder).expanduser().absolute()
    facts = {"model": str(folder.resolve()), "batch_size": batch_size, "max_length": lm.max_length}
    results.write(target, cell_id=find_export(folder), **facts)
    print_tasks(results.document["tasks"])
    tables.out.print(f"results: {target / TASK_RESULTS}", highlight=False, soft_wrap=True)
    _tell(root, find_export(folder), results.metrics, limit)


def find_exported(root: Path, cell_id: str) -> Path:
    """The folder that a cell was exported to. Raises InputError where there is no such cell or export."""
    stored = layout.Storage(root)
    if Path(cell_id).name != cell_id or not stored.cell(cell_id).path.is_dir():
        raise InputError(f"{cell_id!r} is neither a folder nor a cell in {root}; a cell is named as in a report")
    for job in stored.reports():
        export = read_json(job.report)["comparison"].get("export")
        if export is not None and find_export(Path(export)) == cell_id:
            return Path(export)
    raise InputError(
        f"cell {cell_id} has no exported folder: name the tasks in recipe.evaluate.tasks of its spec and run that "
        "again, which asks the cell itself without training it anew"
    )


def print_tasks(tasks: dict[str, dict[str, dict[str, float]]]) -> None:
    """A row for each figure of each task."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "version", "items", "metric", "value", "standard error"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right", no_wrap=True)
    for name, task in tasks.items():
        figures = task["metrics"]
        for metric, value in figures.items():
            stem, dot, filtered = metric.partition(".")
            if not stem.endswith(STANDARD_ERROR):
                error = figures.get(f"{stem}{STANDARD_ERROR}{dot}{filtered}")
                cells = (str(task["version"]), str(task["items"]), metric, f"{value:.4f}")
                table.add_row(name, *cells, "" if error is None else f"{error:.4f}")
    tables.print_wide(table)


def _tell(root: Path, cell_id: str | None, metrics: dict[str, float], limit: int | None) -> None:
    """Nothing of a trial, or of a model that no cell in this storage made."""
    if cell_id is None or not layout.Storage(root).cell(cell_id).path.is_dir():
        return
    if limit is not None:
        print("MLflow is not told of a trial: --limit was given")
        return
    from jobs.tracking.task_metrics import log_task_metrics

    for run_id in log_task_metrics(root, cell_id, metrics):
        print(f"MLflow run {run_id}: {', '.join(metrics)}")
