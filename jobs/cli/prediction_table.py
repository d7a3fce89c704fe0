"""What `backbone predict` prints for people. No torch, ray, mlflow or transformers."""

from rich.table import Table
from rich.text import Text

from jobs.cli import tables
from jobs.formats import chance, fixed, percent, short_id
from jobs.results.differences.comparability import shown
from jobs.results.predictions.prediction import Prediction

CAVEAT = (
    "Assumes that scores go on falling as a power law with a floor, with the same recipe and data. Trained: {trained}."
)


def print_prediction(found: Prediction) -> None:
    """Whether the leader stays, then each backbone, then what this rests on."""
    tables.out.print(found.sentence, highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(Text(found.metric.replace("_", " ")), no_wrap=True)
    for column in (
        f"at {shown(found.trained[-1])}",
        f"at {shown(found.at)}",
        f"{percent(found.level, 0)} interval",
        "leads",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found.backbones:
        between = "cannot be predicted" if one.interval is None else " to ".join(map(fixed, one.interval))
        table.add_row(Text(short_id(one.backbone_id)), fixed(one.trained), fixed(one.score), between, chance(one.first))
    print()
    tables.print_wide(table)
    budgets = ", ".join(map(shown, found.trained))
    tables.out.print(CAVEAT.format(trained=f"{budgets} {found.kind}"), highlight=False, markup=False, soft_wrap=True)
