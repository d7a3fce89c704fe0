"""The page of a comparison whose models acted: success beside what it is measured against, films without a network."""

from typing import Any, cast

from report_documents import NAMES, comparison_document

from jobs.report.html import render_markdown, render_report
from jobs.report.rollouts import HEADINGS, MOST_FILMED, rollout_rows
from jobs.results.documents import Report

FILM = {"success": True, "instruction": "go to <the> red ball", "length": 4, "data": "data:image/webp;base64,UklGRg=="}


def rolled_out(success: float, blind: float | None) -> dict[str, Any]:
    return {
        "success": success,
        "interval": [success - 0.1, success + 0.1],
        "random_success": 0.25,
        "blind_success": blind,
        "total_reward": 0.5,
        "length": 6.5,
        "films": [FILM, FILM | {"success": False}],
    }


def acted(names: list[str], metric: str) -> Report:
    document = comparison_document(names)
    document["verdict"]["metric"] = metric
    document["rollouts"] = {
        "environment": "minigrid:BabyAI-GoToLocal-v0",
        "episodes": 50,
        "backbones": {name: rolled_out(0.8 - 0.05 * place, None if place else 0.3) for place, name in enumerate(names)},
    }
    return cast(Report, document)


def test_success_stands_beside_what_it_is_measured_against() -> None:
    page = render_report(acted(NAMES, "bits_per_byte")).replace("\N{NO-BREAK SPACE}", " ")
    assert "50 episodes of minigrid:BabyAI-GoToLocal-v0" in page
    for text in ("80.0 %", "70.0 % to 90.0 %", "25.0 %", "30.0 %", "n/a"):
        assert text in page, text
    assert "go to &lt;the&gt; red ball" in page
    assert page.count("data:image/webp") == 2 * len(NAMES)
    assert "http" not in page.split('<div class="films">')[1].split("</div>")[0]
    assert "Bits per byte on the held-out text" in page


def test_a_success_is_above_both_where_its_interval_is() -> None:
    above = {"random_interval": [0.2, 0.3], "blind_interval": [0.2, 0.69]}
    document = acted(NAMES, "bits_per_byte")
    for number, one in enumerate(document["rollouts"]["backbones"].values()):
        one.update(above if number == 0 else {**above, "blind_interval": [0.2, 0.71]})  # type: ignore[typeddict-item]
    rows = [texts[HEADINGS.index("above both")] for _, texts in rollout_rows(document["rollouts"])]
    assert rows == ["yes", *["no"] * (len(NAMES) - 1)]
    page = render_report(document).replace("\N{NO-BREAK SPACE}", " ")
    assert "25.0 % (20.0 % to 30.0 %)" in page


def test_the_page_says_whether_bits_say_what_success_says() -> None:
    document = acted(NAMES, "rollout_success")
    document["rollouts"] |= {"max_steps": 7, "chunk": 8, "execute": 5}
    document["rollouts"]["agreement"] = {
        "metric": "bits_per_byte",
        "unit": "bits per action dimension",
        "outcome": "tie",
        "winner": None,
        "sentence": "A tie by <bits>.",
        "ranking": document["ranking"],
        "agree": "They do not contradict each other.",
    }
    page, text = render_report(document), render_markdown(document)
    assert "of at most 7 steps" in page
    assert "a model answers with 8 actions and takes 5 of them before it looks again" in page
    assert "A tie by &lt;bits&gt;." in page and "Bits per action dimension" in page
    assert all("They do not contradict each other." in one for one in (page, text))


def test_success_on_the_way_is_a_curve_beside_the_others() -> None:
    document = acted(NAMES, "bits_per_byte")
    caption = "Share of the episodes of rollouts, the same ones at every point"
    assert caption not in render_report(document)
    for cell in document["cells"]:
        cell["success_curve"] = [(0.0, 0.0), (0.5, 0.25), (1.0, 0.625)]
    page = render_report(document)
    curves = page.split('id="curves"')[1].split("</section>")[0]
    assert caption in curves and "share of the budget" in curves
    assert f"{NAMES[0]} ends at 0.6250" in curves


def test_a_page_holds_the_films_of_a_few_backbones_alone() -> None:
    names = [f"backbone-{number}" for number in range(MOST_FILMED + 3)]
    assert render_report(acted(names, "bits_per_byte")).count("data:image/webp") == 2 * MOST_FILMED


def test_a_ranking_by_success_says_so_everywhere() -> None:
    document = acted(NAMES, "rollout_success")
    page, text = render_report(document), render_markdown(document)
    assert "Share of failed episodes in rollouts" in page
    assert "| share of failed episodes |" in text
    assert "bits per byte (lower is better)" not in page
    assert "fewer bits" not in page
    document["ranking"][1]["score"] = 0.0  # nobody failed
    assert "fewer failures" not in render_report(document)


def test_a_page_of_a_job_without_rollouts_has_no_such_section() -> None:
    assert "Success in closed loop" not in render_report(cast(Report, comparison_document()))
