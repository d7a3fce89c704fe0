"""From the report's document to what the page shows: means over seeds, the plots that the facts allow, the gaps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.formats import compact, count, duration, fixed, is_number, money, percent, significant, words
from jobs.report.contract import contract_differences, contract_facts
from jobs.report.excerpt import DRAWN_BACKBONES, best_of, curved_cells, shown_pairs
from jobs.report.front import front_plots, hours, memory, throughput
from jobs.report.held_out import held_out_view
from jobs.report.history import history_view
from jobs.report.ladder import ladder_view
from jobs.report.palette import Look, looks
from jobs.report.plots import (
    Plot,
    bytes_plot,
    cost_plot,
    difference_plot,
    evaluation_curves,
    flops_plot,
    loss_curves,
    loss_plot,
    ranking_plot,
    success_curves,
    success_plot,
    time_plot,
)
from jobs.report.rollouts import HEADINGS, agreement_rows, films_of, rollout_rows, score_of
from jobs.report.scope import scope
from jobs.report.tuning import tuning_view
from jobs.results.costs.documents import Costs
from jobs.results.documents import DataFacts, Facts, RankedBackbone, Report, TrainedCell, Verdict, find_verdict

# metric, heading, how it is written, whether a bar helps to compare
Measure = tuple[str, str, Callable[[Any], str], bool]
ACTIONS: tuple[Measure, ...] = (
    ("val_bits_per_action_dimension", "bits per dimension", fixed, False),
    ("val_action_accuracy", "accuracy", percent, False),
    ("val_action_l1", "L1 of [\N{MINUS SIGN}1, 1]", fixed, False),
)
COSTS: tuple[Measure, ...] = (
    ("tokens_per_second_per_device", "tokens/s per device", significant, True),
    ("bytes_per_second_per_device", "bytes/s per device", significant, True),
    ("step_time_s", "step time", duration, False),
    ("peak_memory_gib", "peak memory (GiB)", significant, True),
    ("mfu", "MFU", percent, False),
    ("gpu_hours", "GPU hours in steps", significant, False),
    ("train_time_s", "training time", duration, False),
    ("load_time_s", "load time", duration, False),
    ("checkpoint_stall_s", "checkpoint stall", duration, False),
    ("parameters", "parameters", count, False),
)
ASKED = ("task/", "generation/")  # how metrics begin of lm-evaluation-harness's tasks, and of answers that were written
DROPPED = {
    "too_long": "too long: some backbone would have cut it",
    "no_target": "no target token left to learn",
    "does_not_round_trip": "some tokenizer does not give back the same text",
    "held_out_too_long": "held out, and too long for some backbone with its images",
    "in_validation": "also in the held-out data",
}


@dataclass(frozen=True)
class Cost:
    """One number of a table of means and how far its bar reaches, in per cent of the largest."""

    text: str
    bar: float | None


@dataclass(frozen=True)
class Backbone:
    """One backbone with its cells, in the order of the spec."""

    id: str
    look: Look
    cells: list[TrainedCell]

    @property
    def finished(self) -> list[TrainedCell]:
        return [cell for cell in self.cells if cell["status"] == "SUCCEEDED"]

    def mean(self, metric: str) -> float | None:
        """Mean over the finished seeds that measured it; memory is the largest, as that is what must fit."""
        values = [cell["metrics"].get(metric) for cell in self.finished]
        numbers = [float(value) for value in values if is_number(value)]
        if not numbers:
            return None
        return max(numbers) if metric == "peak_memory_gib" else sum(numbers) / len(numbers)


def report_view(document: Report) -> dict[str, object]:
    """The variables of the template."""
    cells: Sequence[TrainedCell] = document["cells"]
    looked = looks(cell["backbone_id"] for cell in cells)
    runs: dict[str, list[TrainedCell]] = {name: [] for name in looked}
    for cell in cells:
        runs[cell["backbone_id"]].append(cell)
    backbones = {name: Backbone(name, look, runs[name]) for name, look in looked.items()}
    comparison, verdict, ranking = (
        document["comparison"],
        find_verdict(document),
        document.get("ranking") or [],
    )
    is_finetune = comparison["kind"] == "finetune"
    adoptions = {cell["cell_id"]: cell["adoption"] for cell in cells if "adoption" in cell}
    curved = curved_cells(cells, ranking)
    return {
        "comparison": comparison,
        "environment": document["environment"],
        "data": document["data"],
        "certificates": document.get("certificates", {}),  # reports of earlier versions have none
        "cells": cells,
        "adoptions": adoptions,
        "marked": {cell_id for cell_id, one in adoptions.items() if one["learned_more"] or one["learned_fewer"]},
        "unsuccessful": [cell for cell in cells if cell["status"] != "SUCCEEDED"],
        "backbones": backbones,
        "is_finetune": is_finetune,
        "verdict": None if is_finetune else verdict,
        "ranking": [] if is_finetune else ranking,
        "ruled_out": {} if verdict is None else verdict.get("ruled_out", {}),
        "unranked": _unranked(backbones, ranking),
        "seeds": sorted({cell["seed"] for cell in cells}),
        "ranking_plots": [] if is_finetune else _ranking_plots(ranking, verdict, looked),
        "scope": scope(document),
        "pairs": [] if verdict is None else shown_pairs(verdict["pairs"], ranking),
        "drawn_backbones": DRAWN_BACKBONES,
        "curved_runs": len(curved),
        "curved": {cell["backbone_id"]: None for cell in curved},
        "curves": _curve_plots(curved, looked, _currency(document.get("costs"))),
        "held_out": held_out_view(document.get("held_out"), ranking),
        "tasks": _tasks(list(backbones.values())),
        "cost_headings": [heading for _, heading, _, _ in COSTS],
        "action_headings": [heading for _, heading, _, _ in ACTIONS],
        "costs": _means(list(backbones.values()), COSTS),
        "actions": _actions(list(backbones.values())),
        "score": score_of(verdict),
        "rollouts": document.get("rollouts"),
        "rollout_headings": HEADINGS,
        "rollout_rows": rollout_rows(document.get("rollouts")),
        "agreement_rows": agreement_rows(document.get("rollouts")),
        "films": films_of(document.get("rollouts"), [row["backbone_id"] for row in ranking]),
        "spent": document.get("costs"),
        "spent_columns": _spent_columns(document.get("costs")),
        "fronts": []
        if is_finetune
        else _front_plots(document.get("costs"), backbones.values(), ranking, looked, score_of(verdict).name),
        "dropped": _dropped(document["data"]),
        "tokenizer_facts": _columns(document["data"].get("backbones", {})),
        "contract": contract_facts(cells),
        "differences": contract_differences(cells),
        "contract_backbones": _with_contract(cells),
        "ladder": ladder_view(document.get("ladder"), ranking, looked),
        "tuning": tuning_view(document.get("tuning"), looked),
        "history": history_view(document.get("history"), looked),
    }


def _unranked(backbones: Mapping[str, Backbone], ranking: Sequence[RankedBackbone]) -> list[Backbone]:
    ranked = {row["backbone_id"] for row in ranking}
    return [backbone for backbone in backbones.values() if backbone.id not in ranked]


def _ranking_plots(
    ranking: Sequence[RankedBackbone], verdict: Verdict | None, looked: Mapping[str, Look]
) -> list[Plot]:
    if not ranking:
        return []
    drawn = best_of(ranking)
    name = score_of(verdict).name
    plots: list[Plot | None] = [ranking_plot(drawn, looked, name)]
    if verdict is not None:
        best, among = ranking[0]["backbone_id"], {row["backbone_id"] for row in drawn}
        pairs = [pair for pair in verdict["pairs"] if best in (pair["a"], pair["b"])]
        pairs = [pair for pair in pairs if among >= {pair["a"], pair["b"]}]
        margin, level = verdict["margin"] * ranking[0]["score"], percent(1 - verdict["alpha"], 0)
        plots.append(difference_plot(pairs, best, looked, margin, level, name))
    return [plot for plot in plots if plot is not None]


def _currency(costs: Costs | None) -> str | None:
    return None if costs is None else costs["currency"]


def _curve_plots(cells: Sequence[TrainedCell], looked: Mapping[str, Look], currency: str | None) -> list[Plot]:
    plots = []
    if curves := evaluation_curves(cells, "bytes_seen"):
        title, caption = "Quality against data", "Held-out bits per byte; lower is better."
        plots.append(bytes_plot(curves, looked, "bytes", title, caption))
    late = evaluation_curves(cells, "bytes_seen", from_progress=0.5)
    if any(len(curve.x) > 1 for curve in late):
        title, caption = "The same, second half only", "The axis starts where half of the budget is used."
        plots.append(bytes_plot(late, looked, "late", title, caption))
    if curves := evaluation_curves(cells, "train_time_s"):
        caption = "Time in optimizer steps, without evaluation and checkpoints."
        plots.append(time_plot(curves, looked, "Quality against time", caption))
    if curves := evaluation_curves(cells, "flops"):
        plots.append(flops_plot(curves, looked))
    if currency is not None and (curves := evaluation_curves(cells, "cost")):
        plots.append(cost_plot(curves, looked, currency))
    if curves := loss_curves(cells):
        caption = "Neighbouring steps averaged. Per token: compare it between seeds, not between tokenizers."
        plots.append(loss_plot(curves, looked, "Training loss", caption))
    if curves := success_curves(cells):
        caption = "Share of the episodes of rollouts, the same ones at every point; higher is better."
        plots.append(success_plot(curves, looked, "Success in closed loop", caption))
    return plots


def _tasks(backbones: Sequence[Backbone]) -> list[tuple[str, list[str]]]:
    """A row for each figure of a task: its name, and the mean of every backbone. The first row is bits per byte."""
    names = dict.fromkeys(
        metric for one in backbones for cell in one.finished for metric in cell["metrics"] if metric.startswith(ASKED)
    )
    shown = {"val_bits_per_byte": "held-out bits per byte", **{name: name.removeprefix(ASKED[0]) for name in names}}
    return [(text, [compact(one.mean(name)) for one in backbones]) for name, text in shown.items()] if names else []


def _actions(backbones: Sequence[Backbone]) -> list[tuple[Backbone, list[Cost]]]:
    """Empty where no robot's actions were learned."""
    measured = [backbone for backbone in backbones if backbone.mean(ACTIONS[0][0]) is not None]
    return _means(measured, ACTIONS)


def _means(backbones: Sequence[Backbone], measures: Sequence[Measure]) -> list[tuple[Backbone, list[Cost]]]:
    if not backbones:
        return []
    columns = []
    for metric, _, written, has_bar in measures:
        means = [backbone.mean(metric) for backbone in backbones]
        largest = max((mean for mean in means if mean is not None), default=0.0)
        bars = [100 * mean / largest if has_bar and mean is not None and largest > 0 else None for mean in means]
        columns.append([Cost(written(mean), bar) for mean, bar in zip(means, bars, strict=True)])
    return [(backbone, list(row)) for backbone, row in zip(backbones, zip(*columns, strict=True), strict=True)]


def _spent_columns(costs: Costs | None) -> list[tuple[str, dict[str, str]]]:
    """(heading, what stands below it by backbone); none for reports of earlier versions."""
    if costs is None:
        return []
    rows, device, currency = costs["backbones"], costs["device"], costs["currency"]
    columns = [
        (f"{device} hours a run", {row["backbone_id"]: significant(row["device_hours_per_run"]) for row in rows}),
        (f"{device} hours in all", {row["backbone_id"]: significant(row["device_hours"]) for row in rows}),
    ]
    if currency is not None:
        columns.append(("cost a run", {row["backbone_id"]: money(row["cost_per_run"], currency) for row in rows}))
        columns.append(("cost in all", {row["backbone_id"]: money(row["cost"], currency) for row in rows}))
    return columns


def _front_plots(
    costs: Costs | None,
    backbones: Iterable[Backbone],
    ranking: Sequence[RankedBackbone],
    looked: Mapping[str, Look],
    score: str,
) -> list[Plot]:
    peaks, rates = {}, {}
    for backbone in backbones:
        peaks[backbone.id] = backbone.mean("peak_memory_gib")
        rates[backbone.id] = backbone.mean("bytes_per_second_per_device")
    quantities = [*([] if costs is None else [hours(costs)]), memory(peaks), throughput(rates)]
    return front_plots(quantities, ranking, looked, score)


def _dropped(data: DataFacts) -> list[tuple[str, int]]:
    """Empty when the job ended before its data was prepared."""
    return [(DROPPED.get(reason, words(reason)), number) for reason, number in data.get("dropped", {}).items()]


def _columns(rows: Mapping[str, Facts]) -> list[str]:
    return list(dict.fromkeys(key for row in rows.values() for key in row))


def _with_contract(cells: Sequence[TrainedCell]) -> list[str]:
    return list(dict.fromkeys(cell["backbone_id"] for cell in cells if cell["contract"]))
