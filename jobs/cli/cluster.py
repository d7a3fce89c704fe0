"""`backbone up, down, mlflow, doctor`: a cluster on this machine, its pages, and whether a cluster is sound."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.options import Storage, storage_folder
from jobs.cli.tables import out

Port = Annotated[int | None, typer.Option(help="Else the usual one, or another where that is taken.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(up)
    app.command()(down)
    app.command()(mlflow)
    app.command()(doctor)


def up(
    storage: Storage = None,
    num_cpus: Annotated[int | None, typer.Option(min=1, help="What Ray may give away; else what there is.")] = None,
    num_gpus: Annotated[int | None, typer.Option(min=0, help="What Ray may give away; else what there is.")] = None,
    port: Port = None,
    dashboard_port: Port = None,
    mlflow_port: Port = None,
) -> None:
    """Starts Ray with a token, MLflow and the dispatcher on this machine, or what of them is missing."""
    from jobs.cluster.one_machine import cluster
    from jobs.cluster.one_machine.commands import Resources
    from jobs.cluster.one_machine.ports import Ports

    ports = Ports(port, dashboard_port, mlflow_port)
    raise typer.Exit(cluster.up(storage_folder(storage), Resources(num_cpus, num_gpus), ports, out))


def down(storage: Storage = None) -> None:
    """Ends exactly what `up` started; the storage with queue, results and MLflow's database stays."""
    from jobs.cluster.one_machine import cluster

    raise typer.Exit(cluster.down(storage_folder(storage), out))


def mlflow(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="`<name>-<hash>`; else the newest.")] = None,
    storage: Storage = None,
    port: Port = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page, or only print it.")] = True,
) -> None:
    """Opens MLflow where the runs of a job stand side by side; starts it, for this machine alone, where none runs."""
    from jobs.tracking.page import show

    raise typer.Exit(show(storage_folder(storage), job, port, browser, out))


def doctor(
    spec: Annotated[Path | None, typer.Argument(metavar="[SPEC]", help="Also whether the cluster can hold it.")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="http://HOST:8265, or HOST:6379; else RAY_ADDRESS, else here.")
    ] = None,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Checks a cluster before money is spent: access, versions, GPUs, storage, network, clocks; with remedies."""
    from jobs.doctor import doctor as examine

    raise typer.Exit(examine(spec, address, storage, as_json, out))
