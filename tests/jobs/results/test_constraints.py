"""Constraints take candidates out before they are ranked: by what is declared, measured, or not known."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_documents import NAMES, comparison_document
from scored_cells import grouped_job, trained
from small_spec import write_small_spec

from backbones.registry import get_spec
from jobs.cli.plan_tables import plan_document, print_plan
from jobs.cli.tables import print_ranking
from jobs.report.html import render_report
from jobs.results.finished import judge_cells
from jobs.results.judging.constraints import find_ruled_out
from orchestrator.planning.plan import load_comparison
from orchestrator.results import CellResult, CellStatus, Measurement
from orchestrator.spec_files.spec import Comparison, Constraints, VerdictRule

LLAMA = replace(get_spec("tiny-llama2"), licence="llama2", context_length=4096)
MISTRAL = replace(get_spec("tiny-mistral"), licence="Apache-2.0", context_length=32768)
NOBODY_KNOWS = replace(get_spec("tiny-qwen"), licence="unknown", context_length=0)


def run(backbone_id: str, seed: int = 0, status: CellStatus = CellStatus.SUCCEEDED, **metrics: float | None) -> Any:
    measured = Measurement(metrics, [], {}, {}, "items.parquet")
    result = CellResult(f"{backbone_id}-s{seed}", backbone_id, seed, status, attempts=1, folder="")
    return replace(result, measurement=measured if status is CellStatus.SUCCEEDED else None)


@pytest.mark.parametrize(
    ("constraints", "reasons"),
    [
        ({}, {}),
        (
            {"licence": ("apache-2.0", "mit")},
            {
                "tiny-llama2": ["licence llama2, allowed apache-2.0 and mit"],
                "tiny-qwen": ["licence unknown, allowed apache-2.0 and mit"],
            },
        ),
        (
            {"licence": ("unknown", "llama2", "apache-2.0")},
            {"tiny-qwen": ["licence unknown, allowed unknown, llama2 and apache-2.0"]},
        ),
        (
            {"context": 32768},
            {
                "tiny-llama2": ["context 4,096 tokens, at least 32,768"],
                "tiny-qwen": ["context unknown, at least 32,768"],
            },
        ),
    ],
)
def test_what_is_declared_rules_out_before_anything_runs_and_what_is_not_known_does_not_pass(
    constraints: dict[str, Any], reasons: dict[str, list[str]]
) -> None:
    assert find_ruled_out(Constraints(**constraints), (LLAMA, MISTRAL, NOBODY_KNOWS)) == reasons


def test_memory_is_that_of_the_largest_run_and_speed_that_of_their_mean() -> None:
    runs = [
        run("tiny-llama2", seed, peak_memory_gib=peak, tokens_per_second_per_device=rate)
        for seed, (peak, rate) in enumerate([(20.0, 900.0), (25.0, 1300.0)])
    ]
    assert find_ruled_out(Constraints(memory_gib=25.0, tokens_per_second=1100.0), (LLAMA, MISTRAL), runs) == {}
    assert find_ruled_out(Constraints(memory_gib=24.0, tokens_per_second=1200.0), (LLAMA, MISTRAL), runs) == {
        "tiny-llama2": ["peak memory 25.0 GiB, at most 24.0", "speed 1,100 tokens/s per device, at least 1,200"]
    }


@pytest.mark.parametrize("metrics", [{}, {"peak_memory_gib": None}, {"peak_memory_gib": 0.0}])
def test_what_one_run_did_not_measure_does_not_pass(metrics: dict[str, float | None]) -> None:
    runs = [run("tiny-llama2", 0, peak_memory_gib=1.0), run("tiny-llama2", 1, **metrics)]
    found = find_ruled_out(Constraints(memory_gib=24.0), (LLAMA,), runs)
    assert found == {"tiny-llama2": ["peak memory not measured, at most 24.0"]}


def test_who_did_not_finish_is_missing_for_that_reason_alone() -> None:
    assert find_ruled_out(Constraints(memory_gib=1.0), (LLAMA,), [run("tiny-llama2", 0, CellStatus.DIVERGED)]) == {}


@given(
    st.lists(st.tuples(st.sampled_from([LLAMA, MISTRAL]), st.floats(1, 99), st.floats(1, 99)), min_size=1),
    st.tuples(st.floats(1, 99), st.floats(1, 99)),
    st.tuples(st.floats(1, 99), st.floats(1, 99)),
)
def test_a_tighter_constraint_lets_nobody_in(runs: Any, one: tuple[float, float], other: tuple[float, float]) -> None:
    results = [
        run(spec.backbone_id, seed, peak_memory_gib=peak, tokens_per_second_per_device=rate)
        for seed, (spec, peak, rate) in enumerate(runs)
    ]
    memory, speed = sorted((one[0], other[0])), sorted((one[1], other[1]))
    loose = Constraints(memory_gib=memory[1], tokens_per_second=speed[0])
    tight = Constraints(memory_gib=memory[0], tokens_per_second=speed[1])
    out = [set(find_ruled_out(rule, (LLAMA, MISTRAL), results)) for rule in (loose, tight)]
    assert out[0] <= out[1]


def judged(folder: Path, peaks: dict[str, float], **constraints: Any) -> dict[str, Any]:
    backbones = ["tiny-llama2", "tiny-mistral", "tiny-qwen"]
    plan = load_comparison(grouped_job(folder, backbones=backbones, seeds=2, verdict={"constraints": constraints}).spec)
    means = {"tiny-llama2": 2.0, "tiny-mistral": 3.0, "tiny-qwen": 4.0}
    results = [
        replace(result, measurement=Measurement({"peak_memory_gib": peaks[result.backbone_id]}, [], {}, {}, ""))
        for result in trained(plan, plan.cells, means)
    ]
    assert isinstance(plan.job, Comparison)
    return dict(judge_cells(plan, plan.job.verdict, results))


PEAKS = {"tiny-llama2": 30.0, "tiny-mistral": 20.0, "tiny-qwen": 10.0}


def test_the_best_of_those_that_are_left_wins_and_the_sentence_says_who_is_not(tmp_path: Path) -> None:
    free = judged(tmp_path / "free", PEAKS)
    assert free["winner"] == "tiny-llama2" and "ruled_out" not in free
    verdict = judged(tmp_path / "small", PEAKS, memory_gib=24)
    assert verdict["winner"] == "tiny-mistral"
    assert [row["backbone_id"] for row in verdict["ranking"]] == ["tiny-mistral", "tiny-qwen"]
    assert verdict["ruled_out"] == {"tiny-llama2": ["peak memory 30.0 GiB, at most 24.0"]}
    assert verdict["sentence"].endswith(
        " Ruled out by verdict.constraints: tiny-llama2 (peak memory 30.0 GiB, at most 24.0)."
    )


def test_where_one_or_nobody_is_left_there_is_no_verdict_and_the_reason_stands_there(tmp_path: Path) -> None:
    one = judged(tmp_path / "one", PEAKS, memory_gib=15)
    assert one["outcome"] == "no verdict" and one["sentence"].startswith("No verdict: one backbone, tiny-qwen;")
    nobody = judged(tmp_path / "nobody", PEAKS, memory_gib=5)
    assert nobody["outcome"] == "no verdict" and nobody["ranking"] == []
    assert nobody["sentence"].startswith("No verdict: no finished backbone meets the constraints. Ruled out by")


def test_the_page_says_who_was_ruled_out_and_what_the_answer_holds_for() -> None:
    document = comparison_document()
    document["verdict"]["ruled_out"] = {NAMES[0]: ["licence llama2, allowed mit", "context 9 tokens, at least 10"]}
    document["ranking"] = document["ranking"][1:]
    document["comparison"]["spec"]["verdict"] = {"constraints": {"licence": ["mit"], "context": 10, "memory_gib": 24.0}}
    page = render_report(document)
    assert "ruled out: licence llama2, allowed mit; context 9 tokens, at least 10</td>" in page
    assert (
        "only backbones with at most 24.0 GiB of memory on a device in training, a context of at least 10 tokens and a "
        "licence among mit are ranked" in page
    )
    document["ranking"] = []
    assert "No finished backbone meets the constraints, so there is nothing to rank." in render_report(document)


def test_a_terminal_is_told_who_was_ruled_out_and_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    document: Any = comparison_document()
    document["verdict"]["ruled_out"] = {NAMES[0]: ["licence llama2, allowed mit"]}
    print_ranking(document)
    shown = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert f"ruled out: {NAMES[0]}: licence llama2, allowed mit\n" in shown
    assert re.search(r"spent: [\d.]+ GPU hours, [\d.]+ USD, every attempt counted\n", shown)


def test_a_plan_says_whom_it_would_train_in_vain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = load_comparison(write_small_spec(tmp_path, verdict={"constraints": {"context": 1_000_000}}))
    document = plan_document(plan)
    assert list(document["ruled_out"]) == ["tiny-llama2", "tiny-qwen"]
    print_plan(plan)
    assert "ruled out  tiny-llama2: context " in capsys.readouterr().out


def test_constraints_are_part_of_no_cell_and_an_unset_one_of_no_dump(tmp_path: Path) -> None:
    assert VerdictRule().model_dump(mode="json")["constraints"] == {}
    plain = load_comparison(write_small_spec(tmp_path / "plain"))
    wanting = load_comparison(write_small_spec(tmp_path / "wanting", verdict={"constraints": {"licence": ["mit"]}}))
    assert [cell.cell_id for cell in plain.cells] == [cell.cell_id for cell in wanting.cells]
    dumped = json.loads(wanting.job.model_dump_json())["verdict"]["constraints"]
    assert dumped == {"licence": ["mit"]}
