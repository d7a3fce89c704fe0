"""The report of cells that were trained: what a comparison and a finetune leave behind."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jobs.driver.kinds.kind import Conclusion, metric_name
from jobs.driver.preparation import find_preparation
from jobs.report.html import render_report
from jobs.results.documents import History, find_verdict, metric_of
from jobs.results.finished import build_document
from jobs.results.held_out.of_plan import describe_items
from jobs.results.history import compare_with_history
from jobs.results.judging.metrics import METRICS
from orchestrator.identity import backbone_identity, backbone_slug
from orchestrator.planning.plan import Plan
from orchestrator.results import CellResult, write_json
from orchestrator.tracking.run import Point


def write_report(
    plan: Plan, results: Sequence[CellResult], command: str, export: Path | None, prepared_for: Plan | None = None
) -> Conclusion:
    """Writes the report, the facts behind it and the certificates. `export` is the folder of a finished export.

    `prepared_for`: the plan whose job prepared the data, where it is another.
    """
    preparation = find_preparation(prepared_for or plan)
    document = build_document(plan, results, {} if preparation is None else preparation.facts, command, export)
    if (held_out := describe_items(plan, results, document["ranking"])) is not None:
        document["held_out"] = held_out
    document["history"] = history = compare_with_history(plan, document)
    write_json(plan.files.report, document)
    plan.files.report_page.write_text(render_report(document), encoding="utf-8")
    certificates = []
    for spec in plan.backbones:
        if (certificate := document["certificates"].get(spec.backbone_id)) is not None:
            certificates.append(plan.files.certificate(backbone_slug(spec), backbone_identity(spec)))
            write_json(certificates[-1], certificate)
    name = METRICS[metric_of(find_verdict(document))].tracked_as
    return Conclusion(
        document=document,
        files=(plan.files.report_page, plan.files.report, *certificates),
        summary={metric_name(name, row["backbone_id"]): row["score"] for row in document["ranking"]},
        verdict=str(document["verdict"].get("sentence", "")),
        sentences=() if history is None else tuple(history["sentences"]),
        series={} if history is None else history_lines(history),
    )


def history_lines(history: History) -> dict[str, list[Point]]:
    """Each quantity of each backbone over the earlier firings and this one, for a chart in MLflow."""
    lines = {}
    for row in history["rows"]:
        values = [(one["tick"], one["value"]) for one in row["earlier"]]
        if row["value"] is not None:
            values.append((history["tick"], row["value"]))
        name = metric_name(f"history/{row['quantity']}", row["backbone_id"])
        lines[name] = [Point(step, _milliseconds(tick), value) for step, (tick, value) in enumerate(values, 1)]
    return lines


def _milliseconds(tick: str) -> int:
    """Of a firing's time in UTC, with or without seconds."""
    return int(datetime.fromisoformat(tick).timestamp() * 1000)
