"""Scores at a larger budget: a known law is recovered, intervals cover the truth, and too little is said to be so."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from report_documents import NAMES, comparison_document
from typer.testing import CliRunner

from jobs.cli.app import app
from jobs.cli.schemas import document_schema
from jobs.results.predictions.power_law import Unpredictable, extrapolate
from jobs.results.predictions.prediction import Prediction, predict_scores
from orchestrator.errors import InputError

LADDER = (1e8, 2e8, 4e8, 8e8, 1.6e9)
Law = tuple[float, float, float]  # c, a, p of c + a (b / 1e8)^-p


def at_budget(law: Law, budget: Any) -> Any:
    floor, drop, exponent = law
    return floor + drop * (budget / 1e8) ** -exponent


@pytest.mark.parametrize("exponent", [0.05, 0.2, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("far", [2.0, 10.0])
def test_a_known_law_is_recovered_exactly(exponent: float, far: float) -> None:
    law = (0.7, 0.5, exponent)
    budgets = np.array(LADDER)
    drawn = extrapolate(budgets, at_budget(law, budgets), LADDER[-1] * far, np.random.default_rng(0))
    assert isinstance(drawn, np.ndarray)
    truth = at_budget(law, LADDER[-1] * far)
    assert np.quantile(drawn, [0.025, 0.5, 0.975]) == pytest.approx([truth] * 3, abs=3e-4)


def test_the_unit_of_a_budget_changes_nothing() -> None:
    budgets, scores = np.array(LADDER), at_budget((0.7, 0.5, 0.4), np.array(LADDER))
    scores += np.array([0.001, -0.002, 0, 0.002, -0.001])
    one = extrapolate(budgets, scores, 4e9, np.random.default_rng(0))
    other = extrapolate(budgets / 1e6, scores, 4e3, np.random.default_rng(0))
    assert isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
    assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("law", [(0.7, 0.5, 0.1), (0.7, 0.5, 0.3), (0.7, 0.5, 1.0), (0.3, 0.9, 0.05)])
def test_an_interval_of_95_per_cent_covers_the_truth_about_as_often(law: Law) -> None:
    rng = np.random.default_rng(7)
    budgets = np.repeat(LADDER[:4], 2)
    at, hits, tries = 4 * LADDER[3], 0, 120
    for _ in range(tries):
        drawn = extrapolate(budgets, at_budget(law, budgets) + 0.005 * rng.normal(size=8), at, rng)
        assert isinstance(drawn, np.ndarray)
        low, high = np.quantile(drawn, [0.025, 0.975])
        hits += low <= at_budget(law, at) <= high
    assert hits / tries >= 0.88  # 0.95 less three and a half standard errors


@pytest.mark.parametrize(
    ("budgets", "at", "why"),
    [
        (LADDER[:3], 2e9, "3 budgets, at least 4 are needed"),
        ((1e8, 1e8, 1e8, 1e8), 2e9, "1 budget, at least 4 are needed"),
        ((1e8, 1.1e8, 1.2e8, 1.3e8), 2e9, "1.3 times the smallest"),
        (LADDER, 1.6e9, "more than 1 and at most 10"),
        (LADDER, 1e11, "62.5 times the largest"),
        (LADDER, float("nan"), "nan times the largest"),
    ],
)
def test_too_few_too_near_and_too_far_are_not_predicted(budgets: Any, at: float, why: str) -> None:
    found = extrapolate(np.array(budgets), np.linspace(1, 0.9, len(budgets)), at, np.random.default_rng(0))
    assert isinstance(found, Unpredictable) and why in found.reason


def test_scores_that_rise_follow_no_such_law() -> None:
    found = extrapolate(np.array(LADDER), np.array([0.80, 0.82, 0.84, 0.86, 0.88]), 3e9, np.random.default_rng(0))
    assert isinstance(found, Unpredictable) and "do not fall" in found.reason


def report(amount: float, laws: Mapping[str, Law], seeds: int = 3, noise: float = 0.001) -> dict[str, Any]:
    """Of a comparison with this budget whose backbones follow these laws."""
    document = comparison_document([*laws], seeds)
    document["comparison"]["spec"] = {
        "verdict": {"alpha": 0.05, "margin": 0.005},
        "recipe": {"budget": {"kind": "bytes", "amount": amount}, "optimizer": {"schedule": "cosine"}},
    }
    rng = np.random.default_rng(round(amount))
    for row in document["ranking"]:
        truth = at_budget(laws[row["backbone_id"]], amount)
        row["seeds"] = {seed: truth + noise * rng.normal() for seed in row["seeds"]}
    return document


CROSSING: dict[str, Law] = {NAMES[0]: (0.80, 0.3, 0.9), NAMES[1]: (0.70, 0.45, 0.35)}  # the second leads in the end


def predicted(documents: list[dict[str, Any]], at: float) -> Prediction:
    found = predict_scores([(f"{place}.json", one) for place, one in enumerate(documents)], at)  # type: ignore[misc]
    Draft202012Validator(document_schema("prediction")).validate(json.loads(json.dumps(asdict(found))))
    return found


def test_a_leader_that_will_be_overtaken_is_told_from_one_that_stays() -> None:
    documents = [report(amount, CROSSING) for amount in (1e8, 2e8, 4e8, 8e8)]
    found = predicted([documents[2], documents[0], documents[3], documents[1]], 8e9)
    assert found.leader == NAMES[0] and found.trained == (1e8, 2e8, 4e8, 8e8)
    assert found.leader_stays is not None and found.leader_stays < 0.2
    begin = "At 8e9 bytes, 10 times the largest budget trained, the present leader, "
    assert found.sentence.startswith(begin + NAMES[0])
    assert f"; {NAMES[1]} would lead with" in found.sentence
    for one in found.backbones:
        assert one.interval is not None
        assert one.interval[0] <= at_budget(CROSSING[one.backbone_id], 8e9) <= one.interval[1]
    assert sum(one.first or 0.0 for one in found.backbones) == pytest.approx(1)

    apart = {NAMES[0]: (0.5, 0.3, 0.5), NAMES[1]: (0.7, 0.3, 0.5)}
    stays = predicted([report(amount, apart) for amount in (1e8, 2e8, 4e8, 8e8)], 8e9)
    assert stays.leader_stays is not None and stays.leader_stays > 0.99
    assert stays.sentence.replace("\N{NO-BREAK SPACE}", " ").endswith("with a probability of more than 99 %.")


def test_equal_backbones_lead_as_often() -> None:
    alike = {NAMES[0]: (0.7, 0.4, 0.4), NAMES[1]: (0.7, 0.4, 0.4)}
    stays = [
        predicted([report(amount + shift, alike) for amount in (1e8, 2e8, 4e8, 8e8)], 4e9).leader_stays
        for shift in range(12)
    ]
    assert 0.3 < np.mean([one for one in stays if one is not None]) < 0.8


def test_one_report_whose_learning_rate_falls_predicts_nothing_and_says_why() -> None:
    found = predicted([report(1e9, CROSSING)], 2e9)
    assert found.leader_stays is None
    why = "one report, whose learning rate falls (cosine); give reports of more budgets"
    assert found.sentence.endswith(f"it cannot be predicted who leads: {why}.")
    assert {one.reason for one in found.backbones} == {why}


def constant(seeds: int = 3) -> dict[str, Any]:
    """One report at a constant rate; runs lie above each other by their seed, and each point has noise of its own."""
    document = report(1e9, CROSSING, seeds)
    document["comparison"]["spec"]["recipe"]["optimizer"]["schedule"] = "constant"
    rng = np.random.default_rng(3)
    for cell in document["cells"]:
        shift, row = 0.002 * rng.normal(), NAMES.index(cell["backbone_id"])
        for point in cell["evaluations"]:
            truth = at_budget(CROSSING[cell["backbone_id"]], max(1e9 * point["progress"], 1e6))
            point["val_bits_per_byte"] = truth + shift + 0.0003 * rng.normal()
        document["ranking"][row]["seeds"][str(cell["seed"])] = cell["evaluations"][-1]["val_bits_per_byte"]
    return document


def test_one_report_at_a_constant_rate_predicts_by_the_curves_of_its_runs() -> None:
    found = predicted([constant()], 4e9)
    for one in found.backbones:
        assert one.interval is not None and one.score is not None
        assert one.interval[0] <= at_budget(CROSSING[one.backbone_id], 4e9) <= one.interval[1]
        assert one.interval[1] - one.interval[0] < 0.05
    assert "one seed" in str(predicted([constant(seeds=1)], 4e9).backbones[0].reason)


def test_by_another_metric_runs_have_no_curve() -> None:
    document = constant()
    document["verdict"]["metric"] = "item_bits_per_byte"
    assert "not scored by item_bits_per_byte on their way" in predicted([document], 4e9).sentence


def test_a_backbone_that_some_reports_lack_leaves_the_question_open() -> None:
    documents = [report(amount, CROSSING) for amount in (1e8, 2e8, 4e8, 8e8)]
    for document in documents[:2]:
        document["ranking"] = [row for row in document["ranking"] if row["backbone_id"] != NAMES[1]]
    found = predicted(documents, 4e9)
    assert found.leader_stays is None and f"{NAMES[1]} (2 budgets, at least 4 are needed)" in found.sentence
    assert found.backbones[0].score is not None


def test_reports_that_differ_in_more_than_their_budget_are_refused() -> None:
    first, second = report(1e8, CROSSING), report(2e8, CROSSING)
    second["data"]["validation_hash"] = "another"
    with pytest.raises(InputError, match=r"1\.json differs from 0\.json in more than .* other held-out data"):
        predict_scores([("0.json", first), ("1.json", second)], 1e9)  # type: ignore[list-item]
    unjudged = copy.deepcopy(first)
    unjudged["ranking"] = []
    with pytest.raises(InputError, match=r"0\.json ranks no backbones"):
        predict_scores([("0.json", unjudged)], 1e9)  # type: ignore[list-item]


def test_two_rulers_make_no_ladder_and_one_backbone_no_race() -> None:
    documents = [report(amount, CROSSING) for amount in (1e8, 2e8, 4e8, 8e8)]
    documents[1]["verdict"]["metric"] = "item_bits_per_byte"
    with pytest.raises(InputError, match=r"1\.json is judged by item_bits_per_byte, 0\.json by bits_per_byte"):
        predicted(documents, 4e9)
    alone = predicted([report(amount, {NAMES[0]: CROSSING[NAMES[0]]}) for amount in (1e8, 2e8, 4e8, 8e8)], 4e9)
    assert alone.leader_stays is None and alone.sentence.endswith("; nobody else was ranked.")


def test_the_command_prints_the_prediction(tmp_path: Path) -> None:
    files = []
    for amount in (1e8, 2e8, 4e8, 8e8):
        files.append(str(tmp_path / f"{amount:g}.json"))
        Path(files[-1]).write_text(json.dumps(report(amount, CROSSING)), encoding="utf-8")
    printed = CliRunner().invoke(app, ["predict", *files, "--at", "3.2e9"])
    assert printed.exit_code == 0, printed.output
    assert "95 % interval" in printed.output.replace("\N{NO-BREAK SPACE}", " ")
    assert "Trained: 1e8, 2e8, 4e8, 8e8 bytes." in printed.output
    document = json.loads(CliRunner().invoke(app, ["predict", *files, "--at", "3.2e9", "--json"]).output)
    assert (document["leader"], document["at"]) == (NAMES[0], 3.2e9)
    alone = CliRunner().invoke(app, ["predict", files[0], "--at", "3.2e9"])
    assert alone.exit_code == 1 and "cannot be predicted" in alone.output
    assert "run the same spec at 4 budgets or more, the largest at least 4 times the smallest" in alone.stderr
