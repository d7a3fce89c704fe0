"""A comparison of a thousand runs, and what every report says its answer holds for."""

from report_documents import comparison_document

from benchmarks.report_size import MOST_BYTES, made_up
from jobs.report.excerpt import CURVED_BACKBONES, CURVES, PAIRED_BACKBONES, curved_cells, shown_pairs
from jobs.report.html import render_report
from jobs.report.scope import scope


def test_a_page_of_a_thousand_runs_has_every_run_and_says_what_it_leaves_out() -> None:
    document = made_up(1000)
    page = render_report(document)
    assert len(page.encode()) < MOST_BYTES
    assert all(cell["cell_id"] in page for cell in document["cells"])
    best = PAIRED_BACKBONES * (PAIRED_BACKBONES - 1) // 2 + 200 - PAIRED_BACKBONES
    assert f"Shown are {best} of 19,900 pairs" in page
    assert f"Drawn are {CURVES} of 1,000 runs" in page
    assert "The plots show the 40 best." in page
    assert "Drawn are 40 of 200 backbones" in page
    assert page.count('role="img"') == 10
    assert "Shown are the 8 best of 200 backbones" in page


def test_a_comparison_that_a_person_can_read_is_shown_whole() -> None:
    document = comparison_document([f"tiny-{number}" for number in range(PAIRED_BACKBONES)], 2)
    page = render_report(document)
    assert "Shown are" not in page
    assert "Drawn are" not in page
    assert shown_pairs(document["verdict"]["pairs"], document["ranking"]) == document["verdict"]["pairs"]


def test_the_curves_of_many_are_those_of_the_best_with_all_their_seeds() -> None:
    document = made_up(500)
    drawn = curved_cells(document["cells"], document["ranking"])
    best = [row["backbone_id"] for row in document["ranking"][:CURVED_BACKBONES]]
    assert {cell["backbone_id"] for cell in drawn} == set(best)
    assert len(drawn) == CURVES == 5 * CURVED_BACKBONES


def test_a_report_says_for_which_budget_tuning_and_data_its_answer_holds() -> None:
    document = comparison_document()
    document["comparison"]["spec"]["recipe"] = {
        "data": {"train": "mine.jsonl", "validation": "held-out.jsonl"},
        "sequence_length": 2048,
        "budget": {"kind": "bytes", "amount": 2e9},
        "optimizer": {"learning_rate": 2e-5},
        "adaptation": {"kind": "lora"},
    }
    told = dict(scope(document))
    assert told["Budget"].startswith("2.00\N{NO-BREAK SPACE}GB of learnable text for each run")
    assert told["Tuning"].startswith("none: every backbone was trained with a learning rate of 2e-05, adaptation lora")
    assert "trained on mine.jsonl (2.35" in told["Data"]
    assert "scored on 4,096 items of held-out.jsonl" in told["Data"]
    assert told["Sizes"].startswith("models of ") and "parameters" in told["Sizes"]
    page = render_report(document)
    assert "What this answer holds for" in page
    assert "held-out.jsonl" in page


def test_what_a_report_does_not_tell_is_not_made_up() -> None:
    document = comparison_document()
    document["comparison"]["spec"] = {"name": "which-backbone"}
    assert [aspect for aspect, _ in scope(document)] == ["Data", "Sizes"]
