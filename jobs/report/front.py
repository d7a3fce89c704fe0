"""Score against what it takes: a point for each backbone, and the line of those that none beats in both."""

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
WIDE = 20.0  # times the least: from there on the axis is logarithmic


@dataclass(frozen=True)
class Quantity:
    """What a score is held against. `better`: on which side of the axis one wants to be."""

    name: str  # of the plot's ids
    title: str
    label: str
    unit: str
    values: Mapping[str, float | None]  # by backbone
    better: str = "left"  # or "right"
    price: tuple[float, str] | None = None  # of one unit, and its currency

    def key(self, x: float) -> float:
        """The less of it the better."""
        return x if self.better == "left" else -x


@dataclass(frozen=True)
class Point:
    """A backbone: how much of the quantity it has, and its mean score."""

    backbone_id: str
    x: float
    score: float


def hours(costs: Costs) -> Quantity:
    """Device hours of a run, with money beside them where the spec has a price."""
    device, price, currency = costs["device"], costs["price_per_hour"], costs["currency"]
    return Quantity(
        name="hours",
        title=f"Score against {device} hours" + ("" if price is None else " and money"),
        label=f"{device} hours a run",
        unit=f"{device} hours",
        values={row["backbone_id"]: row["device_hours_per_run"] for row in costs["backbones"]},
        price=None if price is None or currency is None else (price, currency),
    )


def memory(values: Mapping[str, float | None]) -> Quantity:
    """Peak memory of a device in training, GiB."""
    return Quantity("memory", "Score against memory", "peak memory of a device (GiB)", "GiB", values)


def throughput(values: Mapping[str, float | None]) -> Quantity:
    """Bytes of text per second and device, which tokenizers do not touch, as they do tokens."""
    label = "training text per device (bytes/s)"
    return Quantity("throughput", "Score against throughput", label, "bytes/s", values, better="right")


def front_plots(
    quantities: Sequence[Quantity],
    ranking: Sequence[RankedBackbone],
    looks: Mapping[str, Look],
    score: str = "bits per byte",
) -> list[Plot]:
    """A plot for each quantity that was measured of two backbones or more; `score` is what the ranking has."""
    found = [(quantity, find_points(quantity, ranking)) for quantity in quantities]
    return [front_plot(quantity, points, looks, score) for quantity, points in found if len(points) > 1]


def find_points(quantity: Quantity, ranking: Sequence[RankedBackbone]) -> list[Point]:
    """Of the backbones that were scored and measured: the front, then the others from the best on."""
    points = [
        Point(row["backbone_id"], value, row["score"])
        for row in ranking
        if (value := quantity.values.get(row["backbone_id"])) is not None and value > 0
    ]
    best = front(quantity, points)
    return [*best, *(point for point in points if point not in best)]


def front(quantity: Quantity, points: Sequence[Point]) -> list[Point]:
    """Those that no other beats or equals in one and beats in the other (Pareto), the cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (quantity.key(one.x), one.score)):
        if not found or point.score < found[-1].score:
            found.append(point)
    return found


def front_plot(quantity: Quantity, points: Sequence[Point], looks: Mapping[str, Look], score: str) -> Plot:
    """Mean held-out score against the quantity, the first of the points that a person can read."""
    drawn = points[:DRAWN_BACKBONES]
    best = front(quantity, drawn)
    with styled_axes(HEIGHT) as (figure, axes):
        for point in drawn:
            look = looks[point.backbone_id]
            on_front = point in best
            axes.plot(
                *(point.x, point.score, look.marker),
                color=look.colour,
                markersize=8 if on_front else 6,
                alpha=1.0 if on_front else 0.6,
                markeredgewidth=0,
                zorder=3,
            )
        _scale(axes, drawn)
        _draw_front(axes, best, quantity.better)
        _name(axes, best)
        axes.grid(axis="y")
        axes.tick_params(length=0, which="both")
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="y", nbins=6)
        axes.set_xlabel(f"{quantity.label}; {quantity.better} is better")
        axes.set_ylabel(score)
        if quantity.price is not None:
            _add_money(axes, *quantity.price)
        svg = inline_svg(figure, f"front-{quantity.name}", _told(quantity, drawn, best))
    return Plot(quantity.title, svg, _caption(quantity, len(drawn), len(points)))


def _draw_front(axes: "Axes", best: Sequence[Point], better: str) -> None:
    """Steps away from the better side: the best score that so much can have. What lies behind them is beaten."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    xs = [best[0].x, *(point.x for point in best), right if better == "left" else left]
    ys = [top, *(point.score for point in best), best[-1].score]
    axes.step(xs, ys, where="post", color=MUTED, linewidth=1.2, zorder=2)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _scale(axes: "Axes", points: Sequence[Point]) -> None:
    """Room around the outermost points, for names too."""
    low, high = min(point.x for point in points), max(point.x for point in points)
    if high > WIDE * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.6, high * 1.6)
        _plain_numbers(axes)
    else:
        room = 0.12 * (high - low) or 0.1 * high
        axes.set_xlim(max(0.0, low - room), high + room)
        axes.locator_params(axis="x", nbins=6)
    axes.margins(y=0.16)


def _add_money(axes: "Axes", price: float, currency: str) -> None:
    """The same axis once more, above the plot, in money."""

    def paid(amount: Any) -> Any:
        return amount * price

    def bought(money: Any) -> Any:
        return money / price

    above = axes.secondary_xaxis("top", functions=(paid, bought))
    above.set_xlabel(f"{currency} a run")
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
        x, y = axes.transAxes.inverted().transform(axes.transData.transform((point.x, point.score)))
        if any(abs(y - other) < APART for other in placed):
            continue
        placed.append(y)
        is_left = x < 0.5
        axes.annotate(
            short_id(point.backbone_id, 32),
            (point.x, point.score),
            (7 if is_left else -7, 5),
            textcoords="offset points",
            ha="left" if is_left else "right",
            color=INK,
        )


def _told(quantity: Quantity, points: Sequence[Point], best: Sequence[Point]) -> str:
    """For those who cannot see it."""
    rows = [f"{one.backbone_id} {fixed(one.score)} at {_amount(quantity, one.x)}" for one in points]
    return f"{quantity.title}: {'; '.join(rows)}. On the front: {', '.join(one.backbone_id for one in best)}"


def _amount(quantity: Quantity, x: float) -> str:
    paid = "" if quantity.price is None else f" ({money(x * quantity.price[0], quantity.price[1])})"
    return f"{significant(x)} {quantity.unit}{paid}"


def _caption(quantity: Quantity, drawn: int, points: int) -> str:
    cut = f" Drawn are {drawn} of {points} backbones." if drawn < points else ""
    return f"Marks as in the table. Nobody is below and {quantity.better} of the line. Noise is left out.{cut}"
