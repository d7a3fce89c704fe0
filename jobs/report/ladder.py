"""Score against budget as a page shows it: what was trained at each amount, and how it would go on."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from jobs.formats import byte_scale, fixed, percent
from jobs.report.palette import Look
from jobs.report.plots import HEIGHT, Plot, styled_axes
from jobs.report.svg import inline_svg
from jobs.results.documents import RankedBackbone
from jobs.results.predictions.documents import LadderFacts

DRAWN = 8  # backbones: more lines with bands are a thicket


def ladder_view(
    facts: LadderFacts | None, ranking: Sequence[RankedBackbone], looked: Mapping[str, Look]
) -> dict[str, object] | None:
    """The section's variables; None where there is one budget."""
    if facts is None:
        return None
    scored = dict.fromkeys(name for one in facts["budgets"] for name in one["scores"])
    ranked = [row["backbone_id"] for row in ranking]
    order = [name for name in [*ranked, *(name for name in scored if name not in ranked)] if name in looked]
    means = {
        name: {one["amount"]: fmean(one["scores"][name].values()) for one in facts["budgets"] if name in one["scores"]}
        for name in order
    }
    drawn = [name for name in order if means[name]][:DRAWN]
    return {
        "facts": facts,
        "rows": [(name, means[name], facts["predicted"].get(name, [])) for name in order],
        "ahead": sorted({point["amount"] for points in facts["predicted"].values() for point in points}),
        "plots": [_plot(facts, drawn, means, looked)] if drawn else [],
        "drawn": drawn,
    }


def _plot(
    facts: LadderFacts, drawn: Sequence[str], means: Mapping[str, Mapping[float, float]], looks: Mapping[str, Look]
) -> Plot:
    """Lines through the means, dots for the seeds; behind the largest budget medians, dashed, with their intervals."""
    farthest = max([one["amount"] for one in facts["budgets"]])
    scale, unit = byte_scale(farthest) if facts["kind"] == "bytes" else (1.0, facts["kind"].replace("_", " "))
    with styled_axes(HEIGHT) as (figure, axes):
        for name in drawn:
            look, line, ahead = looks[name], means[name], facts["predicted"].get(name, [])
            for one in facts["budgets"]:
                seeds = list(one["scores"].get(name, {}).values())
                axes.plot(
                    [one["amount"] / scale] * len(seeds), seeds, look.marker, color=look.colour, markersize=4, alpha=0.5
                )
            axes.plot([amount / scale for amount in line], list(line.values()), color=look.colour, linewidth=1.5)
            if ahead:
                amounts = [max(line) / scale, *(point["amount"] / scale for point in ahead)]
                last = line[max(line)]
                axes.plot(
                    amounts,
                    [last, *(point["score"] for point in ahead)],
                    color=look.colour,
                    linestyle="--",
                    linewidth=1,
                )
                low, high = zip(*(point["interval"] for point in ahead), strict=True)
                axes.fill_between(amounts, [last, *low], [last, *high], color=look.colour, alpha=0.12, linewidth=0)
        amounts = sorted(
            {one["amount"] for one in facts["budgets"]} | {a["amount"] for p in facts["predicted"].values() for a in p}
        )
        axes.set_xscale("log")
        axes.set_xticks([amount / scale for amount in amounts], labels=[f"{amount / scale:g}" for amount in amounts])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="y", nbins=6)
        axes.set_xlabel(f"budget of a run ({unit})")
        axes.set_ylabel("bits per byte")
        told = "; ".join(f"{name} comes to {fixed(means[name][max(means[name])])}" for name in drawn)
        svg = inline_svg(figure, "ladder", f"Score against budget. {told}")
    ahead_of = "" if facts["level"] is None else f" Dashed: predicted, with {percent(facts['level'], 0)} intervals."
    return Plot("Score against budget", svg, f"A dot is a seed, a line joins their means.{ahead_of}")
