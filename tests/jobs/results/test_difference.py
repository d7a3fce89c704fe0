"""What changed between two comparisons: nothing against itself, the mirror image when swapped, and what it means."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from report_documents import NAMES, comparison_document, failed, finetune_document, finished

from jobs.cli.schemas import document_schema
from jobs.results.differences.comparability import Difference, find_difference
from jobs.results.differences.sides import side_of_report

STORED = json.loads((Path(__file__).parent / "stored" / "report.json").read_text(encoding="utf-8"))
Document = dict[str, Any]
Change = Callable[[Document], None]


def diff(a: Document, b: Document) -> Difference:
    return find_difference(side_of_report(a, "a.json"), side_of_report(b, "b.json"))  # type: ignore[arg-type]


def changed(*changes: Change, document: Document = STORED) -> Document:
    other = copy.deepcopy(document)
    for change in changes:
        change(other)
    return other


def in_data(**facts: Any) -> Change:
    return lambda document: document["data"].update(facts)


def in_budget(**keys: Any) -> Change:
    return lambda document: recipe(document)["budget"].update(keys)


def recipe(document: Document) -> dict[str, Any]:
    return document["comparison"]["spec"]["recipe"]


def twice_the_budget(document: Document) -> None:
    recipe(document)["budget"]["amount"] *= 2


def other_held_out_data(document: Document) -> None:
    recipe(document)["data"]["validation"] = "validation.jsonl"
    document["data"] |= {"validation": "validation.jsonl", "validation_hash": "0" * 32, "scored": 300}


def fewer_kept(document: Document) -> None:
    document["data"]["kept"] -= 71


def another_rate(document: Document) -> None:
    recipe(document)["optimizer"]["learning_rate"] = 1e-4


def other_weights(document: Document) -> None:
    document["cells"][0]["contract"]["weights_digest"] = "0" * 64


def newer_torch(document: Document) -> None:
    document["environment"]["packages"]["torch"] = "2.14.0"


def more_workers(document: Document) -> None:
    document["comparison"]["spec"]["placement"]["workers"] = 4


def another_name(document: Document) -> None:
    document["comparison"]["spec"] |= {"name": "again", "storage": "/shared"}


def another_seed_and_backbone(document: Document) -> None:
    document["comparison"]["spec"] |= {"seeds": [0, 3, 1], "backbones": ["tiny-qwen", "tiny-llama2"]}


def another_score(document: Document) -> None:
    document["ranking"][0]["seeds"]["1"] += 0.25
    document["verdict"] |= {"outcome": "undecided", "winner": None, "sentence": "Undecided."}


def another_cell(document: Document) -> None:
    document["cells"][2]["cell_id"] = "tiny-qwen-s0-0123456789"


def a_failure(document: Document) -> None:
    document["cells"][1] = failed(document["cells"][1], "DIVERGED", "loss is NaN")


CHANGES = [value for value in dict(globals()).values() if callable(value) and value.__module__ == __name__]
CHANGES = [one for one in CHANGES if one.__annotations__ == {"document": Document, "return": None}]


@pytest.mark.parametrize(
    "document", [STORED, comparison_document(), finetune_document()], ids=["stored", "new", "tune"]
)
def test_a_report_differs_in_nothing_from_itself(document: Document) -> None:
    again = copy.deepcopy(document)
    again["comparison"]["created"] = "2027-01-01T00:00:00+00:00"
    again["environment"]["load_average"] = 17.0
    for cell in again["cells"]:
        cell |= {"mlflow_run_id": "another", "folder": "elsewhere", "attempts": 7}
    found = diff(document, again)
    assert found.same and found.comparable == "yes"
    assert found.sentence == "Nothing differs: same spec, data, cells, environment and scores."


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_seen(change: Change) -> None:
    assert not diff(STORED, changed(change)).same
    assert len(CHANGES) == 12


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(CHANGES), unique=True), st.lists(st.sampled_from(CHANGES), unique=True))
def test_a_difference_read_backwards_is_the_difference_of_the_two_swapped(
    ours: list[Change], theirs: list[Change]
) -> None:
    a, b = changed(*ours), changed(*theirs)
    there, back = diff(a, b), diff(b, a)
    assert (there.same, there.comparable) == (back.same, back.comparable)
    assert there.same == (set(ours) == set(theirs))
    for part in ("spec", "data", "environment"):
        swapped = [
            replace(one, a=one.b, b=one.a, added=one.removed, removed=one.added) for one in getattr(back.changes, part)
        ]
        assert sorted(getattr(there.changes, part), key=str) == sorted(swapped, key=str)
    cells, mirrored = there.changes.cells, back.changes.cells
    assert (set(cells.only_a), set(cells.only_b)) == (set(mirrored.only_b), set(mirrored.only_a))
    scores = {one.backbone_id: one for one in back.changes.scores}
    for one in there.changes.scores:
        assert one.difference == pytest.approx(-scores[one.backbone_id].difference)  # type: ignore[operator]


def test_other_held_out_data_and_twice_the_budget_are_named_as_the_reasons() -> None:
    found = diff(STORED, changed(other_held_out_data, twice_the_budget))
    assert found.comparable == "no"
    assert found.sentence == (
        "The scores are not comparable: B has other held-out data (recipe.data.validation builtin:stdlib -> "
        "validation.jsonl) and twice the budget (recipe.budget.amount 200000 -> 400000)."
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fewer_kept, "other training examples kept (1,471 -> 1,400)"),
        (another_rate, "another recipe.optimizer.learning_rate (0.004 -> 0.0001)"),
        (other_weights, "another tiny-llama2 (weights_digest)"),
        (in_data(train_hash="0"), "other training data (the content of recipe.data.train)"),
        (in_data(scored=305), "other held-out items scored (306 -> 305)"),
        (in_budget(kind="tokens"), "another budget (recipe.budget.kind bytes -> tokens)"),
        (in_budget(amount=5e4), "0.25 of the budget (recipe.budget.amount 200000 -> 50000)"),
        (in_budget(amount=1e5), "half the budget (recipe.budget.amount 200000 -> 100000)"),
        (in_budget(amount=1e6), "5 times the budget (recipe.budget.amount 200000 -> 1e6)"),
    ],
)
def test_what_decides_a_score_makes_scores_incomparable(change: Change, reason: str) -> None:
    found = diff(STORED, changed(change))
    assert (found.comparable, found.reasons) == ("no", (reason,))


def test_what_a_recipe_makes_of_every_backbone_is_no_reason_of_its_own() -> None:
    def lower_precision(document: Document) -> None:
        recipe(document)["precision"] = "fp32"
        for cell in document["cells"]:
            cell["contract"] |= {"precision": "fp32", "compute_dtype": "float32"}

    found = diff(STORED, changed(lower_precision))
    assert found.reasons == ("another recipe.precision (bf16 -> fp32)",)
    assert {one.path for one in found.changes.backbones[0].changes} == {"precision", "compute_dtype"}


@pytest.mark.parametrize(
    ("change", "besides"),
    [
        (another_seed_and_backbone, "B adds seed 3 and leaves out tiny-mistral"),
        (lambda one: one["comparison"]["spec"].update(seeds=[0]), "B leaves out seed 1"),
        (newer_torch, "other last digits may come from torch 2.13.0+cpu -> 2.14.0"),
        (more_workers, "other last digits may come from placement.workers 2 -> 4"),
        (another_name, "they differ in name and storage"),
    ],
)
def test_what_decides_no_score_is_said_beside_that_they_are_comparable(change: Change, besides: str) -> None:
    found = diff(STORED, changed(change))
    assert found.sentence == f"The scores are comparable: same data, same recipe and budget; {besides}."


def test_the_same_data_under_another_name_is_the_same_data() -> None:
    found = diff(STORED, changed(lambda document: recipe(document)["data"].update(train="copy.jsonl")))
    assert found.comparable == "yes"
    assert [one.path for one in found.changes.spec] == ["recipe.data.train"]


def test_the_same_hours_on_other_hardware_are_other_work() -> None:
    timed = changed(in_budget(kind="gpu_hours", amount=2.0))
    moved = changed(lambda document: document["environment"].update(hardware="8 x H100"), document=timed)
    assert diff(timed, moved).reasons == ("other hardware for a budget of time (2 x CPU AMD EPYC -> 8 x H100)",)
    assert diff(STORED, changed(lambda one: one["environment"].update(hardware="8 x H100"))).comparable == "yes"


def test_a_key_that_is_left_out_has_its_default() -> None:
    def drop(document: Document) -> None:
        del document["comparison"]["spec"]["policy"], recipe(document)["attention"]
        document["comparison"]["spec"] |= {"seeds": [1, 0]}  # written as 2 in the other

    assert diff(STORED, changed(drop)).same
    compiled = changed(lambda document: recipe(document).update(compile="layers"))
    assert [(one.path, one.a, one.b) for one in diff(STORED, compiled).changes.spec] == [
        ("recipe.compile", "auto", "layers")
    ]


def test_a_spec_that_this_version_cannot_read_is_taken_as_it_stands() -> None:
    found = diff(STORED, changed(lambda document: recipe(document).update(unheard_of=3)))
    assert ("recipe.unheard_of", None, 3) in [(one.path, one.a, one.b) for one in found.changes.spec]


def test_scores_stand_beside_each_other_by_backbone_and_by_seed() -> None:
    more = comparison_document(NAMES[:2], seeds=4)
    fewer = comparison_document(NAMES, seeds=3)
    for row in more["ranking"]:
        row["seeds"] = {seed: score + 0.5 for seed, score in row["seeds"].items()}
    scores = {one.backbone_id: one for one in diff(fewer, more).changes.scores}
    first = scores[NAMES[0]]
    assert [seed.seed for seed in first.seeds] == [0, 1, 2, 3]
    assert first.same_seeds == pytest.approx(0.5)
    assert (first.seeds[3].a, first.seeds[3].difference) == (None, None)
    assert (scores[NAMES[2]].b, scores[NAMES[2]].difference) == (None, None)


def test_where_two_verdicts_judge_other_metrics_runs_are_compared_by_bits_per_byte() -> None:
    def by_item(document: Document) -> None:
        document["verdict"]["metric"] = "item_bits_per_byte"
        for row in document["ranking"]:
            row["seeds"] = dict.fromkeys(row["seeds"], 9.0)

    found = diff(STORED, changed(by_item))
    assert found.changes.metric == "bits_per_byte"
    assert {seed.difference for one in found.changes.scores for seed in one.seeds} == {0.0}


def test_a_backbone_that_one_verdict_did_not_rank_is_compared_by_its_runs() -> None:
    def rule_out(document: Document) -> None:
        document["ranking"] = document["ranking"][1:]
        document["verdict"]["ruled_out"] = {NAMES[0]: ["licence llama2, allowed mit"]}

    whole = comparison_document()
    scores = {one.backbone_id: one for one in diff(whole, changed(rule_out, document=whole)).changes.scores}
    assert set(scores) == {*NAMES}
    assert [seed.difference for seed in scores[NAMES[0]].seeds] == [pytest.approx(0.0, abs=1e-9)] * 3


def test_what_a_backbone_keeps_of_its_own_decides_and_what_its_tokenizer_counts_does_not() -> None:
    def kept(name: str) -> Change:
        return lambda document: document["data"]["backbones"].setdefault("tiny-qwen", {}).update({name: 1})

    first = changed(lambda document: document["data"]["backbones"]["tiny-qwen"].update(kept=2, examples_cut=2))
    found = diff(first, changed(kept("kept"), kept("examples_cut"), document=first))
    (backbone,) = found.changes.backbones
    assert {one.path: one.effect for one in backbone.changes} == {"data.kept": "scores", "data.examples_cut": "none"}
    assert found.reasons == ("another tiny-qwen (data.kept)",)


def test_verdicts_say_whether_they_agree() -> None:
    same = diff(STORED, changed(twice_the_budget)).changes.verdicts
    assert same is not None and (same.agree, same.sentence) == (True, "Both name tiny-qwen the winner.")
    moved = diff(STORED, changed(another_score)).changes.verdicts
    assert moved is not None and moved.agree is False
    assert moved.sentence == "A names tiny-qwen and B names no winner."
    tune = diff(STORED, finetune_document()).changes.verdicts
    assert tune is not None and (tune.agree, tune.sentence) == (None, "Only A was judged.")


def test_a_cell_that_did_not_end_alike_is_named() -> None:
    (ended,) = diff(STORED, changed(a_failure)).changes.cells.ended_otherwise
    assert (ended.cell_id, ended.a, ended.b) == (STORED["cells"][1]["cell_id"], "SUCCEEDED", "DIVERGED")


def test_reports_in_which_nothing_ran_are_compared_too() -> None:
    cells = [failed(cell, "CANCELLED", "") for cell in comparison_document()["cells"]]
    stopped = finished({"cells": cells}, NAMES)
    for later in ("kept", "dropped", "backbones"):
        del stopped["data"][later]
    assert diff(stopped, stopped).same
    assert diff(comparison_document(), stopped).changes.cells.ended_otherwise


@pytest.mark.parametrize("change", [None, *CHANGES], ids=lambda change: getattr(change, "__name__", "none"))
def test_a_difference_follows_the_published_schema(change: Change | None) -> None:
    found = diff(STORED, STORED if change is None else changed(change))
    Draft202012Validator(document_schema("difference")).validate(json.loads(json.dumps(asdict(found))))
