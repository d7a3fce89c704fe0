"""`backbone ...`: the commands people type. Listing and planning import no torch, ray, mlflow or transformers."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from backbones.reference import HubError
from jobs.cli import cluster, documents, evaluate, plan_tables, queue, robots, tables
from jobs.cli.options import Plugins, Storage, load_plugins, storage_folder
from orchestrator.errors import InputError, OrchestratorError, SpecError

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan

app = typer.Typer(
    help="Which LLM backbone should I build on, and how do I finetune it reliably on my cluster?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML spec; `backbone schema` prints what it may hold.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Occurrence = Annotated[
    str | None, typer.Option(metavar="SCHEDULE/TICK", help="The firing of a schedule that this run is.", hidden=True)
]
SkipInfeasible = Annotated[bool, typer.Option(help="Report cells that cannot fit instead of refusing the whole job.")]
KeepFinished = Annotated[
    bool,
    typer.Option("--keep-finished", help="Take finished cells over, marked, whose examples another backbone drops."),
]

out = tables.out
err = Console(stderr=True)


def main() -> None:
    """The console script: turns designed errors into one message and an exit code."""
    try:
        try:
            app()
        except OrchestratorError as error:
            _exit_with(str(error) if isinstance(error, SpecError) else f"error: {error}", error.exit_code)
        except HubError as error:
            _exit_with(f"error: {error}", 1)
    except KeyboardInterrupt:  # while an error was told
        sys.exit(130)


def run_command(command: str) -> None:
    """Runs one command as `python -m jobs.<command>` does."""
    sys.argv.insert(1, command)
    main()


@app.command("list")
def list_backbones(as_json: AsJson = False, plugin: Plugins = None) -> None:
    """Lists the registered backbones."""
    load_plugins(plugin)
    from backbones.registry import backbone_ids, get_spec

    specs = [get_spec(backbone_id) for backbone_id in backbone_ids()]
    if as_json:
        print(
            json.dumps(
                [{"id": spec.backbone_id, **tables.public(spec), "is_pinned": spec.is_pinned} for spec in specs],
                indent=2,
                default=str,
            )
        )
        return
    tables.print_backbones(specs)


@app.command()
def plan(
    spec: Spec,
    as_json: AsJson = False,
    plugin: Plugins = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Also lay out, adapt and shard every backbone, without weights or ranks.")
    ] = False,
) -> None:
    """Shows the cells of a spec, their batches and their predicted memory. Starts nothing."""
    load_plugins(plugin)
    from jobs.cli import dry_run as wrapping
    from orchestrator.planning.plan import load_plan

    planned = load_plan(spec)
    wrapped, failures = wrapping.dry_run(planned) if dry_run else ([], [])
    if as_json:
        document = {**plan_tables.plan_document(planned), **({"dry_run": wrapped} if dry_run else {})}
        print(json.dumps(document, indent=2, default=str))
    else:
        plan_tables.print_plan(planned)
        if dry_run:
            wrapping.print_dry_run(planned, wrapped)
    wrapping.raise_unless_wrapped(failures)
    if planned.infeasible:
        raise SpecError(planned.infeasible)


@app.command()
def compare(
    spec: Spec,
    skip_infeasible: SkipInfeasible = False,
    certificate: Annotated[
        bool, typer.Option("--certificate/--no-certificate", help="Train only backbones whose certificate passes.")
    ] = True,
    a_a: Annotated[
        bool, typer.Option("--a-a", help="Train one backbone against itself: what would noise alone call a win?")
    ] = False,
    backbone: Annotated[str | None, typer.Option(metavar="ID", help="Of --a-a; else the spec's first.")] = None,
    keep_finished: KeepFinished = False,
    plugin: Plugins = None,
    occurrence: Occurrence = None,
) -> None:
    """Trains every backbone under one recipe, and says which wins and how sure that is."""
    plugins = load_plugins(plugin)
    if (backbone is not None and not a_a) or (a_a and occurrence is not None):
        raise InputError("--backbone is of --a-a, which no schedule fires; add --a-a, or leave them out")
    from jobs.driver.kinds.self_comparison import load_self_comparison
    from orchestrator.planning.plan import load_comparison

    loaded = load_self_comparison(spec, backbone) if a_a else load_comparison(spec, occurrence)
    planned = replace(loaded, plugins=plugins)
    require_feasible(planned, skip_infeasible)
    from jobs.driver.launch import launch

    outcome = launch(planned, out, certify=certificate, keep_finished=keep_finished)
    tables.print_ranking(outcome.document)
    raise typer.Exit(outcome.exit_code)


@app.command()
def decide(
    spec: Spec,
    max_seeds: Annotated[
        int | None, typer.Option(min=2, help="Declared before the first look; else verdict.max_seeds, else 8.")
    ] = None,
    show_plan: Annotated[bool, typer.Option("--plan", help="Show cells and looks instead; starts nothing.")] = False,
    skip_infeasible: SkipInfeasible = False,
    certificate: Annotated[bool, typer.Option("--certificate/--no-certificate", help="As for compare.")] = True,
    keep_finished: KeepFinished = False,
    plugin: Plugins = None,
    occurrence: Occurrence = None,
) -> None:
    """Compares, and adds seeds until a winner or a tie is decided; clear losers get no further ones."""
    plugins = load_plugins(plugin)
    from jobs.driver.kinds.decision import load_decision

    planned = replace(load_decision(spec, max_seeds, occurrence), plugins=plugins)
    if show_plan:
        plan_tables.print_plan(planned)
        return plan_tables.print_looks(planned)
    require_feasible(planned, skip_infeasible)
    from jobs.driver.launch import launch

    outcome = launch(planned, out, certify=certificate, keep_finished=keep_finished)
    tables.print_ranking(outcome.document)
    raise typer.Exit(outcome.exit_code)


@app.command()
def finetune(
    spec: Spec, skip_infeasible: SkipInfeasible = False, plugin: Plugins = None, occurrence: Occurrence = None
) -> None:
    """Trains one backbone with the same engine, and exports it."""
    plugins = load_plugins(plugin)
    from orchestrator.planning.plan import load_finetune

    planned = replace(load_finetune(spec, occurrence), plugins=plugins)
    require_feasible(planned, skip_infeasible)
    from jobs.driver.launch import launch

    outcome = launch(planned, out, certify=False)
    tables.print_ranking(outcome.document)
    raise typer.Exit(outcome.exit_code)


@app.command()
def benchmark(
    spec: Spec,
    steps: Annotated[int, typer.Option(help="Steps to measure.")] = 20,
    warmup: Annotated[int, typer.Option(help="Steps before them, which do not count.")] = 5,
    occurrence: Annotated[
        str | None, typer.Option(metavar="NAME", help="A measurement to finish or show; else a new one.")
    ] = None,
    skip_infeasible: SkipInfeasible = False,
    plugin: Plugins = None,
) -> None:
    """Measures how fast the backbones of a comparison train, and what they need, whatever they learn."""
    plugins = load_plugins(plugin)
    from jobs.driver.kinds.benchmark import load_benchmark

    planned = replace(load_benchmark(spec, warmup, steps, occurrence), plugins=plugins)
    require_feasible(planned, skip_infeasible)
    from jobs.cli.benchmark_tables import print_benchmark
    from jobs.driver.launch import launch

    outcome = launch(planned, out, certify=False)
    print_benchmark(outcome.document, out)
    raise typer.Exit(outcome.exit_code)


@app.command()
def certify(
    backbone: Annotated[str, typer.Argument(metavar="ID", help="A registered id, or an hf: reference.")],
    attention: Annotated[str, typer.Option(help="The attention kernel that training would use.")] = "auto",
    adaptation: Annotated[str, typer.Option(help="full, last_layer, bias_only, lora or connector.")] = "full",
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers to shard over.")] = 2,
    gpu: Annotated[bool, typer.Option("--gpu", help="Give each worker a GPU.")] = False,
    storage: Storage = None,
    plugin: Plugins = None,
) -> None:
    """Proves that a backbone is integrated rightly: weights, parity, packing, prompt, tokens, rows, learning."""
    plugins = load_plugins(plugin)
    from backbones.registry import get_spec
    from jobs.driver.certification import certify as run_certification
    from jobs.driver.certification import make_placement, make_recipe, plan_certification

    recipe, placement = make_recipe(attention, adaptation), make_placement(workers, gpu)
    try:
        spec = get_spec(backbone)
    except ValueError as error:
        raise InputError(str(error)) from error
    planned = plan_certification(spec, recipe, placement, storage_folder(storage), plugins)
    run_certification(planned, out).require()


evaluate.register(app)
robots.register(app)
documents.register(app)
queue.register(app)
cluster.register(app)


def require_feasible(planned: "Plan", skip_infeasible: bool) -> None:
    """Raises SpecError for what cannot run here, before torch and Ray are imported."""
    from jobs.cluster.ray_cluster import find_missing_hardware, require_joinable_address
    from orchestrator.cell_job import find_missing_harness
    from orchestrator.environments.registry import find_missing_simulator

    require_joinable_address()
    problems = [] if skip_infeasible else list(planned.infeasible)
    if problems and not all(forecast.infeasible for forecast in planned.forecasts):
        hint = "; or run the others with --skip-infeasible"
        problems = [replace(problem, message=problem.message + hint) for problem in problems]
    if missing := find_missing_hardware(planned.job.placement):
        problems.append(planned.source.problem("placement.gpus_per_worker", missing))
    if planned.job.recipe.evaluate.tasks and (missing := find_missing_harness()):
        problems.append(planned.source.problem("recipe.evaluate.tasks", f"'recipe.evaluate.tasks': {missing}"))
    rollouts = planned.job.recipe.evaluate.rollouts
    if rollouts is not None and (missing := find_missing_simulator(rollouts.environment)):
        path = "recipe.evaluate.rollouts.environment"
        problems.append(planned.source.problem(path, f"'{path}': {missing}"))
    if problems:
        raise SpecError(tuple(problems))


def _exit_with(text: str, code: int) -> None:
    err.print(text, style="red" if err.is_terminal else None, highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)
