"""A benchmark as a page: how fast each backbone trains, how much that varies, and what surrounds the steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from jobs.formats import byte_scale, duration, short_id, significant, size
from jobs.report.html import environment
from jobs.report.palette import COLOURS, INK, LINE, MUTED, Look, looks
from jobs.report.plots import HEIGHT_OF_AXIS, ROW, Plot, styled_axes
from jobs.report.svg import inline_svg
from jobs.results.benchmark_documents import BenchmarkReport, MeasuredCell

Rate = Literal["bytes_per_second_per_device", "tokens_per_second_per_device", "step_time_s"]

BAR = 0.22  # half the height of a bar, in rows


@dataclass(frozen=True)
class Bar:
    """One backbone in a bar plot: the median, and the range of 80 % of its steps."""

    backbone_id: str
    median: float
    low: float
    high: float
    text: str


def render_benchmark(document: BenchmarkReport) -> str:
    """The page; the same document always gives the same text."""
    cells = document["cells"]
    look_of = looks(cell["backbone_id"] for cell in cells)
    return (
        environment()
        .get_template("benchmark.html.j2")
        .render(
            colours=COLOURS,
            comparison=document["comparison"],
            benchmark=document["benchmark"],
            environment=document["environment"],
            sentence=document["verdict"]["sentence"],
            cells=cells,
            measured=[cell for cell in cells if cell["figures"]],
            unsuccessful=[cell for cell in cells if cell["status"] != "SUCCEEDED"],
            looks=look_of,
            plots=benchmark_plots(cells, look_of),
        )
    )


def benchmark_plots(cells: Sequence[MeasuredCell], look_of: Mapping[str, Look]) -> list[Plot]:
    """A bar plot for each figure that has a spread; none where no cell was measured."""
    texts = _bars(cells, "bytes_per_second_per_device", size)
    scale, unit = byte_scale(max((bar.median for bar in texts), default=1.0))
    steps = "A bar is the median step; the line spans the 10th to the 90th percentile."
    asked = (
        (texts, "text", "Text per second and device", f"{unit}/s of learnable text (more is faster)", scale),
        (
            _bars(cells, "tokens_per_second_per_device", significant),
            *("tokens", "Tokens per second and device", "tokens/s (each tokenizer's own)", 1.0),
        ),
        (_bars(cells, "step_time_s", duration), "step", "Step time", "seconds (less is faster)", 1.0),
    )
    return [
        Plot(title, _bar_plot(bars, look_of, name, title, label, scale), steps)
        for bars, name, title, label, scale in asked
        if bars
    ]


def _bars(cells: Sequence[MeasuredCell], key: Rate, written: Callable[[float], str]) -> list[Bar]:
    found = [(cell["backbone_id"], cell["figures"][key]) for cell in cells if cell["figures"] is not None]
    return [
        Bar(backbone_id, spread["median"], spread["low"], spread["high"], written(spread["median"]))
        for backbone_id, spread in found
        if spread
    ]


def _bar_plot(
    bars: Sequence[Bar], look_of: Mapping[str, Look], name: str, title: str, label: str, scale: float
) -> Markup:
    """Bars from zero, each with its name above it: long names then never squeeze the axis."""
    spoken = f"{title}: " + "; ".join(f"{bar.backbone_id} {bar.text}" for bar in bars)
    with styled_axes(HEIGHT_OF_AXIS + ROW * len(bars)) as (figure, axes):
        across = axes.get_yaxis_transform()
        for index, bar in enumerate(bars):
            low, middle, high = bar.low / scale, bar.median / scale, bar.high / scale
            colour = look_of[bar.backbone_id].colour
            axes.broken_barh([(0, middle)], (index - BAR, 2 * BAR), color=colour, alpha=0.55, linewidth=0)
            axes.plot((low, high), (index, index), color=INK, linewidth=1.4)
            axes.plot((low, high), (index, index), "|", color=INK, markersize=6, markeredgewidth=1.2)
            axes.text(0, index - BAR - 0.04, short_id(bar.backbone_id), ha="left", va="bottom", transform=across)
            axes.text(1, index - BAR - 0.04, bar.text, ha="right", va="bottom", transform=across, color=MUTED)
        axes.axvline(0, color=LINE, linewidth=0.7)
        axes.set_xlim(left=0)
        axes.set_ylim(len(bars) - 0.55, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=3)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(label)
        return inline_svg(figure, name, spoken)
