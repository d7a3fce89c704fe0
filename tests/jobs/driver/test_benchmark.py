"""The benchmark: what is planned, what the figures are made of, and one real run on two workers.

Over 300 lines: the figures of one document, from the entry of a spool to the page.
"""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from test_report import Page

from jobs.cli.benchmark_tables import print_benchmark
from jobs.driver.kinds.benchmark import HELD_OUT_EXAMPLES, TRAINING_EXAMPLES, BenchmarkKind, load_benchmark, sample
from jobs.driver.launch import launch
from jobs.formats import duration
from jobs.report.benchmark import render_benchmark
from jobs.results.benchmark import benchmark_document, headline
from jobs.results.throughput import (
    CheckpointWrite,
    Figures,
    Spread,
    Startup,
    checkpoint_writes,
    figures,
    find_faults,
    find_startup,
    measured_steps,
    median_interval,
    same_time_as,
    spread,
)
from orchestrator.data.examples import Example
from orchestrator.data.sources.dataset import held
from orchestrator.errors import InputError
from orchestrator.planning.plan import Plan, load_comparison
from orchestrator.results import CellResult, CellStatus, Measurement, find_cell_result
from orchestrator.spec_files.spec import Benchmark
from orchestrator.tracking.spool import Entry, EntryKind, note_phase, read_spool
from orchestrator.training.rate import passed_a_mark

WORKERS = 2
STEADY = Spread(0.5, 0.5, 0.5, 4, None)


def step(number: int, time_ms: int, time_s: float = 0.5, attempt: int = 1) -> Entry:
    """Every step holds 10 examples, 100 tokens and 400 bytes."""
    fields = {
        "step": number,
        "loss": 1.0,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "train_bits_per_byte": 1.0,
        "examples_seen": 10 * number,
        "tokens_seen": 100 * number,
        "bytes_seen": 400 * number,
        "progress": number / 6,
        "step_time_s": time_s,
        "tokens_per_second_per_device": 100 / time_s / WORKERS,
        "peak_memory_gib": 1.0,
    }
    return Entry(EntryKind.STEP, time_ms, attempt, fields)


def phase(name: str, time_ms: int, attempt: int = 1, **details: Any) -> Entry:
    return Entry(EntryKind.PHASE, time_ms, attempt, {"phase": name, **details})


def opening(time_ms: int = 0, attempt: int = 1) -> list[Entry]:
    """The workers run after 3 s, the model stands 2 s later."""
    return [
        phase("starting", time_ms, attempt),
        phase("loading", time_ms + 3000, attempt, load_average=0.5, cores=4),
        phase("training", time_ms + 5000, attempt, step=0, model_s=1.5, data_s=0.25),
    ]


def write(number: int, time_ms: int, stall_s: float) -> list[Entry]:
    done = {"step": number, "stall_s": stall_s, "checkpoint_bytes": 1000 * number}
    return [
        phase("checkpointing", time_ms, step=number),
        phase("training", time_ms + round(1000 * stall_s), **done),
    ]


# Six steps, the first one slow, 100 ms apart; a checkpoint of 2 s after step 4 and one of 1 s at the end.
SPOOL = [
    *opening(),
    step(1, 10_000, 4.0),
    step(2, 10_600),
    step(3, 11_200),
    step(4, 11_900, 0.6),
    *write(4, 11_900, 2.0),
    step(5, 14_500),
    step(6, 15_100),
    *write(6, 15_100, 1.0),
]


# --- figures ---


def test_warm_up_steps_are_in_no_figure() -> None:
    found = figures(SPOOL, warm_up=1, workers=WORKERS)
    assert found.step_times_s == ((2, 0.5), (3, 0.5), (4, 0.6), (5, 0.5), (6, 0.5))
    assert found.step_time_s is not None
    assert found.step_time_s.median == 0.5
    assert found.step_time_s.high == pytest.approx(0.56)  # between the fourth, 0.5, and the fifth, 0.6: 0.6 of the way
    assert found.step_time_s.low == 0.5
    everything = figures(SPOOL, warm_up=0, workers=WORKERS)
    assert len(everything.step_times_s) == 6


def test_rates_are_those_of_single_steps_over_all_workers() -> None:
    found = figures(SPOOL, warm_up=1, workers=WORKERS)
    assert found.tokens_per_second is not None and found.tokens_per_second.median == pytest.approx(100 / 0.5)
    assert found.bytes_per_second is not None and found.bytes_per_second.median == pytest.approx(400 / 0.5)
    assert found.examples_per_second is not None and found.examples_per_second.median == pytest.approx(10 / 0.5)
    assert found.tokens_per_second.low == pytest.approx(0.6 * 100 / 0.6 + 0.4 * 100 / 0.5)


def test_the_time_between_steps_leaves_out_what_a_checkpoint_took() -> None:
    steps = measured_steps(SPOOL, warm_up=1)
    assert [step.gap_s for step in steps] == [pytest.approx(gap) for gap in (0.1, 0.1, 0.1)] + [
        None,
        pytest.approx(0.1),
    ]


def test_a_gap_shorter_than_the_clock_can_tell_is_never_negative() -> None:
    (_, found) = measured_steps([step(1, 1000, 0.4), step(2, 1400, 0.4004)], warm_up=0)
    assert found.gap_s == 0.0


def test_each_attempt_warms_up_anew() -> None:
    spool = [*opening(), step(1, 9000), step(2, 9600), *opening(20_000, 2)]
    spool += [step(number, 30_000 + 600 * number, attempt=2) for number in (3, 4, 5)]
    assert [one.metrics.step for one in measured_steps(spool, warm_up=1)] == [2, 4, 5]
    assert [one.bytes for one in measured_steps(spool, warm_up=1)] == [400, 400, 400]
    assert measured_steps(spool, warm_up=1)[1].gap_s == pytest.approx(0.1)


def test_with_no_step_after_warm_up_nothing_is_known() -> None:
    found = figures(SPOOL, warm_up=6, workers=WORKERS)
    assert found.step_time_s is found.tokens_per_second is found.bytes_per_second is found.gap_s is None
    assert find_faults(found, asked=2, attempts=1) == ["only 0 of 2 steps were measured"]


def test_the_median_is_not_moved_by_one_step_that_hung() -> None:
    calm = [1.0, 1.1, 0.9, 1.0, 1.0]
    assert spread([*calm, 60.0]) is not None
    found = spread([*calm, 60.0])
    assert found is not None and found.median == pytest.approx(1.0)


def test_percentiles_lie_between_their_neighbours() -> None:
    found = spread([float(value) for value in range(11)])
    assert found == Spread(5.0, 1.0, 9.0, 11, (1.0, 9.0))
    assert spread([]) is None
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 1, None)


@pytest.mark.parametrize(("count", "cut"), [(5, None), (6, 1), (9, 2), (11, 2), (20, 6), (100, 40)])
def test_the_interval_of_a_median_is_the_tabled_one(count: int, cut: int | None) -> None:
    """The k-th smallest and largest of n, as sign test tables give them for 95 %."""
    values = [float(value) for value in range(1, count + 1)]
    assert median_interval(values) == (None if cut is None else (cut, count + 1 - cut))


def test_the_way_to_the_first_step_is_split_by_phase() -> None:
    assert find_startup(SPOOL) == Startup(
        workers_s=3.0, model_s=1.5, data_s=0.25, load_s=2.0, first_step_s=10.0, load_average=0.5, cores=4
    )
    assert find_startup(opening()) is None


def test_without_a_recorded_request_the_workers_start_is_unknown() -> None:
    found = find_startup(SPOOL[1:])
    assert found is not None and found.workers_s is None
    assert found.first_step_s == 7.0


def test_the_start_is_that_of_the_attempt_which_made_the_first_step() -> None:
    died = [phase("starting", 0), phase("loading", 1000, load_average=9.0, cores=1)]
    found = find_startup([*died, *opening(50_000, 2), step(1, 58_000, attempt=2)])
    assert found is not None and (found.first_step_s, found.load_average) == (8.0, 0.5)


def test_every_checkpoint_has_its_stall_and_size() -> None:
    assert checkpoint_writes(SPOOL) == (CheckpointWrite(4, 2.0, 4000), CheckpointWrite(6, 1.0, 6000))
    assert figures(SPOOL, 1, WORKERS).stall_s == 1.5


def test_a_driver_can_note_when_it_asked_for_the_workers(tmp_path: Path) -> None:
    note_phase(tmp_path, 2, "starting")
    (entry,) = read_spool(tmp_path)
    assert (entry.kind, entry.attempt, entry.fields) == ("phase", 2, {"phase": "starting"})


# --- faults ---


def quiet(**changes: Any) -> Figures:
    base = figures(SPOOL, warm_up=1, workers=WORKERS)
    return replace(base, step_time_s=STEADY, **changes)


def test_a_quiet_machine_and_even_steps_give_no_warning() -> None:
    assert find_faults(quiet(), asked=5, attempts=1) == []


def test_what_speaks_against_the_figures_is_said() -> None:
    startup = find_startup(SPOOL)
    assert startup is not None
    busy = quiet(startup=replace(startup, load_average=5.1))
    (fault,) = find_faults(busy, asked=5, attempts=1)
    assert fault == "the machine was busy before it began: load average 5.1 on 4 cores"
    (fault,) = find_faults(replace(quiet(), step_time_s=Spread(1.0, 0.9, 1.15, 20, None)), asked=5, attempts=1)
    assert "they span 25% of the median" in fault
    (fault,) = find_faults(quiet(), asked=5, attempts=2)
    assert "it was restarted" in fault


def test_cells_that_trained_at_the_same_time_are_told_of_each_other() -> None:
    spans = {"a": (0, 10), "b": (9, 20), "c": (20, 30), "d": None}
    assert same_time_as("a", spans) == ["b"]
    assert same_time_as("b", spans) == ["a"]
    assert same_time_as("c", spans) == same_time_as("d", spans) == []
    assert figures(SPOOL, 1, WORKERS).span_ms == (10_600, 15_100)


# --- the plan ---


def write_comparison(folder: Path, **changes: Any) -> Path:
    for split, rows in (("train", 60), ("validation", 40)):
        lines = [
            json.dumps(
                {"prompt": f"{split} question {n}", "completion": f"answer number {n} of many, {'so ' * (n % 9)}"}
            )
            for n in range(rows)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = {
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", "format": "prompt_completion"},
        "sequence_length": 128,
        "global_batch_size": 4,
        "budget": {"kind": "bytes", "amount": 5e6},
        "precision": "fp32",
        "activation_checkpointing": False,
    }
    spec = {
        "name": "fast",
        "backbones": ["tiny-llama2", "tiny-qwen"],
        "seeds": [7, 8],
        "storage": str(folder / "runs"),
        "recipe": recipe,
        "placement": {"workers": WORKERS},
        **changes,
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    return folder / "compare.yaml"


def test_a_benchmark_is_the_comparison_with_one_seed_and_few_steps(tmp_path: Path) -> None:
    spec = write_comparison(tmp_path)
    comparison, plan = load_comparison(spec), load_benchmark(spec, warm_up=2, measured=6)
    recipe = plan.job.recipe
    assert plan.kind == "benchmark"
    assert [(cell.backbone.backbone_id, cell.seed) for cell in plan.cells] == [("tiny-llama2", 7), ("tiny-qwen", 7)]
    assert (recipe.budget.kind, recipe.budget.amount) == ("steps", 8)
    assert [cell.recipe for cell in plan.cells] == [recipe, recipe]
    assert plan.forecasts == comparison.forecasts[:2]
    assert recipe.model_copy(update=dict.fromkeys(("budget", "evaluate", "checkpoint"))) == (
        comparison.job.recipe.model_copy(update=dict.fromkeys(("budget", "evaluate", "checkpoint")))
    )
    assert len(plan.validation) == HELD_OUT_EXAMPLES
    assert {cell.validation_digest for cell in plan.cells} == {plan.validation.digest}


def test_no_id_of_a_benchmark_is_one_of_the_comparison_or_of_another_measurement(tmp_path: Path) -> None:
    spec = write_comparison(tmp_path)
    plans = [load_comparison(spec), load_benchmark(spec), load_benchmark(spec), load_benchmark(spec, measured=21)]
    cells = [cell.cell_id for plan in plans for cell in plan.cells]
    assert len(cells) == len(set(cells)) == 4 + 2 + 2 + 2
    assert len({plan.job_id for plan in plans}) == 4


def test_a_named_occurrence_is_the_same_measurement_again(tmp_path: Path) -> None:
    spec = write_comparison(tmp_path)
    one, other = (load_benchmark(spec, occurrence="nightly/2026-11-22T02:00Z") for _ in range(2))
    assert (one.job_id, one.cells) == (other.job_id, other.cells)
    assert {cell.occurrence for cell in one.cells} == {"nightly/2026-11-22T02:00Z"}


@pytest.mark.parametrize(("warm_up", "measured"), [(0, 3), (5, 20), (2, 6), (1, 7), (3, 3), (10, 101)])
def test_one_checkpoint_lies_inside_the_measured_steps(tmp_path: Path, warm_up: int, measured: int) -> None:
    plan = load_benchmark(write_comparison(tmp_path), warm_up, measured)
    total, every = warm_up + measured, plan.job.recipe.checkpoint.every
    marks = [n for n in range(1, total) if passed_a_mark((n - 1) / total, n / total, every)]
    assert len(marks) == 1 or warm_up > measured
    assert all(warm_up < mark < total for mark in marks[-1:])


@pytest.mark.parametrize("numbers", [(0, 2), (-1, 20)])
def test_too_few_steps_are_refused(tmp_path: Path, numbers: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="--steps must be at least 3"):
        load_benchmark(write_comparison(tmp_path), *numbers)


def test_a_sample_is_spread_over_the_whole_data() -> None:
    data = held("-", (Example("g", text=str(number)) for number in range(TRAINING_EXAMPLES * 3)))
    taken = [int(example.text) for example in sample(data, TRAINING_EXAMPLES).read()]
    assert taken == list(range(0, TRAINING_EXAMPLES * 3, 3))
    assert sample(data, TRAINING_EXAMPLES * 3) is data


# --- the words ---


def measured_cell(
    backbone_id: str, speed: float, *, faults: tuple[str, ...] = (), half: float = 10.0
) -> dict[str, Any]:
    rate = {"median": speed, "low": speed - half, "high": speed + half, "count": 20}
    rate["sure"] = [speed - half / 2, speed + half / 2]
    return {
        "backbone_id": backbone_id,
        "faults": list(faults),
        "figures": {"bytes_per_second_per_device": rate},
    }


def test_the_fastest_is_named_only_where_the_medians_are_apart() -> None:
    apart = [measured_cell("slow", 500), measured_cell("quick", 1000)]
    assert (
        headline(apart)
        == "quick is the fastest: 1.00\N{NO-BREAK SPACE}kB of text a second per device, 2.00 times slow."
    )
    near = headline([measured_cell("a", 995), measured_cell("b", 1000), measured_cell("c", 500)])
    assert near.startswith("b and a cannot be told apart")
    assert "with the reservations below" in headline([measured_cell("a", 10, half=1, faults=("busy",)), apart[1]])
    assert headline([{**apart[0], "figures": None}]) == "No run finished, so nothing was measured."


# --- what a GPU shows ---


def gpu_cell(folder: Path, device: str, precision: str) -> dict[str, Any]:
    """The document's first cell for the spool above, as if it had been written on such devices."""
    spec = yaml.safe_load(write_comparison(folder).read_text())
    spec["placement"]["gpus_per_worker"] = 1
    spec["recipe"]["precision"] = precision
    (folder / "compare.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    plan = load_benchmark(folder / "compare.yaml", warm_up=1, measured=5)
    lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in SPOOL)
    (folder / "cell" / "spool").mkdir(parents=True)
    (folder / "cell" / "spool" / "steps.jsonl").write_text(lines, encoding="utf-8")
    metrics = {"peak_memory_gib": 61.5, "peak_host_memory_gib": 3.5}
    measurement = Measurement(metrics, [], {"packages": {}}, {"device": device, "workers": WORKERS}, "")
    results = [
        CellResult(c.cell_id, c.backbone.backbone_id, c.seed, CellStatus.SUCCEEDED, 1, None, measurement)
        for c in plan.cells
    ]
    document = benchmark_document(plan, [replace(one, folder=str(folder / "cell")) for one in results], "-")
    flops = plan.forecasts[0].flops_per_token
    return {**document["cells"][0]["figures"], "flops": flops, "metrics": document["metrics"]["tiny-llama2"]}


def test_mfu_divides_by_the_peak_of_the_device(tmp_path: Path) -> None:
    found = gpu_cell(tmp_path, "NVIDIA H100 80GB HBM3", "bf16")
    assert found["tokens_per_second_per_device"]["median"] == pytest.approx(100 / 0.5 / WORKERS)
    assert found["mfu"] == pytest.approx(100 / 0.5 / WORKERS * found["flops"] / 989e12)
    assert (found["peak_device_memory_gib"], found["peak_host_memory_gib"]) == (61.5, 3.5)
    assert found["metrics"]["mfu"] == found["mfu"]
    assert found["metrics"]["step_time_s"] == 0.5
    assert found["metrics"]["checkpoint_stall_s"] == 1.5


@pytest.mark.parametrize(("device", "precision"), [("NVIDIA X9000", "bf16"), ("NVIDIA H100 80GB HBM3", "fp32")])
def test_mfu_is_never_a_guess(tmp_path: Path, device: str, precision: str) -> None:
    found = gpu_cell(tmp_path, device, precision)
    assert found["mfu"] is None
    assert "mfu" not in found["metrics"]


# --- one real run ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, no_ray: None) -> tuple[Plan, dict[str, Any], list[CellResult]]:
    """Two tiny backbones, 2 + 6 steps each on two gloo workers, as the command runs them."""
    folder = tmp_path_factory.mktemp("benchmark")
    plan = load_benchmark(write_comparison(folder), warm_up=2, measured=6)
    outcome = launch(plan, Console(quiet=True), certify=False)
    assert outcome.exit_code == 0
    results = [find_cell_result(plan.cell_folder(cell)) for cell in plan.cells]
    found = [result for result in results if result is not None]
    document = BenchmarkKind().conclude(plan, found, "backbone benchmark compare.yaml").document
    return plan, document, found


def test_a_real_run_has_every_figure(finished: tuple[Plan, dict[str, Any], list[CellResult]]) -> None:
    _, document, _ = finished
    assert [cell["status"] for cell in document["cells"]] == ["SUCCEEDED", "SUCCEEDED"]
    for cell in document["cells"]:
        found = cell["figures"]
        assert [number for number, _ in found["step_times_s"]] == [3, 4, 5, 6, 7, 8]
        for name in ("tokens_per_second", "bytes_per_second", "examples_per_second", "step_time_s"):
            assert 0 < found[name]["low"] <= found[name]["median"] <= found[name]["high"]
            assert found[name]["count"] == 6
        total, device = found["tokens_per_second"]["median"], found["tokens_per_second_per_device"]["median"]
        assert total == pytest.approx(WORKERS * device)
        assert [one["step"] for one in found["checkpoints"]] == [5, 8]
        assert all(one["stall_s"] > 0 for one in found["checkpoints"])
        assert found["checkpoint_bytes"] > 12 * cell["contract"]["parameters"], "weights and two moments in fp32"
        assert found["mfu"] is None, "the peak of a CPU is not known"
        assert found["peak_device_memory_gib"] is None
        assert 0.1 < found["peak_host_memory_gib"] < 8
        startup = found["startup"]
        assert 0 < startup["model_s"] + startup["data_s"] <= startup["load_s"] + 0.01
        assert startup["load_s"] < startup["first_step_s"]


def test_its_checkpoints_are_gone_and_its_files_stand(finished: tuple[Plan, dict[str, Any], list[CellResult]]) -> None:
    plan, document, _ = finished
    assert not any((plan.cell_folder(cell) / "checkpoints").exists() for cell in plan.cells)
    assert json.loads((plan.folder / "benchmark.json").read_text())["benchmark"] == document["benchmark"]
    page = Page((plan.folder / "benchmark.html").read_text())
    assert page.open == []
    assert "Text per second and device" in page.text
    medians = [duration(cell["figures"]["step_time_s"]["median"]) for cell in document["cells"]]
    assert all(" ".join(median.split()) in page.text for median in medians)


def test_its_figures_do_not_change_when_they_are_read_again(
    finished: tuple[Plan, dict[str, Any], list[CellResult]],
) -> None:
    plan, document, results = finished
    assert benchmark_document(plan, results, "backbone benchmark compare.yaml")["cells"] == document["cells"]


def test_the_page_fetches_nothing_and_shows_a_run_that_failed(
    finished: tuple[Plan, dict[str, Any], list[CellResult]],
) -> None:
    plan, _, results = finished
    failed = replace(results[1], status=CellStatus.OUT_OF_MEMORY, measurement=None, failure="<b>no room</b>")
    document = benchmark_document(plan, [results[0], failed], "-")
    kept = copy.deepcopy(document)
    html = render_benchmark(document)
    page = Page(html)
    assert document == kept
    assert page.open == []
    assert "1 of 2 runs did not succeed" in page.text
    assert "<b>no room" not in html
    assert not [url for url in page.values_of("src") + page.values_of("href") if not url.startswith(("#", "data:"))]
    nothing = benchmark_document(plan, [replace(one, measurement=None) for one in results], "-")
    assert "nothing was measured" in Page(render_benchmark(nothing)).text


def test_the_terminal_shows_each_backbone_and_how_to_see_this_measurement_again(
    finished: tuple[Plan, dict[str, Any], list[CellResult]], capsys: pytest.CaptureFixture[str]
) -> None:
    plan, document, _ = finished
    assert isinstance(plan.job, Benchmark)
    print_benchmark(document, Console(width=200))
    shown = capsys.readouterr().out
    assert "6 steps after 2 of warm-up" in shown
    assert shown.count("tiny-llama2") >= 2 and shown.count("tiny-qwen") >= 2
    assert f"--occurrence {plan.job.occurrence}" in shown
    print_benchmark(
        {**document, "cells": [{**cell, "figures": None, "faults": []} for cell in document["cells"]]}, Console()
    )
    assert capsys.readouterr().out.startswith("the same command measures anew"), "no table of nothing"
