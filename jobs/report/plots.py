"""The plots of the report, each one an inline SVG. matplotlib is imported when the first one is drawn.

Over 300 lines: what plots have in common, from axes to the labels at the ends of lines, stands with them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor, log10
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup

from jobs.formats import byte_scale, fixed, short_id, signed, time_scale
from jobs.report.palette import BAND, INK, LINE, MUTED, Look
from jobs.report.svg import inline_svg
from jobs.results.documents import Evaluation, Pair, RankedBackbone, TrainedCell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EvaluationAxis = Literal["bytes_seen", "train_time_s", "flops", "cost"]

WIDTH = 420  # points, which the page stretches to about 300 to 560 pixels: text stays readable on a phone
HEIGHT = 250
ROW = 34  # points per backbone in a dot plot
LANE = 0.24  # half the height of a row's dots, in rows
HEIGHT_OF_AXIS = 46
LOSS_POINTS = 100  # per line; more is a thicket
POINTS_PER_PLOT = 12_000

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "backbone report",
    "text.parse_math": False,  # an id may hold a dollar sign
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 7),
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Curve:
    """One run as a line; `x` and `y` have the same length."""

    backbone_id: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """One row of a dot plot: a mean, its bar (low, high) or None, and the single values behind it."""

    backbone_id: str
    mean: float
    bar: tuple[float, float] | None
    values: Sequence[float]
    text: str


@dataclass(frozen=True)
class Plot:
    """An inline SVG with what stands above and below it."""

    title: str
    svg: Markup
    caption: str


def evaluation_curves(cells: Iterable[TrainedCell], x: EvaluationAxis, from_progress: float = 0.0) -> list[Curve]:
    """Held-out bits per byte of each run against the evaluation's field `x`, or what it had cost by then."""
    curves = []
    for cell in cells:
        points = [
            (at, bits)
            for point in cell["evaluations"]
            if (at := _spent_by(cell, point, x)) is not None
            and (bits := point["val_bits_per_byte"]) is not None
            and (point["progress"] or 0.0) >= from_progress
        ]
        curves.append(_curve(cell["backbone_id"], points))
    return [curve for curve in curves if curve.x]


def _spent_by(cell: TrainedCell, point: Evaluation, x: EvaluationAxis) -> float | None:
    """FLOPs of the tokens seen, and the price of the seconds in steps; None where that is not known."""
    if x in ("bytes_seen", "train_time_s"):
        return point[x]
    if x == "flops":
        metrics = cell["metrics"]
        return _share(point["tokens_seen"], metrics.get("tokens_seen"), metrics.get("training_flops"))
    spent = cell.get("spent")
    return None if spent is None else _share(point["train_time_s"], spent["seconds"], spent["cost"])


def _share(part: float | None, whole: float | None, of: float | None) -> float | None:
    return part / whole * of if part is not None and whole and of else None


def loss_curves(cells: Iterable[TrainedCell]) -> list[Curve]:
    """Training loss of each run against the optimizer step, averaged over neighbouring points to `LOSS_POINTS`."""
    curves = []
    for cell in cells:
        points = [(step, loss) for step, loss in cell["loss_curve"] if loss is not None]
        width = max(1, -(-len(points) // LOSS_POINTS))
        buckets = [points[start : start + width] for start in range(0, len(points), width)]
        curves.append(_curve(cell["backbone_id"], [_centre(bucket) for bucket in buckets]))
    return [curve for curve in curves if curve.x]


def success_curves(cells: Iterable[TrainedCell]) -> list[Curve]:
    """Success in rollouts of each run that played on the way, against the share of the budget."""
    return [_curve(cell["backbone_id"], cell["success_curve"]) for cell in cells if "success_curve" in cell]


def bytes_plot(curves: list[Curve], looks: Mapping[str, Look], name: str, title: str, caption: str) -> Plot:
    """Held-out bits per byte against the bytes of training text seen."""
    scale, unit = byte_scale(max(max(curve.x) for curve in curves))
    svg = _line_plot(curves, looks, name, title, f"training text seen ({unit})", "bits per byte", scale, bands=True)
    return Plot(title, svg, caption)


def time_plot(curves: list[Curve], looks: Mapping[str, Look], title: str, caption: str) -> Plot:
    """Held-out bits per byte against the time spent in training steps."""
    scale, unit = time_scale(max(max(curve.x) for curve in curves))
    svg = _line_plot(curves, looks, "time", title, f"training time ({unit})", "bits per byte", scale, bands=True)
    return Plot(title, svg, caption)


def rate_plot(curves: list[Curve], looks: Mapping[str, Look]) -> Plot:
    """Scores of trials against their learning rates, a line for each backbone and rung."""
    title = "Score against learning rate"
    svg = _line_plot(curves, looks, "rates", title, "learning rate", "bits per byte", is_log=True, marks=True)
    return Plot(title, svg, "A line is a rung of a backbone; each rung has twice the budget of the one before.")


def spend_plot(curves: list[Curve], looks: Mapping[str, Look]) -> Plot:
    """The best score of each rung against what a backbone's trials had cost by then."""
    title = "Best score against spend"
    svg = _line_plot(
        curves, looks, "spend", title, "spent on trials (runs of one backbone)", "bits per byte", marks=True
    )
    return Plot(title, svg, "Each point is the best trial of a rung; every backbone spent the same.")


def flops_plot(curves: list[Curve], looks: Mapping[str, Look]) -> Plot:
    """Held-out bits per byte against the floating-point operations of training."""
    title, exponent = "Quality against FLOPs", floor(log10(max(max(curve.x) for curve in curves) or 1.0))
    label = f"FLOPs (1e{exponent})"
    svg = _line_plot(curves, looks, "flops", title, label, "bits per byte", 10.0**exponent, bands=True)
    return Plot(title, svg, "Counted by the size of the model and the tokens that it saw.")


def cost_plot(curves: list[Curve], looks: Mapping[str, Look], currency: str) -> Plot:
    """Held-out bits per byte against money."""
    title = "Quality against cost"
    svg = _line_plot(curves, looks, "cost", title, f"cost of training steps ({currency})", "bits per byte", bands=True)
    return Plot(title, svg, "The price of the devices for the time in optimizer steps.")


def loss_plot(curves: list[Curve], looks: Mapping[str, Look], title: str, caption: str) -> Plot:
    """Training loss against the optimizer step."""
    return Plot(title, _line_plot(curves, looks, "loss", title, "optimizer step", "nats per target token"), caption)


def success_plot(curves: list[Curve], looks: Mapping[str, Look], title: str, caption: str) -> Plot:
    """Success in rollouts against the share of the budget."""
    axes = ("share of the budget", "success")
    return Plot(title, _line_plot(curves, looks, "success", title, *axes, marks=True), caption)


def ranking_plot(ranking: Sequence[RankedBackbone], looks: Mapping[str, Look], score: str) -> Plot:
    """Every seed of every ranked backbone as a dot, its mean as a tick, one seed deviation as a bar."""
    rows = [_ranked(row) for row in ranking]
    title = score.capitalize()
    label = f"{title}: " + "; ".join(f"{row.backbone_id} {row.text}" for row in rows)
    with styled_axes(HEIGHT_OF_AXIS + ROW * len(rows)) as (figure, axes):
        _draw_rows(axes, rows, looks)
        axes.set_xlabel(f"{score} (lower is better)")
        svg = inline_svg(figure, "ranking", label)
    return Plot(title, svg, "A dot is a seed, the tick is their mean, the bar one standard deviation of the seeds.")


def difference_plot(
    pairs: Iterable[Pair], best: str, looks: Mapping[str, Look], half_width: float | None, level: str, score: str
) -> Plot | None:
    """Each backbone's difference to the best with its interval; None where no pair has one."""
    rows = [row for row in (_difference(pair, best) for pair in pairs) if row is not None]
    if not rows:
        return None
    rows.sort(key=lambda row: row.mean)
    title = f"Difference to {short_id(best)}"
    label = f"{title}, with {level} interval: " + "; ".join(f"{row.backbone_id} {row.text}" for row in rows)
    with styled_axes(HEIGHT_OF_AXIS + ROW * len(rows)) as (figure, axes):
        for index in range(len(rows)):  # row by row, so that no name is crossed out
            if half_width:
                axes.broken_barh([(-half_width, 2 * half_width)], (index - LANE, 2 * LANE), color=BAND, linewidth=0)
            axes.plot((0, 0), (index - LANE, index + LANE), color=MUTED, linewidth=1)
        _draw_rows(axes, rows, looks)
        axes.set_xlabel(f"difference in {score} (right is worse)")
        svg = inline_svg(figure, "difference", label)
    band = " Inside the shaded band a difference is too small to matter." if half_width else ""
    return Plot(title, svg, f"Bars are {level} intervals, not corrected for the number of pairs.{band}")


def _ranked(row: RankedBackbone) -> Estimate:
    mean, deviation = row["score"], row["seed_std"]
    bar = None if deviation is None else (mean - deviation, mean + deviation)
    values = [value for value in row["seeds"].values() if value is not None]
    return Estimate(row["backbone_id"], mean, bar, values, fixed(mean))


def _difference(pair: Pair, best: str) -> Estimate | None:
    """The pair seen from the best: positive means that the other one needs more bits."""
    interval = pair["interval"]
    if best not in (pair["a"], pair["b"]) or pair["difference"] is None or not interval or None in interval:
        return None
    low, high = interval
    other, mean, bar = pair["b"], pair["difference"], (low, high)  # the score of b minus that of a
    if pair["b"] == best:
        other, mean, bar = pair["a"], -mean, (-high, -low)
    return Estimate(other, mean, bar, (), signed(mean))


def _curve(backbone_id: str, points: Sequence[tuple[float, float]]) -> Curve:
    return Curve(backbone_id, [x for x, _ in points], [y for _, y in points])


def _centre(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _thinned(values: Sequence[float], limit: int) -> list[float]:
    """At most about `limit` values, evenly spaced, the last one always among them."""
    stride = -(-len(values) // limit)
    return list(values) if stride <= 1 else [*values[:-1:stride], values[-1]]


@contextmanager
def styled_axes(height: float, width: float = WIDTH, dpi: float = 100) -> "Iterator[tuple[Figure, Axes]]":
    """Axes in our style and nobody else's; no pyplot, so nothing global and no display is touched.

    `height` and `width` in points; `dpi` is of what is drawn as a picture.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width / 72, height / 72), dpi=dpi, layout="constrained")
        yield figure, figure.subplots()


def _line_plot(
    curves: list[Curve],
    looks: Mapping[str, Look],
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    scale: float = 1.0,
    is_log: bool = False,
    marks: bool = False,  # every point, not only the last
    bands: bool = False,  # one standard deviation of the seeds around their mean
) -> Markup:
    limit = max(20, POINTS_PER_PLOT // len(curves))
    seeds = max(Counter(curve.backbone_id for curve in curves).values())
    with styled_axes(HEIGHT) as (figure, axes):
        for curve in curves:
            look = looks[curve.backbone_id]
            (line,) = axes.plot(
                [value / scale for value in _thinned(curve.x, limit)],
                _thinned(curve.y, limit),
                color=look.colour,
                linewidth=1.5 if seeds == 1 else 1.0,
                alpha=0.9 if seeds <= 3 else 0.7,
                marker=look.marker,
                markersize=4,
                markeredgewidth=0,
                markevery=None if marks else [-1],
            )
            if look.dashes:
                line.set_dashes(look.dashes)
        for band in _bands(curves) if bands else ():
            low, high = ([mean + sign * deviation for mean, deviation in band.y] for sign in (-1, 1))
            xs = [value / scale for value in band.x]
            axes.fill_between(xs, low, high, color=looks[band.backbone_id].colour, alpha=0.12, linewidth=0)
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        if is_log:
            axes.set_xscale("log")
            rates = sorted({x for curve in curves for x in curve.x})
            axes.set_xticks(rates, labels=[f"{rate:g}" for rate in rates])
            axes.minorticks_off()
        else:
            axes.locator_params(axis="x", nbins=6)
        axes.locator_params(axis="y", nbins=6)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return inline_svg(figure, name, f"{title}. {_ends(curves, looks)}")


@dataclass(frozen=True)
class Band:
    """The seeds of a backbone together: at each evaluation the mean of `x`, and mean and deviation of the scores."""

    backbone_id: str
    x: Sequence[float]
    y: Sequence[tuple[float, float]]


def _bands(curves: Iterable[Curve]) -> list[Band]:
    """Of backbones whose seeds were evaluated equally often; none of one seed."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.backbone_id, []).append(curve)
    bands = []
    for backbone_id, own in groups.items():
        if len(own) > 1 and len({len(curve.x) for curve in own}) == 1:
            scores = zip(*(curve.y for curve in own), strict=True)
            places = zip(*(curve.x for curve in own), strict=True)
            bands.append(Band(backbone_id, [fmean(xs) for xs in places], [(fmean(ys), stdev(ys)) for ys in scores]))
    return bands


def _ends(curves: Iterable[Curve], looks: Mapping[str, Look]) -> str:
    """Where the lines end, for those who cannot see them."""
    ends: dict[str, list[str]] = {backbone_id: [] for backbone_id in looks}
    for curve in curves:
        ends[curve.backbone_id].append(fixed(curve.y[-1]))
    return "; ".join(f"{backbone_id} ends at {', '.join(values)}" for backbone_id, values in ends.items() if values)


def _draw_rows(axes: "Axes", rows: Sequence[Estimate], looks: Mapping[str, Look]) -> None:
    """Rows from the top, each with its name above its dots: long names then never squeeze the axis."""
    across = axes.get_yaxis_transform()
    for index, row in enumerate(rows):
        look = looks[row.backbone_id]
        axes.plot((0, 1), (index, index), color=LINE, linewidth=0.7, transform=across, zorder=0)
        if row.bar is not None:
            axes.plot(row.bar, (index, index), color=look.colour, linewidth=2, alpha=0.55)
        if row.values:
            dots = [index] * len(row.values)
            axes.plot(row.values, dots, look.marker, color=look.colour, markersize=6, alpha=0.8, markeredgewidth=0)
            axes.plot(row.mean, index, "|", color=INK, markersize=11, markeredgewidth=1.4)
        else:
            axes.plot(row.mean, index, look.marker, color=look.colour, markersize=7, markeredgewidth=0)
        axes.text(0, index - LANE - 0.04, short_id(row.backbone_id), ha="left", va="bottom", transform=across)
        axes.text(1, index - LANE - 0.04, row.text, ha="right", va="bottom", transform=across, color=MUTED)
    axes.set_ylim(len(rows) - 0.55, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=3)
    axes.locator_params(axis="x", nbins=5)
