"""`backbone up, down`: a cluster on this machine."""

from typing import Annotated

import typer

from jobs.show import out
from jobs.storage import Storage, storage_folder

StoragePort = Annotated[int | None, typer.Option(help="Else the usual one, or another where that is taken.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(up)
    app.command()(down)


def up(
    storage: Storage = None,
    num_cpus: Annotated[int | None, typer.Option(min=1, help="What Ray may give away; else what there is.")] = None,
    num_gpus: Annotated[int | None, typer.Option(min=0, help="What Ray may give away; else what there is.")] = None,
    port: StoragePort = None,
    dashboard_port: StoragePort = None,
    mlflow_port: StoragePort = None,
) -> None:
    """Starts Ray with a token, MLflow and the dispatcher on this machine, or what of them is missing."""
    from jobs.one_machine import cluster
    from jobs.one_machine.commands import Resources
    from jobs.one_machine.ports import Ports

    ports = Ports(port, dashboard_port, mlflow_port)
    raise typer.Exit(cluster.up(storage_folder(storage), Resources(num_cpus, num_gpus), ports, out))


def down(storage: Storage = None) -> None:
    """Ends exactly what `up` started; the storage with queue, results and MLflow's database stays."""
    from jobs.one_machine import cluster

    raise typer.Exit(cluster.down(storage_folder(storage), out))
