"""The held-out items by themselves: scores by column, the items that part two backbones, and the file of all items."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_cells import grouped_job, trained

from jobs.driver.kinds.reports import write_report
from jobs.notebook.results import JobResult
from jobs.report.html import render_report
from jobs.results.held_out.facts import SHOWN_ITEMS, SHOWN_TEXT, held_out_facts, shown_text, slicing_columns
from jobs.results.held_out.items import ScoredItems
from jobs.results.judging.metrics import BITS_PER_BYTE, ITEM_BITS_PER_BYTE
from orchestrator.data.examples import Example, Turn
from orchestrator.data.images.files import ImageReader
from orchestrator.data.sources.dataset import held
from orchestrator.data.sources.rows import read_row
from orchestrator.planning.plan import Plan, load_comparison
from orchestrator.training.measurement import load_item_scores, save_item_scores

FIRST, SECOND = "tiny-llama2", "tiny-mistral"
TEXTS = [Example(group=f"g{number % 3}", text="x" * (number + 1)) for number in range(24)]
NO_IMAGES = ImageReader(None, is_checked=False)


def items_of(first: list[float], second: list[float], **columns: list[str | None]) -> ScoredItems:
    """Nats a byte of two backbones on as many items."""
    data, places = held("data", TEXTS[: len(first)]), np.arange(len(first))
    sizes = places + 1
    return ScoredItems(data, places, sizes, {FIRST: np.array(first) * sizes, SECOND: np.array(second) * sizes}, columns)


@given(
    st.lists(
        st.tuples(st.floats(0.1, 9), st.floats(0.1, 9), st.sampled_from(["de", "en", None])), min_size=2, max_size=24
    )
)
@settings(max_examples=60, deadline=None)
def test_the_parts_of_a_column_add_up_and_each_score_is_that_of_its_items(rows: list[tuple]) -> None:
    first, second, languages = (list(column) for column in zip(*rows, strict=True))
    items = items_of(first, second, language=languages)
    for score in (BITS_PER_BYTE, ITEM_BITS_PER_BYTE):
        facts = held_out_facts(items, score, [FIRST, SECOND])
        for one in facts["slices"]:
            assert sum(value["contribution"] for value in one["values"]) == pytest.approx(facts["difference"], abs=1e-9)
            assert sum(value["share"] for value in one["values"]) == pytest.approx(1)
            for name in (FIRST, SECOND):
                whole = sum(value["share"] * value["scores"][name] for value in one["values"])
                everything = score.weights(items.bytes.astype(float)).sum()
                bits = items.nats[name] / np.log(2) / (items.bytes if score is not BITS_PER_BYTE else 1)
                assert whole == pytest.approx(bits.sum() / everything)
        for side, sign in zip(facts["apart"], (1, -1), strict=True):
            assert all(sign * (one["bits_per_byte"][SECOND] - one["bits_per_byte"][FIRST]) > 0 for one in side)


def test_only_columns_with_a_few_values_slice_the_data() -> None:
    columns = {"id": [str(number) for number in range(24)], "one": ["same"] * 24, "part": ["a", None] * 12}
    found = slicing_columns(items_of([1.0] * 24, [2.0] * 24, **columns))
    assert list(found) == ["part", "group"]
    assert set(found["part"]) == {"a", "(none)"}


def test_items_that_part_two_backbones_are_those_with_the_most_bits_between_them() -> None:
    first, second = [1.0] * 24, [1.0] * 24
    second[20], second[3], first[10] = 2.0, 2.5, 3.0
    facts = held_out_facts(items_of(first, second), BITS_PER_BYTE, [FIRST, SECOND])
    assert [[one["item"] for one in side] for side in facts["apart"]] == [[20, 3], [10]]
    assert facts["apart"][0][0]["text"] == "x" * 21 and facts["apart"][0][0]["hash"] == TEXTS[20].content_hash
    assert [one["item"] for one in facts["hardest"][:3]] == [10, 3, 20] and len(facts["hardest"]) == SHOWN_ITEMS


def test_what_is_shown_of_an_item_is_what_is_scored_and_is_cut() -> None:
    turns = (Turn("user", "asked"), Turn("assistant", "answered"))
    assert shown_text(Example(group="g", turns=turns)) == "answered"
    assert len(shown_text(Example(group="g", text="long " * 999))) <= SHOWN_TEXT + 2


def test_a_row_keeps_its_short_columns_and_its_content_is_the_same_without_them() -> None:
    more = {"language": "de", "id": 7, "checked": True, "weight": 0.5, "tags": ["a"], "story": "x" * 81, "none": " "}
    row = {"prompt": "a", "completion": "b"}
    example = read_row(row | more, "prompt_completion", (), "file", NO_IMAGES)
    assert example.columns == (("language", "de"), ("id", "7"), ("checked", "true"))
    assert example == read_row(row, "prompt_completion", (), "file", NO_IMAGES)
    assert read_row(row | {"source": "half \ud800"}, "prompt_completion", (), "file", NO_IMAGES).columns == (
        ("source", "half ?"),
    )


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    job = grouped_job(tmp_path, backbones=[FIRST, SECOND], seeds=2)
    file = tmp_path / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [row | {"language": ["<de>", "en"][number % 2]} for number, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_comparison(job.spec)


def test_a_report_has_the_slices_and_a_file_of_every_item_with_the_columns_of_the_data(plan: Plan) -> None:
    results = trained(plan, plan.cells, {FIRST: 2.0, SECOND: 2.5})
    german = [place for place in range(len(plan.validation)) if place % 2 == 0]
    for result in results:  # the second is worse on German alone
        if result.backbone_id == SECOND:
            scores = load_item_scores(Path(result.folder))
            nats = np.where(np.isin(scores.items, german), scores.bytes * 3.0, scores.bytes * 2.0 * np.log(2))
            save_item_scores(Path(result.folder), type(scores)(scores.items, nats, scores.tokens, scores.bytes))
    document = write_report(plan, results, "backbone compare", None).document

    slices = {one["column"]: one for one in document["held_out"]["slices"]}
    assert slices["language"]["driver"] == "<de>" and "group" in slices
    page = plan.files.report_page.read_text(encoding="utf-8")
    assert "comes from “&lt;de&gt;”" in page and "<de>" not in page
    assert "The hardest for all" in page
    assert render_report(document) == page

    table = pq.read_table(plan.files.items).to_pydict()
    assert table["item"] == list(range(len(plan.validation)))
    assert table["data.language"][:2] == ["<de>", "en"] and table["group"][:2] == ["g0", "g1"]
    frame = JobResult(document, plan.folder).items
    assert len(frame) == 4 * len(plan.validation)
    for (backbone_id, item), rows in frame.groupby(["backbone_id", "item"]):
        assert rows["bits_per_byte"].mean() == pytest.approx(table[f"bits_per_byte/{backbone_id}"][item])
        assert set(rows["data.language"]) == {table["data.language"][item]}


def test_held_out_data_that_changed_is_said_and_the_verdict_stands(plan: Plan, tmp_path: Path) -> None:
    results = trained(plan, plan.cells, {FIRST: 2.0, SECOND: 2.5})
    (tmp_path / "validation.jsonl").write_text('{"prompt": "other", "completion": "data"}\n')
    document = write_report(plan, results, "backbone compare", None).document
    assert "changed since the job was planned" in document["held_out"]["note"]
    assert document["verdict"]["outcome"] and "could not be read again" in plan.files.report_page.read_text()
