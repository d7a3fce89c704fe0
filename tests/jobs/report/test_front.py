"""Score against what it takes: who stands on the front, what the page says of time and money, what old reports lack."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_documents import NAMES, comparison_document, failed, finetune_document, finished

from jobs.report.excerpt import DRAWN_BACKBONES
from jobs.report.front import Point, Quantity, front, front_plots, hours, memory, throughput
from jobs.report.html import render_report
from jobs.report.palette import looks
from jobs.results.costs.spent import Rate, total

SMALL = st.integers(1, 6).map(float)
POINTS = st.lists(st.builds(Point, st.uuids().map(str), SMALL, SMALL), min_size=1, max_size=12)


QUANTITIES = {"left": memory({}), "right": throughput({})}


def beats(quantity: Quantity, one: Point, other: Point) -> bool:
    """In one of both, and is not beaten in the other."""
    ours, theirs = (quantity.key(one.x), one.score), (quantity.key(other.x), other.score)
    return ours[0] <= theirs[0] and ours[1] <= theirs[1] and ours != theirs


@pytest.mark.parametrize("better", QUANTITIES)
@given(points=POINTS)
def test_nobody_beats_who_stands_on_the_front_and_somebody_beats_or_equals_everybody_else(
    better: str, points: list[Point]
) -> None:
    quantity = QUANTITIES[better]
    best = front(quantity, points)
    assert not any(beats(quantity, one, other) for one in points for other in best)
    for point in points:
        assert any(quantity.key(one.x) <= quantity.key(point.x) and one.score <= point.score for one in best)
    assert [one.x for one in best] == sorted({one.x for one in best}, reverse=better == "right")
    assert [one.score for one in best] == sorted({one.score for one in best}, reverse=True)


def plot_of(document: dict[str, Any]) -> str:
    looked = looks(row["backbone_id"] for row in document["ranking"])
    (plot,) = front_plots([hours(document["costs"])], document["ranking"], looked)
    return str(plot.svg)


def priced(document: dict[str, Any], hours: dict[str, float], rate: Rate | None) -> dict[str, Any]:
    for cell in document["cells"]:
        cell["spent"] = {"seconds": 1.0, "device_hours": hours[cell["backbone_id"]], "cost": None}
    return document | {"costs": total(document["cells"], "GPU", rate)}


def test_the_plot_tells_hours_money_and_the_front() -> None:
    document = priced(comparison_document(), dict(zip(NAMES, (8.0, 2.0, 4.0), strict=True)), Rate(2.5, "USD"))
    svg = plot_of(document).replace("\N{NO-BREAK SPACE}", " ")
    assert "llama2-7b-pure 0.8206 at 8.00 GPU hours (20.00 USD)" in svg
    assert "On the front: mistral-v0.1-7b-pure, llama2-7b-pure" in svg
    assert "USD a run" in svg and "GPU hours a run" in svg
    assert ">mistral-v0.1-7b-pure</text>" in svg and ">hf:Qwen/Qwen3-8B@0123456</text>" not in svg


def test_memory_and_speed_have_their_fronts_too() -> None:
    document = comparison_document()
    for cell in document["cells"]:
        place = NAMES.index(cell["backbone_id"])
        cell["metrics"] |= {"peak_memory_gib": [40.0, 20.0, 30.0][place] + cell["seed"]}
        cell["metrics"] |= {"bytes_per_second_per_device": [9e3, 8e3, 2e4][place]}
    page = render_report(document)
    told = re.findall(r'aria-label="(Score against [mt].*?)"', page)
    assert [text.partition("On the front: ")[2] for text in told] == [
        "mistral-v0.1-7b-pure, llama2-7b-pure",
        "hf:Qwen/Qwen3-8B@0123456789abcdef0123456789abcdef01234567, llama2-7b-pure",
    ]
    assert "llama2-7b-pure 0.8206 at 42.0 GiB" in told[0]  # the largest of its runs
    assert "llama2-7b-pure 0.8206 at 9,000 bytes/s" in told[1]


def test_what_was_not_measured_is_not_drawn() -> None:
    document = comparison_document()
    for cell in document["cells"][1:]:
        cell["metrics"]["peak_memory_gib"] = None
    page = render_report(document)
    assert "<h3>Score against memory</h3>" not in page and "<h3>Score against throughput</h3>" in page


def test_without_a_price_there_is_no_money() -> None:
    document = priced(comparison_document(), dict.fromkeys(NAMES, 3.0), None)
    page = render_report(document)
    assert "USD" not in page and "GPU hours a run; left is better" in page
    assert "<h3>Score against GPU hours</h3>" in page


def test_costs_far_apart_are_drawn_on_a_logarithmic_axis_with_plain_numbers() -> None:
    svg = plot_of(priced(comparison_document(), dict(zip(NAMES, (1000.0, 1.0, 30.0), strict=True)), Rate(2.0, "USD")))
    assert ">1000</text>" in svg and ">100</text>" in svg
    assert "mathdefault" not in svg


def test_the_seventh_backbone_is_black_only_where_the_page_is_light() -> None:
    names = [f"tiny-{number}" for number in range(7)]
    page = render_report(comparison_document(names))
    for plot in re.findall(r"<svg viewBox.*?</svg>", page, re.S):
        assert "var(--series-6)" in plot


def test_of_many_the_front_is_drawn_and_the_best_of_the_others() -> None:
    names = [f"tiny-{number}" for number in range(DRAWN_BACKBONES + 20)]
    hours = {name: float(number + 1) for number, name in enumerate(reversed(names))}  # the worst is the cheapest
    document = priced(comparison_document(names, 1, points=2, steps=2), hours, None)
    document["ranking"][-1]["score"] = 9.0
    svg = plot_of(document)
    assert svg.count("GPU hours") == DRAWN_BACKBONES + 2  # each point, the title and the axis
    assert f"{names[-1]} 9.0000 at 1.00 GPU hours" in svg  # nobody is as cheap
    assert f"Drawn are {DRAWN_BACKBONES} of {len(names)} backbones" in render_report(document)


def test_the_page_has_hours_and_money_of_backbones_and_of_runs() -> None:
    document = priced(comparison_document(), dict(zip(NAMES, (8.0, 2.0, 4.0), strict=True)), Rate(2.5, "USD"))
    for cell in document["cells"]:
        cell["spent"]["cost"] = cell["spent"]["device_hours"] * 2.5
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", render_report(document).replace("\N{NO-BREAK SPACE}", " ")))
    assert "llama2-7b-pure 8.00 24.0 20.00 USD 60.00 USD" in page
    assert "An hour of one costs 2.50 USD." in page
    assert "GPU hours 42.0 all attempts, 105.00 USD" in page
    assert "3 h 15 min 8.00 20.00 USD" in page


def test_a_report_of_an_earlier_version_has_no_cost_and_is_shown_all_the_same() -> None:
    document = comparison_document()
    del document["costs"]
    for cell in document["cells"]:
        del cell["spent"]
    page = render_report(document)
    assert "<h3>Cost</h3>" not in page and "Score against GPU hours" not in page
    assert page.count('role="img"') == 9


def test_attempts_that_all_failed_have_their_price_too() -> None:
    cells = [failed(cell, "DIVERGED", "loss is NaN") for cell in comparison_document()["cells"]]
    page = render_report(finished({"cells": cells}, NAMES))
    assert re.search(r"nothing was measured\. The attempts took [\d.]+ GPU hours, [\d.]+\s*USD\.", page)


def test_a_finetune_says_what_it_took_and_has_nobody_to_be_drawn_against() -> None:
    page = render_report(finetune_document())
    assert "<h3>Cost</h3>" in page and "Score against" not in page
