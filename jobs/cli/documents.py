"""`backbone report, diff, predict, simulate, schema`: what is read, drawn or printed without training."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import tables
from jobs.cli.options import Plugins, Storage, load_plugins, storage_folder
from orchestrator import layout
from orchestrator.errors import InputError

UNFINISHED = ("QUEUED", "RUNNING", "PREEMPTED", "CANCELLED")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    for command in (report, diff, predict, simulate, schema):
        app.command()(command)


def report(
    job_id: Annotated[
        str, typer.Argument(metavar="ID", help="A job's folder <name>-<hash>, or its name: then the newest of them.")
    ],
    storage: Storage = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown for a pull request instead.")] = False,
) -> None:
    """Prints a finished job's ranking and verdict, and writes its report anew from report.json."""
    from jobs.report.html import render_markdown, render_report
    from jobs.results.documents import find_verdict, load_report

    root = storage_folder(storage)
    known = {job.path.name: job for job in layout.Storage(root).reports()}
    named = [job for folder, job in known.items() if job_id in (folder, folder.rpartition("-")[0])]
    if not named:
        for begun in layout.Storage(root).begun():
            if job_id in (begun.path.name, begun.path.name.rpartition("-")[0]):
                raise InputError(
                    f"{begun.path.name} has no report yet, it writes one when it ends; run the command that started it "
                    f"again, which goes on from what is finished. Its spec is kept in {begun.spec}"
                )
        raise InputError(f"no report {job_id!r} in {root}; there are: {', '.join(known) or 'none'}")
    job = known.get(job_id) or max(named, key=lambda one: one.report.stat().st_mtime)
    document = load_report(job.report)
    if markdown:
        print(render_markdown(document))
        return
    job.report_page.write_text(render_report(document), encoding="utf-8")
    tables.print_ranking(document)
    if (verdict := find_verdict(document)) is not None:
        tables.out.print(verdict["sentence"], highlight=False, markup=False, soft_wrap=True)
    left = [cell for cell in document["cells"] if cell["status"] in UNFINISHED]
    if left:
        number = f"{len(left)} of {len(document['cells'])} runs are not finished; to go on: "
        tables.out.print(number + document["comparison"]["command"], highlight=False, markup=False, soft_wrap=True)
    tables.out.print(f"report: {job.report_page}", highlight=False, markup=False, soft_wrap=True)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A report.json, a job's folder, its id, or a spec file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same of another one; what changed is told from A to B.")],
    storage: Storage = None,
    as_json: AsJson = False,
    plugin: Plugins = None,
) -> None:
    """Says what changed between two comparisons, and whether their scores are comparable.

    Exit code 0: nothing differs; 1: something does; 2: one of them cannot be read.
    """
    load_plugins(plugin)
    from jobs.cli.difference_tables import print_difference
    from jobs.results.differences.comparability import find_difference
    from jobs.results.differences.stored import load_side

    root = storage_folder(storage)
    found = find_difference(load_side(a, root), load_side(b, root))
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print_difference(found)
    raise typer.Exit(0 if found.same else 1)


def predict(
    reports: Annotated[
        list[str],
        typer.Argument(metavar="REPORT...", help="A report.json, a job's folder or its id."),
    ],
    at: Annotated[float, typer.Option(metavar="AMOUNT", help="The budget asked for, in the unit of the reports'.")],
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Predicts the scores at a larger budget, and whether the present leader would still lead.

    Exit code 1: nothing can be predicted, and what would help is said; 2: a report cannot be read or does not belong.
    """
    from jobs.cli.prediction_table import print_prediction
    from jobs.results.differences.stored import load_given_report
    from jobs.results.predictions.power_law import FARTHEST, FEWEST_BUDGETS, LEAST_SPAN
    from jobs.results.predictions.prediction import predict_scores

    root = storage_folder(storage)
    found = predict_scores([(given, load_given_report(given, root)) for given in reports], at)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print_prediction(found)
    if all(one.score is None for one in found.backbones):
        typer.echo(
            f"error: nothing can be predicted; run the same spec at {FEWEST_BUDGETS} budgets or more, the largest at "
            f"least {LEAST_SPAN:g} times the smallest, give all their reports, and ask for at most {FARTHEST:g} times "
            "the largest",
            err=True,
        )
        raise typer.Exit(1)


def simulate(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="JSON lines, a job each; docs/queue.md has the keys.")],
    cluster: Annotated[Path, typer.Option(metavar="CLUSTER", help="The described cluster, YAML.")],
    policy: Annotated[str, typer.Option(help="Whose schedule to show: backbone, fifo or fifo-backfill.")] = "backbone",
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with a Gantt picture.")] = None,
) -> None:
    """Plays a trace of jobs on a described cluster by the policy of the queue."""
    from jobs.simulation.figures import run_simulation

    run_simulation(trace, cluster, policy, as_json, html, tables.out)


def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="comparison or finetune")] = "comparison",
    of: Annotated[str | None, typer.Option(metavar="NAME", help="A document's instead, such as report.")] = None,
) -> None:
    """Prints the JSON schema of a spec file, or of a document that the commands write."""
    from jobs.cli.schemas import document_schema, spec_schema

    print(json.dumps(spec_schema(kind) if of is None else document_schema(of), indent=2))
