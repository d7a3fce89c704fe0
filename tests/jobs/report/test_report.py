"""The report of a comparison or finetune: every fact is on the page, nothing on it can act, nothing comes from afar.

Over 300 lines: one page, part by part.
"""

import copy
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from report_documents import NAMES, comparison_document, failed, finetune_document, finished

from jobs import formats
from jobs.report import plots
from jobs.report.contract import contract_differences
from jobs.report.html import render_report
from jobs.report.palette import looks
from jobs.report.plots import Curve, difference_plot, evaluation_curves

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Parses strictly enough to notice an element that is never closed, and keeps what the tests ask for."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values_of(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.elements if attribute in attributes]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def page_of(document: dict[str, Any]) -> Page:
    page = Page(render_report(document))
    assert page.open == []
    return page


def with_failures(document: dict[str, Any]) -> dict[str, Any]:
    cells = copy.deepcopy(document["cells"])
    cells[4] = failed(cells[4], "OUT_OF_MEMORY", "needs about 108 GiB per GPU\n  Raise placement.workers to 2 or more.")
    return finished({"cells": cells}, NAMES)


def table_rows(html: str, section: str) -> list[str]:
    """The text of each table row of a section."""
    body = html.split(f'<h2 id="{section}">')[1].split("</section>")[0]
    return [" ".join(unescape(re.sub(r"<[^>]+>", " ", row)).split()) for row in re.findall(r"<tr.*?</tr>", body, re.S)]


def test_a_comparison_shows_every_fact_a_reader_needs() -> None:
    document = comparison_document()
    text = page_of(document).text
    for fact in (
        document["verdict"]["sentence"],
        document["verdict"]["notes"][0],
        "How to read this",
        "812,345 of 815,579 examples kept",
        "some tokenizer does not give back the same text",
        "sha256:1f2e3d4c",
        "0.2437",
        "backbone compare jobs/specs/which-backbone.yaml",
        "backbones: [llama2-7b-pure, mistral-v0.1-7b-pure]",
        "8 x NVIDIA H100 80GB HBM3 on 1 node",
        "2.60.0",
        "which-backbone-5d41402abc",
        "run-2-1",
        "runs/which-backbone/2-1",
        "recipe.sequence_length",
    ):
        assert fact in text


def test_the_ranking_gives_every_seed_its_own_value() -> None:
    document = comparison_document()
    _, first, second, third = table_rows(render_report(document), "ranking")
    for row, text in zip(document["ranking"], (first, second, third), strict=True):
        assert text.startswith(str(row["rank"]))
        assert f"{row['score']:.4f}" in text
        assert all(f"{value:.4f}" in text for value in row["seeds"].values())
    assert first.endswith("best")
    assert second.endswith("worse")
    assert "+0.01" in second


def test_a_pair_shows_its_difference_interval_and_both_p_values() -> None:
    document = comparison_document()
    _, first, *_ = table_rows(render_report(document), "pairs")
    low, high = document["verdict"]["pairs"][0]["interval"]
    assert f"+{low:.4f} to +{high:.4f}" in first
    assert "0.012 0.012 first is better" in first


def test_a_pair_that_the_test_did_not_decide_is_never_called_better() -> None:
    document = comparison_document()
    document["verdict"]["pairs"][0] |= {"p_value": 0.03, "p_value_holm": 0.09}
    document["verdict"]["pairs"][1] |= {"p_value": 0.8, "p_value_holm": 0.9, "equivalent": True}
    _, first, second, _ = table_rows(render_report(document), "pairs")
    assert first.endswith("not told apart among 3 pairs")
    assert second.endswith("equivalent")


def test_a_run_that_failed_is_announced_at_the_top_and_explained_below() -> None:
    html = render_report(with_failures(comparison_document()))
    text = Page(html).text
    assert "1 of 9 runs did not succeed." in text
    assert "mistral-v0.1-7b-pure, seed 1: OUT_OF_MEMORY needs about 108 GiB per GPU Raise placement.workers" in text
    (failed_run,) = [row for row in table_rows(html, "runs") if "OUT_OF_MEMORY" in row]
    assert "n/a n/a n/a" in failed_run


def test_a_backbone_without_a_finished_run_stays_in_the_ranking_table() -> None:
    document = comparison_document()
    cells = [failed(c, "DIVERGED", "loss is NaN") if c["backbone_id"] == NAMES[1] else c for c in document["cells"]]
    rows = table_rows(render_report(finished({"cells": cells}, NAMES)), "ranking")
    assert rows[-1] == "– mistral-v0.1-7b-pure no finished run (DIVERGED)"


def test_the_reason_of_a_restart_is_shown_although_the_run_succeeded() -> None:
    document = comparison_document()
    document["cells"][0] |= {"attempts": 2, "restarts": ["the worker on node 3 was lost"]}
    assert "llama2-7b-pure, seed 0 was restarted: the worker on node 3 was lost." in page_of(document).text


@pytest.mark.parametrize("status", ["FAILED", "INFEASIBLE", "CANCELLED"])
def test_a_comparison_in_which_nothing_finished_still_has_a_report(status: str) -> None:
    cells = [failed(cell, status, "why it ended") for cell in comparison_document()["cells"]]
    text = page_of(finished({"cells": cells}, NAMES)).text
    assert "No run finished, so there is nothing to rank." in text
    assert text.count("why it ended") == 9


def test_a_job_that_ended_before_its_data_was_prepared_still_has_a_report() -> None:
    document = finished({"cells": [failed(c, "CANCELLED", "") for c in comparison_document()["cells"]]}, NAMES)
    for later in ("kept", "dropped", "backbones"):
        del document["data"][later]
    document["environment"]["packages"] = {}
    text = page_of(document).text
    assert "The job ended before its data was prepared" in text
    assert "No reason was recorded." in text


def test_a_finetune_shows_before_and_after_and_where_the_model_is() -> None:
    document = finetune_document()
    page = page_of(document)
    metrics = document["cells"][0]["metrics"]
    before, after = metrics["val_bits_per_byte_before"], metrics["val_bits_per_byte"]
    assert f"Held-out bits per byte went from {before:.4f} to {after:.4f}" in page.text
    assert "The trained model is in exports/my-model ." in page.text
    assert "ranking" not in page.values_of("id")
    assert "Verdict" not in page.text


def test_a_robots_actions_are_shown_where_they_were_learned() -> None:
    document = finetune_document()
    assert "actions" not in page_of(document).values_of("id")
    document["cells"][0]["metrics"] |= {
        "val_bits_per_action_dimension": 3.25,
        "val_action_accuracy": 0.5,
        "val_action_l1": 0.125,
    }
    page = page_of(document)
    assert "actions" in page.values_of("id")
    assert "bits per dimension accuracy" in page.text
    assert "3.2500 50.0 % 0.1250" in page.text


def test_a_finetune_that_failed_says_so_first() -> None:
    document = finetune_document()
    document["cells"][0] = failed(document["cells"][0], "TIMED_OUT", "longer than policy.timeout")
    assert "The run did not succeed: TIMED_OUT." in page_of(document).text


def test_a_metric_that_was_not_measured_is_shown_as_not_available() -> None:
    document = comparison_document()
    for cell in document["cells"]:
        cell["metrics"] = dict.fromkeys(cell["metrics"]) | {"mfu": None}
        cell["evaluations"] = [point | {"val_bits_per_byte": None} for point in cell["evaluations"]]
    document["cells"][0]["metrics"] = {}
    for pair in document["verdict"]["pairs"]:
        pair |= dict.fromkeys(("degrees_of_freedom", "p_value", "p_value_holm", "interval"))
    _, first, *_ = table_rows(render_report(document), "cost")
    assert first == "llama2-7b-pure" + " n/a" * 10
    page_of(document)


def test_figures_of_tasks_stand_beside_bits_per_byte() -> None:
    document = comparison_document()
    assert 'id="tasks"' not in render_report(document)
    for number, cell in enumerate(document["cells"]):
        cell["metrics"]["task/piqa/acc"] = 0.5 if number % 2 else 0.6
    heading, bits, piqa = table_rows(render_report(document), "tasks")
    assert heading.startswith("Figure llama2-7b-pure")
    assert bits.startswith("held-out bits per byte 0.")
    assert re.match(r"piqa/acc 0\.[56]\d* ", piqa)
    page_of(document)


HOSTILE = "<script>alert('&\"$x$')</script>"


def test_no_text_of_a_user_becomes_markup() -> None:
    document = comparison_document([HOSTILE, NAMES[1]])
    document["comparison"] |= {"name": HOSTILE, "spec_yaml": f"name: {HOSTILE}", "command": HOSTILE}
    document["comparison"]["spec"] = {HOSTILE: HOSTILE}
    document["environment"] |= {"hardware": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    document["verdict"] |= {"sentence": HOSTILE, "notes": [HOSTILE]}
    document["cells"][0] |= {"failure": HOSTILE, "status": "FAILED", "restarts": [HOSTILE], "folder": HOSTILE}
    document["cells"][1]["contract"] |= {HOSTILE: HOSTILE}
    document["data"]["dropped"] = {HOSTILE: 1}
    page = page_of(document)
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert HOSTILE in page.text
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_a_dollar_sign_in_a_name_is_not_mathematics() -> None:
    name = "hf:./costs-$5-and-$6"
    plots = re.findall(r"<svg viewBox.*?</svg>", render_report(comparison_document([name, "tiny-b"])), re.S)
    assert f">{name}</text>" in plots[0]


def test_the_page_fetches_nothing() -> None:
    html = render_report(comparison_document())
    page = Page(html)
    assert all(link.startswith("#") or link == "data:," for link in page.values_of("href"))
    assert not page.values_of("src")
    assert not {"script", "iframe", "img", "object", "embed"} & {tag for tag, _ in page.elements}
    assert not re.search(r"@import|url\((?!#)|https?:", html)


def test_the_same_document_always_gives_the_same_page() -> None:
    document = comparison_document()
    assert render_report(document) == render_report(copy.deepcopy(document))


def test_rendering_does_not_change_the_document() -> None:
    document = comparison_document()
    before = copy.deepcopy(document)
    render_report(document)
    assert document == before


def test_no_two_elements_share_an_id_and_every_reference_has_its_target() -> None:
    page = page_of(comparison_document())
    ids = page.values_of("id")
    assert len(ids) == len(set(ids))
    used = [href[1:] for href in page.values_of("href") if href.startswith("#")]
    used += [clip.removeprefix("url(#").removesuffix(")") for clip in page.values_of("clip-path")]
    assert used
    assert set(used) <= set(ids)


def test_plots_follow_the_colours_and_the_font_of_the_page() -> None:
    plots = re.findall(r"<svg viewBox.*?</svg>", render_report(comparison_document()), re.S)
    assert len(plots) == 11
    for plot in plots:
        assert not re.findall(r"#[0-9a-f]{6}\b", plot)
        assert "font-family" not in plot
        assert "<style" not in plot


def test_every_plot_can_be_heard_and_every_header_has_a_scope() -> None:
    page = page_of(comparison_document())
    plots = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("role") == "img"]
    assert all("llama2-7b-pure" in (attributes["aria-label"] or "") for attributes in plots if attributes)
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.elements if tag == "th")


def test_a_backbone_looks_the_same_wherever_it_stands_in_the_ranking() -> None:
    document = comparison_document()
    document["ranking"].reverse()
    page = render_report(document)
    keys = set(re.findall(r'title="llama2-7b-pure"><svg class="key".*?stroke: (var\(--series-\d\))', page))
    assert keys == {"var(--series-0)"}


@pytest.mark.parametrize(("backbones", "seeds"), [(1, 1), (2, 1), (2, 10), (12, 2)])
def test_any_number_of_backbones_and_seeds_can_be_shown(backbones: int, seeds: int) -> None:
    names = [f"tiny-{index}" for index in range(backbones)]
    page = page_of(comparison_document(names, seeds))
    assert all(name in page.text for name in names)
    assert f"Runs finished {backbones * seeds} of {backbones * seeds}" in page.text


def test_a_large_comparison_stays_small_enough_to_send_around() -> None:
    names = [f"hf:organisation/a-rather-long-name-{index}" for index in range(12)]
    assert len(render_report(comparison_document(names, 10, points=101, steps=1000)).encode()) < 2_000_000


def test_a_contract_that_differs_where_the_recipe_holds_it_constant_is_named() -> None:
    document = comparison_document()
    for cell in document["cells"][6:]:
        cell["contract"]["attention"] = {"kernel": "eager", "requested": "auto", "reason": "head size 80"}
    text = page_of(document).text
    assert "The recipe holds this fact constant, yet the runs differ:" in text
    assert (
        "attention: kernel : sdpa for llama2-7b-pure, mistral-v0.1-7b-pure; eager for hf:Qwen/Qwen3-8B@0123456" in text
    )


def test_contracts_that_agree_are_said_to_agree() -> None:
    assert "The runs agree in everything that the recipe holds constant." in page_of(comparison_document()).text


def test_differences_list_the_unexpected_ones_first() -> None:
    cells = comparison_document()["cells"]
    for cell in cells[:3]:
        cell["contract"]["compute_dtype"] = "float16"
    first, *others = contract_differences(cells)
    assert (first.name, first.is_expected) == ("compute_dtype", False)
    assert first.groups == [("bfloat16", NAMES[1:]), ("float16", NAMES[:1])]
    assert {other.name for other in others} >= {"decoder_layer", "tokenizer_rows.base", "prompt_hash"}
    assert all(other.is_expected for other in others)


def test_runs_of_one_backbone_that_disagree_are_never_expected() -> None:
    cells = comparison_document(NAMES[:1])["cells"]
    cells[1]["contract"]["prompt_hash"] = "another"
    (difference,) = contract_differences(cells)
    assert difference.differs_between_seeds
    assert not difference.is_expected


def test_a_fact_that_only_some_runs_recorded_is_a_difference() -> None:
    cells = comparison_document()["cells"]
    del cells[0]["contract"]["device"], cells[1]["contract"]["device"], cells[2]["contract"]["device"]
    difference = contract_differences(cells)[0]
    assert (difference.name, difference.values[NAMES[0]]) == ("device", ("absent",))


def test_runs_that_never_started_have_no_part_in_the_contract() -> None:
    document = comparison_document(NAMES[:1])
    document["cells"][0] = failed(document["cells"][0], "INFEASIBLE", "too large")
    assert contract_differences(document["cells"]) == []


def test_the_second_half_of_a_curve_starts_at_half_of_the_budget() -> None:
    (curve,) = evaluation_curves(finetune_document()["cells"], "bytes_seen", from_progress=0.5)
    assert curve.x[0] == 1e9
    assert len(curve.x) == 6


def test_curves_are_drawn_against_all_that_a_run_spends_with_a_band_of_the_seeds() -> None:
    document = comparison_document()
    cells = document["cells"]
    ends = {x: evaluation_curves(cells, x)[0].x[-1] for x in ("flops", "cost")}  # type: ignore[arg-type]
    metrics, spent = cells[0]["metrics"], cells[0]["spent"]
    assert ends["flops"] == pytest.approx(metrics["training_flops"])
    assert ends["cost"] == pytest.approx(metrics["train_time_s"] * spent["cost"] / spent["seconds"])
    page = render_report(document)
    assert all(f"Quality against {what}" in page for what in ("data", "time", "FLOPs", "cost"))
    for cell in cells:
        cell["spent"]["cost"] = None
        del cell["metrics"]["training_flops"]
    page = render_report(document | {"costs": document["costs"] | {"currency": None}})
    assert "Quality against FLOPs" not in page and "Quality against cost" not in page
    seeds = [Curve("a", [0.0, 2.0], [3.0, 1.0]), Curve("a", [0.0, 4.0], [5.0, 1.0]), Curve("b", [0.0], [1.0])]
    assert plots._bands(seeds) == [plots.Band("a", [0.0, 3.0], [(4.0, pytest.approx(2**0.5)), (1.0, 0.0)])]


@pytest.mark.parametrize(("best_is", "expected"), [("a", "worse-one +0.0100"), ("b", "worse-one \N{MINUS SIGN}0.0100")])
def test_a_difference_is_drawn_as_seen_from_the_best(best_is: str, expected: str) -> None:
    names = {"a": "worse-one", "b": "worse-one", best_is: "best-one"}
    pair = names | {"difference": 0.01, "interval": [0.002, 0.018]}
    plot = difference_plot([pair], "best-one", looks(["best-one", "worse-one"]), 0.004, "95 %", "bits per byte")
    assert plot is not None
    assert expected in plot.svg


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.fixed(None), "n/a"),
        (formats.fixed(float("nan")), "n/a"),
        (formats.fixed(-0.5, 1), "\N{MINUS SIGN}0.5"),
        (formats.significant(12345.6), "12,346"),
        (formats.significant(0.012345), "0.0123"),
        (formats.size(999), "999\N{NO-BREAK SPACE}B"),
        (formats.size(2_345_678_901), "2.35\N{NO-BREAK SPACE}GB"),
        (formats.duration(7505), "2\N{NO-BREAK SPACE}h 05\N{NO-BREAK SPACE}min"),
        (formats.duration(59.99), "1\N{NO-BREAK SPACE}min 00\N{NO-BREAK SPACE}s"),
        (formats.p_value(0.00004), "<\N{NO-BREAK SPACE}0.001"),
        (formats.fact(True), "yes"),
        (formats.fact(0.00002), "2e-05"),
        (formats.fact([0.9, 0.95]), "0.9, 0.95"),
        (formats.fact([]), "none"),
        (formats.short_id(NAMES[2]), "hf:Qwen/Qwen3-8B@0123456"),
        (formats.words("missing_eos"), "missing EOS"),
    ],
)
def test_numbers_and_names_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected
