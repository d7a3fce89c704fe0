"""A simulated schedule as a page: the figures, who used which node when, and how many GPUs were busy."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.formats import time_scale
from jobs.queue.gangs import Node
from jobs.report.html import environment
from jobs.report.palette import BAND, COLOURS, INK, MUTED, Look, looks
from jobs.report.plots import Plot, styled_axes
from jobs.report.svg import inline_svg
from jobs.simulation.simulate import Segment, Simulation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 880  # points; the page stretches it over its whole width
SHORTEST, TALLEST = 190, 560
DPI = 150
RECTANGLES = 3000  # more are drawn as one picture: the page stays small
OTHERS = "other owners"
CURVE_POINTS = 2000


def render_simulation(document: Mapping[str, Any], runs: Sequence[Simulation], nodes: Sequence[Node]) -> str:
    """The page; the same simulation always gives the same text, but for the time that planning took."""
    chosen = next(run for run in runs if run.policy == document["policy"])
    figures = next(one for one in document["policies"] if one["policy"] == document["policy"])
    look_of = _owner_looks(chosen.segments)
    template = environment().get_template("simulation.html.j2")
    return template.render(
        colours=COLOURS,
        document=document,
        figures=figures,
        owners=look_of,
        others=OTHERS,
        gantt=gantt(chosen.segments, nodes, look_of),
        busy=busy_plot(runs),
    )


def gantt(segments: Sequence[Segment], nodes: Sequence[Node], look_of: Mapping[str, Look]) -> Plot:
    """A band per node, as high as its GPUs; a rectangle per lease and node, in the colour of the owner."""
    from matplotlib.collections import PolyCollection

    rectangles = list(_rectangles(segments, nodes))
    scale, unit = time_scale(max((segment.end_s for segment in segments), default=1.0))
    top = sum(node.gpus for node in nodes)
    with styled_axes(min(TALLEST, max(SHORTEST, 60 + 3 * top)), WIDTH, DPI) as (figure, axes):
        _draw_bands(axes, nodes)
        corners = [
            [(start / scale, low), (end / scale, low), (end / scale, high), (start / scale, high)]
            for _, start, end, low, high in rectangles
        ]
        colours = [look_of.get(owner, look_of[OTHERS]).colour for owner, *_ in rectangles]
        edge = 0.6 if len(rectangles) <= RECTANGLES else 0.0
        axes.add_collection(
            PolyCollection(
                corners,
                facecolors=colours,
                edgecolors="white",
                linewidths=edge,
                rasterized=len(rectangles) > RECTANGLES,
            )
        )
        axes.set_xlim(0, max((segment.end_s for segment in segments), default=scale) / scale)
        axes.set_ylim(top, 0)
        axes.set_xlabel(f"time ({unit})")
        axes.set_ylabel("GPUs, node by node")
        label = f"Gantt picture of {len(segments)} leases on {len(nodes)} nodes"
        svg = inline_svg(figure, "gantt", label)
    caption = "A rectangle is one lease on one node. Nodes in the order of the cluster file, shaded in turns."
    return Plot("Who trains where, and when", svg, caption)


def busy_plot(runs: Sequence[Simulation]) -> Plot:
    """GPUs in use over time under each policy."""
    styles = {"backbone": (COLOURS[0][0], "-"), "fifo": (COLOURS[1][0], "--"), "fifo-backfill": (MUTED, "-")}
    end_s = max((segment.end_s for run in runs for segment in run.segments), default=1.0)
    scale, unit = time_scale(end_s)
    with styled_axes(SHORTEST + 20, WIDTH, DPI) as (figure, axes):
        for run in reversed(runs):  # ours on top
            x, y = _busy(run.segments, end_s)
            colour, line = styles[run.policy]
            axes.plot([at / scale for at in x], y, line, color=colour, linewidth=1.2, label=run.policy)
        axes.axhline(runs[0].gpus, color=INK, linewidth=0.8)
        axes.set_ylim(0, runs[0].gpus * 1.04)
        axes.set_xlim(0, end_s / scale)
        axes.grid(axis="y")
        axes.set_xlabel(f"time ({unit})")
        axes.set_ylabel("GPUs in use, on average")
        axes.legend(frameon=False, ncols=len(runs), loc="lower center", bbox_to_anchor=(0.5, 1.0))
        svg = inline_svg(figure, "busy", "GPUs in use over time, for each policy")
    return Plot("GPUs in use", svg, "The line at the top is all there are.")


def _owner_looks(segments: Sequence[Segment]) -> dict[str, Look]:
    """A colour for each of the owners with the most GPU time; the rest share the last one."""
    used: dict[str, float] = {}
    for segment in segments:
        used[segment.owner] = used.get(segment.owner, 0.0) + segment.gpus * (segment.end_s - segment.start_s)
    largest = sorted(used, key=lambda owner: (-used[owner], owner))
    if len(largest) >= len(COLOURS):
        largest = largest[: len(COLOURS) - 1]
    return {**looks(largest), OTHERS: looks(map(str, range(len(COLOURS))))[str(len(COLOURS) - 1)]}


def _rectangles(segments: Sequence[Segment], nodes: Sequence[Node]) -> Iterator[tuple[str, float, float, int, int]]:
    """(owner, start, end, first GPU row, row after the last); a lease's GPUs of one node may lie in several runs."""
    first_row, row = {}, 0
    for node in nodes:
        first_row[node.node_id] = row
        row += node.gpus
    free_from = [float("-inf")] * row
    gpus_of = {node.node_id: node.gpus for node in nodes}
    for segment in sorted(segments, key=lambda one: (one.start_s, one.end_s, one.job_id)):
        workers = sum(count for _, count in segment.placement)
        for node_id, count in segment.placement:
            wanted, base = count * segment.gpus // workers, first_row[node_id]
            rows = [one for one in range(base, base + gpus_of[node_id]) if free_from[one] <= segment.start_s][:wanted]
            for one in rows:
                free_from[one] = segment.end_s
            for low, high in _runs(rows):
                yield segment.owner, segment.start_s, segment.end_s, low, high


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[3, 4, 7] as (3, 5), (7, 8)."""
    start = 0
    for position in range(1, len(rows) + 1):
        if position == len(rows) or rows[position] != rows[position - 1] + 1:
            yield rows[start], rows[position - 1] + 1
            start = position


def _busy(segments: Sequence[Segment], end_s: float) -> tuple[list[float], list[float]]:
    """GPUs in use, averaged over equal intervals, as (middle of the interval, average)."""
    points = min(CURVE_POINTS, max(60, len(segments)))
    width = end_s / points
    used = [0.0] * points
    for segment in segments:
        for index in range(int(segment.start_s / width), min(points, int(segment.end_s / width) + 1)):
            inside = min(segment.end_s, (index + 1) * width) - max(segment.start_s, index * width)
            used[index] += segment.gpus * max(0.0, inside) / width
    return [(index + 0.5) * width for index in range(points)], used


def _draw_bands(axes: "Axes", nodes: Sequence[Node]) -> None:
    row = 0
    for number, node in enumerate(nodes):
        if number % 2:
            axes.axhspan(row, row + node.gpus, color=BAND, linewidth=0, zorder=0)
        row += node.gpus
