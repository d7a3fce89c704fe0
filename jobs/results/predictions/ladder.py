"""The comparisons of a ladder of budgets side by side, and how their scores would go on."""

from collections.abc import Sequence

from jobs.results.documents import Report, find_verdict
from jobs.results.predictions.documents import LadderBudget, LadderFacts, LadderPoint
from jobs.results.predictions.prediction import predict_scores

AHEAD = (2.0, 5.0, 10.0)  # times the largest budget


def ladder_facts(reports: Sequence[tuple[float, Report]], kind: str) -> LadderFacts:
    """From (amount, report), rising. A budget at which nothing was ranked is no part of the prediction."""
    budgets = [_budget(amount, report) for amount, report in reports]
    ranked = [(f"the report at {amount:g} {kind}", report) for amount, report in reports if report.get("ranking")]
    facts: LadderFacts = {
        "kind": kind,
        "budgets": budgets,
        "level": None,
        "predicted": {},
        "reasons": {},
        "sentence": "No run finished, so nothing can be predicted.",
    }
    if not ranked:
        return facts
    largest = max(one["amount"] for one in budgets if one["scores"])
    for times in AHEAD:
        found = predict_scores(ranked, times * largest)
        for one in found.backbones:
            if one.score is None or one.interval is None:
                facts["reasons"][one.backbone_id] = one.reason or ""
                continue
            point: LadderPoint = {"amount": found.at, "score": one.score, "interval": one.interval}
            facts["predicted"].setdefault(one.backbone_id, []).append(point)
        facts["sentence"] = found.sentence
        facts["level"] = found.level if facts["predicted"] else None
    return facts


def _budget(amount: float, report: Report) -> LadderBudget:
    verdict, cells = find_verdict(report), report["cells"]
    return {
        "amount": amount,
        "id": report["comparison"]["id"],
        "sentence": verdict["sentence"] if verdict else "No run finished, so there is no verdict.",
        "winner": verdict["winner"] if verdict else None,
        "cells": len(cells),
        "finished": sum(cell["status"] == "SUCCEEDED" for cell in cells),
        "scores": {row["backbone_id"]: row["seeds"] for row in report.get("ranking", [])},
    }
