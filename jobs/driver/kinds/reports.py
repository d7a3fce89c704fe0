"""The report of cells that were trained: what a comparison and a finetune leave behind."""

from collections.abc import Sequence
from pathlib import Path

from jobs.driver.kinds.kind import Conclusion, metric_name
from jobs.driver.preparation import find_preparation
from jobs.report.html import render_report
from jobs.results.documents import find_verdict
from jobs.results.finished import build_document
from jobs.results.held_out.of_plan import describe_items
from jobs.results.history import compare_with_history
from jobs.results.judging.metrics import METRICS
from orchestrator.identity import backbone_identity, backbone_slug
from orchestrator.planning.plan import Plan
from orchestrator.results import CellResult, write_json


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
    verdict = find_verdict(document)
    name = METRICS["bits_per_byte" if verdict is None else verdict.get("metric", "bits_per_byte")].tracked_as
    return Conclusion(
        document=document,
        files=(plan.files.report_page, plan.files.report, *certificates),
        summary={metric_name(name, row["backbone_id"]): row["score"] for row in document["ranking"]},
        verdict=str(document["verdict"].get("sentence", "")),
        sentences=() if history is None else tuple(history["sentences"]),
    )
