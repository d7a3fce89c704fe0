"""The report's section on a scheduled run's history: each quantity against the earlier runs, a plot per quantity."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jobs.report.palette import Look
from jobs.report.plots import Plot, styled_axes
from jobs.report.svg import inline_svg
from jobs.results.documents import History, HistoryRow
from jobs.results.history import QUANTITIES, Quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 190  # points


def history_view(history: History | None, looked: Mapping[str, Look]) -> dict[str, object] | None:
    """The variables of the section; None where no schedule fired the job, or nothing was measured."""
    if history is None or not history["rows"]:
        return None
    plots = [_plot(quantity, history, looked) for quantity in QUANTITIES]
    return {
        **history,
        "table": list(map(_line, history["rows"])),
        "plots": [plot for plot in plots if plot is not None],
    }


def _line(row: HistoryRow) -> dict[str, str | int | bool]:
    """One line of the table, as text."""
    quantity = next(one for one in QUANTITIES if one.metric == row["quantity"])
    band, earlier = row["band"], row["earlier"]
    return {
        "backbone_id": row["backbone_id"],
        "heading": quantity.heading,
        "value": quantity.written(row["value"]),
        "last": quantity.written(earlier[-1]["value"] if earlier else None),
        "band": f"{quantity.written(band[0])} to {quantity.written(band[1])}" if band else "n/a",
        "runs": len(earlier),
        "reading": _reading(row),
        "left": row["left"] is not None,
    }


def _reading(row: HistoryRow) -> str:
    if row["value"] is None:
        return "not measured"
    if row["band"] is None:
        return "too few earlier runs for a band"
    return f"{row['left']}: {'worse' if row['worse'] else 'better'}" if row["left"] else "inside"


def _plot(quantity: Quantity, history: History, looked: Mapping[str, Look]) -> Plot | None:
    """Every backbone's values over the ticks, this run's band as a bar behind its last point; None without a past."""
    rows = [row for row in history["rows"] if row["quantity"] == quantity.metric and row["value"] is not None]
    if not any(row["earlier"] for row in rows):
        return None
    shown = {one["tick"] for row in rows for one in row["earlier"]}
    ticks = [*(tick for tick in history["earlier"] if tick in shown), history["tick"]]
    with styled_axes(HEIGHT) as (figure, axes):
        for row in rows:
            _draw(axes, row, looked[row["backbone_id"]], ticks)
        axes.set_xticks(range(len(ticks)), _labels(ticks))
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="y", nbins=5)
        axes.set_ylabel(quantity.heading)
        svg = inline_svg(figure, f"history-{quantity.metric}", _spoken(quantity, rows))
    return Plot(quantity.heading[:1].upper() + quantity.heading[1:], svg, _caption(quantity))


def _draw(axes: "Axes", row: HistoryRow, look: Look, ticks: Sequence[str]) -> None:
    last = len(ticks) - 1
    if row["band"] is not None:
        axes.plot((last, last), row["band"], color=look.colour, linewidth=7, alpha=0.25, solid_capstyle="butt")
    x = [ticks.index(one["tick"]) for one in row["earlier"]] + [last]
    y = [*(one["value"] for one in row["earlier"]), *([] if row["value"] is None else [row["value"]])]
    axes.plot(x, y, color=look.colour, marker=look.marker, markersize=5, markeredgewidth=0, linewidth=1)


def _caption(quantity: Quantity) -> str:
    direction = "Higher" if quantity.worse == "above" else "Lower"
    return f"{direction} is worse. The bar is the band of this run, at its last point."


def _labels(ticks: Sequence[str]) -> list[str]:
    """Month and day, and below it the time where the ticks do not share it; at most six of them."""
    same_time = len({tick[11:] for tick in ticks}) == 1
    every = -(-len(ticks) // 6)
    texts = [tick[5:10] if same_time else f"{tick[5:10]}\n{tick[11:16]}" for tick in ticks]
    return [text if (len(ticks) - 1 - index) % every == 0 else "" for index, text in enumerate(texts)]


def _spoken(quantity: Quantity, rows: Sequence[HistoryRow]) -> str:
    ends = (f"{row['backbone_id']} {quantity.written(row['value'])}, {_reading(row)}" for row in rows)
    return f"{quantity.heading} over the runs of the schedule: {'; '.join(ends)}"
