"""Score against what a run costs: a point for each backbone, and the line of those that none beats in both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.formats import fixed, money, short_id, significant
from jobs.report.excerpt import DRAWN_BACKBONES
from jobs.report.palette import INK, MUTED, Look
from jobs.report.plots import HEIGHT, Plot, styled_axes
from jobs.report.svg import inline_svg
from jobs.results.costs.documents import Costs
from jobs.results.documents import RankedBackbone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axes._base import _AxesBase

LABELLED = 6  # of the front, by name
APART = 0.075  # of the axis' height: names that are nearer would cross
WIDE = 20.0  # times the cheapest: from there on the axis is logarithmic


@dataclass(frozen=True)
class Point:
    """A backbone: what a run of it takes, and its mean score."""

    backbone_id: str
    hours: float
    score: float


def find_points(costs: Costs, ranking: Sequence[RankedBackbone]) -> list[Point]:
    """Of the backbones that were scored and took time: the front, then the best of the others, so many as are drawn."""
    hours = {row["backbone_id"]: row["device_hours_per_run"] for row in costs["backbones"]}
    points = [
        Point(row["backbone_id"], taken, row["val_bits_per_byte"])
        for row in ranking
        if (taken := hours.get(row["backbone_id"])) is not None and taken > 0
    ]
    first = front(points)
    others = [point for point in points if point not in first]
    return [*first, *others][:DRAWN_BACKBONES]


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats or equals in one and beats in the other (Pareto), the cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.hours, one.score)):
        if not found or point.score < found[-1].score:
            found.append(point)
    return found


def cost_plot(points: Sequence[Point], costs: Costs, looks: Mapping[str, Look]) -> Plot:
    """Mean held-out score against device hours, with money above where the spec has a price."""
    best, device = front(points), costs["device"]
    title = f"Score against {device} hours" + ("" if costs["price_per_hour"] is None else " and money")
    with styled_axes(HEIGHT) as (figure, axes):
        for point in points:
            look = looks[point.backbone_id]
            on_front = point in best
            axes.plot(
                *(point.hours, point.score, look.marker),
                color=look.colour,
                markersize=8 if on_front else 6,
                alpha=1.0 if on_front else 0.6,
                markeredgewidth=0,
                zorder=3,
            )
        _scale(axes, points)
        _draw_front(axes, best)
        _name(axes, best)
        axes.grid(axis="y")
        axes.tick_params(length=0, which="both")
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="y", nbins=6)
        axes.set_xlabel(f"{device} hours a run (left is cheaper)")
        axes.set_ylabel("bits per byte")
        if costs["price_per_hour"] is not None:
            _add_money(axes, costs["price_per_hour"], f"{costs['currency']} a run")
        svg = inline_svg(figure, "cost-front", _told(title, points, best, costs))
    return Plot(title, svg, _caption(points, costs))


def _draw_front(axes: "Axes", best: Sequence[Point]) -> None:
    """Steps down to the right: the best score for at most so much. What lies above and to the right is beaten."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    xs = [best[0].hours, *(point.hours for point in best), right]
    ys = [top, *(point.score for point in best), best[-1].score]
    axes.step(xs, ys, where="post", color=MUTED, linewidth=1.2, zorder=2)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _scale(axes: "Axes", points: Sequence[Point]) -> None:
    """Room around the outermost points, for names too."""
    low, high = min(point.hours for point in points), max(point.hours for point in points)
    if high > WIDE * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.6, high * 1.6)
        _plain_numbers(axes)
    else:
        room = 0.12 * (high - low) or 0.1 * high
        axes.set_xlim(max(0.0, low - room), high + room)
        axes.locator_params(axis="x", nbins=6)
    axes.margins(y=0.16)


def _add_money(axes: "Axes", price: float, label: str) -> None:
    """The same axis once more, above the plot, in money."""

    def paid(hours: Any) -> Any:
        return hours * price

    def bought(money: Any) -> Any:
        return money / price

    above = axes.secondary_xaxis("top", functions=(paid, bought))
    above.set_xlabel(label)
    above.tick_params(length=0, which="both")
    above.spines["top"].set_visible(False)
    if axes.get_xscale() == "log":
        _plain_numbers(above)


def _plain_numbers(axes: "_AxesBase") -> None:
    """A power of ten would be written as mathematics, which our style leaves as it is typed."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name(axes: "Axes", best: Sequence[Point]) -> None:
    """Names of the front, towards the middle of the plot; one that would cross another is left out."""
    placed: list[float] = []
    for point in sorted(best, key=lambda one: one.score)[:LABELLED]:
        x, y = axes.transAxes.inverted().transform(axes.transData.transform((point.hours, point.score)))
        if any(abs(y - other) < APART for other in placed):
            continue
        placed.append(y)
        is_left = x < 0.5
        axes.annotate(
            short_id(point.backbone_id, 32),
            (point.hours, point.score),
            (7 if is_left else -7, 5),
            textcoords="offset points",
            ha="left" if is_left else "right",
            color=INK,
        )


def _told(title: str, points: Sequence[Point], best: Sequence[Point], costs: Costs) -> str:
    """For those who cannot see it."""
    rows = [f"{one.backbone_id} {fixed(one.score)} at {significant(one.hours)}{_paid(one, costs)}" for one in points]
    return f"{title}: {'; '.join(rows)}. On the front: {', '.join(one.backbone_id for one in best)}"


def _paid(point: Point, costs: Costs) -> str:
    price = costs["price_per_hour"]
    return "" if price is None else f" ({money(point.hours * price, costs['currency'])})"


def _caption(points: Sequence[Point], costs: Costs) -> str:
    drawn = f" Drawn are {len(points)} of {len(costs['backbones'])} backbones." if _is_cut(points, costs) else ""
    return (
        "Marks as in the table. Nobody is below and left of the line: whoever stands on it is beaten in score or in "
        f"cost, not in both. Noise is left out.{drawn}"
    )


def _is_cut(points: Sequence[Point], costs: Costs) -> bool:
    measured = [row for row in costs["backbones"] if (row["device_hours_per_run"] or 0) > 0]
    return len(points) < len(measured)
