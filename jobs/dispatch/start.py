"""`python -m jobs.dispatcher start --storage DIR`, on the head: starts the dispatcher, or finds it running."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from jobs.cluster.dispatcher import ACTOR_NAME, NAMESPACE, ask, find_dispatcher
from jobs.cluster.ray_cluster import largest_cluster
from jobs.dispatch.wire import Ping
from orchestrator.errors import ClusterError, InputError, OrchestratorError
from orchestrator.layout import Storage

app = typer.Typer(help="The dispatcher of a Ray cluster.", add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def commands() -> None:
    """The dispatcher of a Ray cluster."""


@app.command()
def start(
    storage: Annotated[Path, typer.Option(help="The folder that every node shares; the queue is kept under it.")],
    store: Annotated[str | None, typer.Option(help="A database URL instead of SQLite under the storage.")] = None,
    settings: Annotated[Path | None, typer.Option(help="YAML with owners and policy; see docs/queue.md.")] = None,
    autoscaling_config: Annotated[
        Path | None, typer.Option(help="What `ray start` was given: the cluster may grow to it.")
    ] = None,
    may_grow: Annotated[
        bool, typer.Option("--may-grow", help="An autoscaler adds nodes, nobody says how many.")
    ] = False,
) -> None:
    """Starts the dispatcher on this node, or says that it runs."""
    import ray

    try:
        root = storage.expanduser().absolute()
        url = store or os.environ.get("BACKBONE_QUEUE_STORE") or f"sqlite:///{Storage(root).queue_store}"
        context = _connect()
        state = start_dispatcher(url, context.dashboard_url, settings, autoscaling_config, may_grow)
    except OrchestratorError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(f"the dispatcher runs (pid {state['pid']}); its queue is in {state['store']}")
    ray.shutdown()


def start_dispatcher(
    store_url: str,
    dashboard_url: str,
    settings: Path | None = None,
    autoscaling_config: Path | None = None,
    may_grow: bool = False,
) -> Ping:
    """Starts it on the node of this process, if the cluster has none, and waits until it answers."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from jobs.dispatch.actor import DispatcherActor
    from jobs.dispatch.service import Setup
    from jobs.simulation.trace import load_queue_settings

    actor = find_dispatcher()
    if actor is None:
        if settings is not None:
            load_queue_settings(settings)  # a wrong file is told here, not by an actor that keeps dying
        if autoscaling_config is not None:
            _check_autoscaling(autoscaling_config)
        if not dashboard_url:
            raise ClusterError("this Ray cluster has no dashboard, and so no job API; start it with ray[default]")
        setup = Setup(
            store_url,
            f"http://{dashboard_url}",
            None if settings is None else str(settings.absolute()),
            None if autoscaling_config is None else str(autoscaling_config.expanduser().absolute()),
            may_grow,
        )
        options = {
            "name": ACTOR_NAME,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "max_restarts": -1,
            "max_task_retries": 10,  # everything it is asked can be asked twice
            "max_concurrency": 64,
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
        }
        actor = ray.remote(DispatcherActor).options(**options).remote(setup)
    try:
        state: Ping = ask(actor, "ping")
    except ClusterError:
        ray.kill(actor)
        raise
    return state


def _check_autoscaling(file: Path) -> None:
    try:
        largest_cluster(file)
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"--autoscaling-config {file} is no cluster file of Ray ({error!r}); give the one that `ray start` has, or "
            "--may-grow"
        ) from error


def _connect() -> Any:
    import ray

    try:
        return ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise InputError("no Ray runs on this machine; `ray start --head` or `backbone up` starts it") from error
