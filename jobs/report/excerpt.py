"""How much of a large comparison is drawn and tabled: what a person can read.

So a page grows with the runs at most. Everything stays in report.json; what is left out is said beside what is shown.
"""

from collections.abc import Sequence

from jobs.results.documents import Pair, RankedBackbone, TrainedCell

DRAWN_BACKBONES = 40  # rows of a plot
CURVED_BACKBONES = 12  # whose runs are lines
CURVES = 60
PAIRED_BACKBONES = 24  # each against each; all others against the best


def best_of(ranking: Sequence[RankedBackbone], most: int = DRAWN_BACKBONES) -> list[RankedBackbone]:
    """The best, at most so many."""
    return list(ranking[:most])


def shown_pairs(pairs: Sequence[Pair], ranking: Sequence[RankedBackbone]) -> list[Pair]:
    """Of many backbones: the pairs among the best, and those of the best one."""
    if len(ranking) <= PAIRED_BACKBONES:
        return list(pairs)
    best, among = ranking[0]["backbone_id"], {row["backbone_id"] for row in ranking[:PAIRED_BACKBONES]}
    return [pair for pair in pairs if best in (pair["a"], pair["b"]) or (pair["a"] in among and pair["b"] in among)]


def curved_cells(cells: Sequence[TrainedCell], ranking: Sequence[RankedBackbone]) -> list[TrainedCell]:
    """The runs whose curves are drawn: all where they are few, else those of the best backbones, each seed in turn."""
    if len(cells) <= CURVES:
        return list(cells)
    order = [row["backbone_id"] for row in ranking] or list(dict.fromkeys(cell["backbone_id"] for cell in cells))
    among = set(order[:CURVED_BACKBONES])
    chosen = sorted((cell for cell in cells if cell["backbone_id"] in among), key=lambda cell: cell["seed"])
    return chosen[:CURVES]
