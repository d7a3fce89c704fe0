"""From cell results to the facts of `report.json`."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic_core import to_jsonable_python

from jobs.driver.preparation import find_preparation
from jobs.formats import NOT_AVAILABLE
from jobs.report.html import render_report
from jobs.results.documents import (
    CellOutcome,
    DataFacts,
    Environment,
    Facts,
    PreparedFacts,
    Report,
    TrainedCell,
    Verdict,
)
from jobs.results.history import compare_with_history
from jobs.results.paired_tests import CellScores
from jobs.results.verdict import judge
from orchestrator.certificate.record import find_cell_certificate
from orchestrator.identity import backbone_identity, backbone_slug
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Plan
from orchestrator.results import CellResult, CellStatus, Measurement, write_json
from orchestrator.spec_files.spec import Comparison
from orchestrator.tracking.spool import read_spool
from orchestrator.training.measurement import ItemScores, load_item_scores

CURVE_POINTS = 200


def build_document(
    plan: Plan, results: Sequence[CellResult], parity: PreparedFacts, command: str, export: Path | None
) -> Report:
    """Everything the report shows, as plain data. `export` is the folder of a finished export."""
    verdict = _judge(plan, results) if isinstance(plan.job, Comparison) else None
    measured = [result for result in results if result.measurement is not None]
    first = measured[0].measurement if measured else None
    return {
        "format": 1,
        "comparison": {
            "name": plan.job.name,
            "id": plan.job_id,
            "kind": plan.kind,
            "spec": plan.job.model_dump(mode="json", by_alias=True),
            "spec_yaml": plan.source.text,
            "command": command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "export": None if export is None else str(export),
        },
        "environment": environment(first),
        "data": _data_facts(plan, parity),
        "certificates": _certificates(results) if isinstance(plan.job, Comparison) else {},
        "cells": [_cell_facts(result) for result in results],
        "ranking": [] if verdict is None else verdict.pop("ranking", []),
        "verdict": {} if verdict is None else verdict,
    }


def write_report(
    plan: Plan, results: Sequence[CellResult], command: str, export: Path | None
) -> tuple[Report, tuple[Path, ...]]:
    """Writes the report, the facts behind it and the certificates; returns the facts and the files, the page first."""
    preparation = find_preparation(plan)
    document = build_document(plan, results, {} if preparation is None else preparation.facts, command, export)
    document["history"] = compare_with_history(plan, document)
    page, facts = plan.files.report_page, plan.files.report
    write_json(facts, document)
    page.write_text(render_report(document), encoding="utf-8")
    return document, (page, facts, *_write_certificates(plan, document))


def _write_certificates(plan: Plan, document: Report) -> list[Path]:
    """Each candidate's certificate as a file of its own, beside the report and for MLflow."""
    files = []
    for spec in plan.backbones:
        certificate = document["certificates"].get(spec.backbone_id)
        if certificate is not None:
            files.append(plan.files.certificate(backbone_slug(spec), backbone_identity(spec)))
            write_json(files[-1], certificate)
    return files


def _judge(plan: Plan, results: Sequence[CellResult]) -> Verdict:
    """The verdict over the items that every finished cell scored."""
    assert isinstance(plan.job, Comparison)
    finished = [result for result in results if result.status is CellStatus.SUCCEEDED]
    scores = {result.cell_id: load_item_scores(Path(result.folder)) for result in finished}
    common = _common_items(list(scores.values()))
    examples = plan.validation.examples
    cells = [
        CellScores(result.backbone_id, result.seed, _at(scores[result.cell_id], common).nats) for result in finished
    ]
    return judge(
        cells,
        np.array([examples[item].learnable_bytes for item in common], np.int64),
        [examples[item].group for item in common],
        alpha=plan.job.verdict.alpha,
        margin=plan.job.verdict.margin,
    )


def _common_items(scores: list[ItemScores]) -> np.ndarray:
    if not scores:
        return np.array([], np.int64)
    common = scores[0].items
    for other in scores[1:]:
        common = np.intersect1d(common, other.items)
    return common


def _at(scores: ItemScores, items: np.ndarray) -> ItemScores:
    places = np.searchsorted(scores.items, items)
    return ItemScores(items, scores.nats[places], scores.tokens[places], scores.bytes[places])


def _data_facts(plan: Plan, parity: PreparedFacts) -> DataFacts:
    return {
        "train": plan.train.reference,
        "validation": plan.validation.reference,
        "train_examples": len(plan.train.examples),
        "validation_examples": len(plan.validation.examples),
        "train_bytes": plan.train.learnable_bytes,
        "validation_bytes": plan.validation.learnable_bytes,
        "train_hash": plan.train.digest,
        "validation_hash": plan.validation.digest,
        "parity": plan.job.recipe.data.parity,
        **parity,
    }


def _certificates(results: Sequence[CellResult]) -> dict[str, Facts | None]:
    """By backbone, the certificate that its cells ran under; None where one of them ran without."""
    ran = [result for result in results if result.status in (CellStatus.SUCCEEDED, CellStatus.UNCERTIFIED)]
    held = [(result.backbone_id, find_cell_certificate(Path(result.folder))) for result in ran]
    without = {backbone_id for backbone_id, certificate in held if certificate is None}
    return {backbone_id: None if backbone_id in without else certificate for backbone_id, certificate in held}


def environment(first: Measurement | None) -> Environment:
    """Where a job ran: this process's Python and load, and what the workers of a measurement ran on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": first.contract["packages"] if first else {},
        "hardware": f"{first.data['workers']} x {first.data['device']}" if first else NOT_AVAILABLE,
        "load_average": os.getloadavg()[0],
    }


def outcome(result: CellResult) -> CellOutcome:
    """What became of a cell, whatever it measured."""
    return {
        "cell_id": result.cell_id,
        "backbone_id": result.backbone_id,
        "seed": result.seed,
        "status": str(result.status),
        "attempts": result.attempts,
        "mlflow_run_id": result.mlflow_run_id,
        "failure": result.failure,
        "restarts": result.restarts,
        "folder": result.folder,
    }


def _cell_facts(result: CellResult) -> TrainedCell:
    measurement = result.measurement
    return {
        **outcome(result),
        "metrics": measurement.metrics if measurement else {},
        "evaluations": to_jsonable_python(measurement.evaluations) if measurement else [],
        "loss_curve": _loss_curve(result) if measurement else [],
        "contract": measurement.contract if measurement else {},
    }


def _loss_curve(result: CellResult) -> list[tuple[float, float | None]]:
    steps = [entry.fields for entry in read_spool(CellFolder(Path(result.folder)).spool) if entry.kind == "step"]
    every = max(1, len(steps) // CURVE_POINTS)
    return [(step["step"], step["loss"]) for step in steps[::every]]
