"""From cell results to the facts of `report.json`."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from pydantic_core import to_jsonable_python

from jobs.formats import NOT_AVAILABLE, listed
from jobs.results.agreement import find_agreement
from jobs.results.costs.spent import Rate, attempt_times, device_of, find_rate, spent, total
from jobs.results.documents import (
    REPORT_FORMAT,
    AdoptionFacts,
    CellOutcome,
    DataFacts,
    Environment,
    Facts,
    PreparedFacts,
    Report,
    TrainedCell,
    TuningFacts,
    Verdict,
)
from jobs.results.judging.choice_noise import Choice
from jobs.results.judging.constraints import RuledOut, find_ruled_out, with_ruled_out
from jobs.results.judging.looks import find_look, keep_look, load_looks, new_record, sentences_of, what_is_judged
from jobs.results.judging.metrics import judge_by
from jobs.results.judging.noise_floor import add_noise_floor
from jobs.results.rollouts import rollout_facts, success_curve
from jobs.results.tuning import choice_of, judged_plan, notes_of, sentence_of, tuning_facts
from orchestrator.certificate.record import find_cell_certificate
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Plan
from orchestrator.results import Adoption, CellResult, CellStatus, Measurement, find_adoption
from orchestrator.spec_files.spec import Decision, Placement, SelfComparison, VerdictRule
from orchestrator.tracking.spool import EntryKind, read_spool

CURVE_POINTS = 200


def build_document(
    plan: Plan, results: Sequence[CellResult], parity: PreparedFacts, command: str, export: Path | None
) -> Report:
    """Everything the report shows, as plain data. `export` is the folder of a finished export."""
    rule = plan.job.rule
    tuning = tuning_facts(plan, results)
    verdict = None if rule is None else judge_cells(plan, rule, results)
    trial_ids = plan.trials
    rollouts = rollout_facts(plan, results)
    if rollouts is not None and rule is not None and verdict is not None and not isinstance(plan.job, SelfComparison):
        finished, _ = _judged_cells(plan, rule, results)
        if (found := find_agreement(plan, rule, verdict, finished, choice_of(plan, results))) is not None:
            rollouts["agreement"] = found
    tried = [result for result in results if result.cell_id in trial_ids]
    results = [result for result in results if result.cell_id not in trial_ids]
    measured = [result for result in results if result.measurement is not None]
    first = measured[0].measurement if measured else None
    rate, placement = find_rate(plan.job), plan.job.placement
    cells = [_cell_facts(result, placement, rate) for result in results]
    trials = [(one.backbone_id, spent(attempt_times(Path(one.folder)), placement, rate)) for one in tried]
    document: Report = {
        "format": REPORT_FORMAT,
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
        "data": data_facts(plan, parity),
        "certificates": {} if rule is None else _certificates(results),
        "cells": cells,
        "ranking": [] if verdict is None else verdict.pop("ranking", []),
        "verdict": {} if verdict is None else verdict,
        "costs": total(cells, device_of(placement), rate, trials),
    }
    if tuning is not None:
        document["tuning"] = tuning
    if rollouts is not None:
        document["rollouts"] = rollouts
    return document


def judge_cells(plan: Plan, rule: VerdictRule, results: Sequence[CellResult]) -> Verdict:
    """The verdict over the items that every finished cell scored, without backbones that a constraint rules out.

    Its look is kept in the job's folder.
    """
    finished, out = _judged_cells(plan, rule, results)
    tuning = tuning_facts(plan, results)
    choice = None if isinstance(plan.job, SelfComparison) else choice_of(plan, results)  # one choice for both labels
    return with_ruled_out(_judge_look(plan, rule, finished, tuning, choice), out)


def _judged_cells(plan: Plan, rule: VerdictRule, results: Sequence[CellResult]) -> tuple[list[CellResult], RuledOut]:
    """The finished cells that a verdict is over, and which backbones a constraint rules out, with the reasons."""
    chosen = {cell.cell_id for cell in judged_plan(plan, results).cells}
    cells = [result for result in results if result.cell_id in chosen]
    out = {} if isinstance(plan.job, SelfComparison) else find_ruled_out(rule.constraints, plan.backbones, cells)
    return [one for one in cells if one.status is CellStatus.SUCCEEDED and one.backbone_id not in out], out


def _judge_look(
    plan: Plan,
    rule: VerdictRule,
    finished: Sequence[CellResult],
    tuning: TuningFacts | None,
    choice: Choice | None,
) -> Verdict:
    ids: dict[str, list[str]] = {}
    for result in finished:
        ids.setdefault(result.backbone_id, []).append(result.cell_id)
    judged = what_is_judged(ids, rule.metric, rule.max_seeds, rule.alpha)
    if not judged.can_claim:
        return _judge(plan, rule, finished, rule.alpha, None)
    look = find_look(judged, load_looks(plan))
    verdict = _judge(plan, rule, finished, look["alpha"], choice)
    if verdict["outcome"] == "no verdict":
        return verdict
    keep_look(plan, new_record(judged, look, verdict["outcome"], verdict["winner"]))
    verdict["look"] = look
    verdict["notes"] = [
        *sentences_of(look),
        *(_stopped(judged.seeds) if isinstance(plan.job, Decision) else ()),
        *verdict["notes"],
    ]
    if tuning is not None:
        verdict["notes"] += notes_of(tuning)
    if isinstance(plan.job, SelfComparison):
        add_noise_floor(verdict)
    elif tuning is not None:
        verdict["sentence"] += sentence_of(tuning)
    else:
        rate = plan.job.recipe.optimizer.learning_rate
        verdict["sentence"] += f" Untuned: each at one learning rate, {rate:g}."
    return verdict


def _stopped(seeds: Mapping[str, int]) -> list[str]:
    """Who got no further seeds while a decision went on."""
    most = max(seeds.values())
    fewer = [f"{backbone_id} (after {count})" for backbone_id, count in seeds.items() if count < most]
    return fewer and [f"No further seeds, since significantly worse than the best at that look: {', '.join(fewer)}."]


def _judge(
    plan: Plan, rule: VerdictRule, finished: Sequence[CellResult], alpha: float, choice: Choice | None
) -> Verdict:
    verdict = judge_by(rule.metric, plan, rule, finished, alpha, choice)
    verdict["metric"] = rule.metric
    verdict["notes"] += _adopted(finished)
    for row in verdict["ranking"] if rule.metric == "bits_per_byte" else ():
        row["val_bits_per_byte"] = row["score"]
    return verdict


def _adopted(finished: Sequence[CellResult]) -> list[str]:
    """In what cells that were taken over from earlier comparisons differ from those that were not."""
    adoptions = [(result.backbone_id, find_adoption(Path(result.folder))) for result in finished]
    groups: dict[Adoption, dict[str, None]] = {}
    for backbone_id, adoption in adoptions:
        if adoption is not None:
            groups.setdefault(replace(adoption, adopted_from=""), {})[backbone_id] = None
    return [note for adoption, names in groups.items() for note in _differences(adoption, [*names])]


def _differences(adoption: Adoption, names: list[str]) -> Iterator[str]:
    counts = ((adoption.learned_more, "more"), (adoption.learned_fewer, "fewer"))
    if parts := [f"{count} training example{'' if count == 1 else 's'} {which}" for count, which in counts if count]:
        yield (
            f"{listed(names)} learned from {' and '.join(parts)} than this comparison keeps: finished before and kept, "
            "on request."
        )
    if count := adoption.scored_more:
        items = "1 held-out item" if count == 1 else f"{count} held-out items"
        yield (
            f"Finished cells of {listed(names)} were also scored on {items} that another tokenizer cannot give back; "
            "the verdict leaves them out, the curves and tables of single runs do not."
        )


def data_facts(plan: Plan, parity: PreparedFacts) -> DataFacts:
    """The data of a plan, and what its preparation counted."""
    return {
        "train": plan.train.reference,
        "validation": plan.validation.reference,
        "train_examples": len(plan.train),
        "validation_examples": len(plan.validation),
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


def _cell_facts(result: CellResult, placement: Placement, rate: Rate | None) -> TrainedCell:
    measurement = result.measurement
    facts: TrainedCell = {
        **outcome(result),  # type: ignore[typeddict-item]  # which has no adoption
        "metrics": measurement.metrics if measurement else {},
        "evaluations": to_jsonable_python(measurement.evaluations) if measurement else [],
        "loss_curve": _loss_curve(result) if measurement else [],
        "contract": measurement.contract if measurement else {},
        "spent": spent(attempt_times(Path(result.folder)), placement, rate),
    }
    if len(succeeded := success_curve(result)) > 1:
        facts["success_curve"] = succeeded
    adoption = find_adoption(Path(result.folder)) if result.status is CellStatus.SUCCEEDED else None
    if adoption is not None:
        facts["adoption"] = cast(AdoptionFacts, asdict(adoption))
    return facts


def _loss_curve(result: CellResult) -> list[tuple[float, float | None]]:
    steps = [
        entry.fields for entry in read_spool(CellFolder(Path(result.folder)).spool) if entry.kind is EntryKind.STEP
    ]
    every = max(1, len(steps) // CURVE_POINTS)
    return [(step["step"], step["loss"]) for step in steps[::every]]
