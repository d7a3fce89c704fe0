"""What `backbone diff` prints for people. No torch, ray, mlflow or transformers."""

from collections.abc import Sequence

from pydantic import JsonValue
from rich.table import Table
from rich.text import Text

from jobs.cli import tables
from jobs.formats import fixed, short_id, signed
from jobs.results.differences.changes import BackboneChange, BackboneScores, Cells, Change, Effect
from jobs.results.differences.comparability import Difference, shown

EFFECTS: dict[Effect, str] = {
    "scores": "other scores",
    "rounding": "other last digits",
    "none": "",
    "unknown": "its data is not known",
}
METRICS = {
    "bits_per_byte": "bits per byte",
    "item_bits_per_byte": "bits per byte, mean of items",
    "rollout_success": "share of failed episodes",
}
NAMED = 6  # cells in a line
SEEDS = 10  # of a backbone in a line


def print_difference(found: Difference) -> None:
    """Whether the scores are comparable, then all that differs, then the scores."""
    _say(found.sentence)
    print()
    for name, facing in (("A", found.a), ("B", found.b)):
        _say(f"{name}  {facing.source}: {facing.title}")
    changes = found.changes
    _print_changes("spec", changes.spec)
    _print_changes("data", changes.data)
    _print_backbones(changes.backbones)
    _print_changes("environment", changes.environment)
    _print_cells(changes.cells)
    _print_scores(METRICS[changes.metric], changes.scores)
    if changes.verdicts is not None:
        print()
        for name, judged in (("A", changes.verdicts.a), ("B", changes.verdicts.b)):
            if judged is not None:
                look = "" if judged.look is None else f"look {judged.look}: "
                _say(f"verdict {name}  {look}{judged.sentence}")
        _say(changes.verdicts.sentence)


def _print_changes(heading: str, changes: Sequence[Change]) -> None:
    if not changes:
        return
    table = _table(heading, ("A", "B", "means"))
    for change in changes:
        table.add_row(*_row(change))
    print()
    tables.print_wide(table)


def _print_backbones(backbones: Sequence[BackboneChange]) -> None:
    if not backbones:
        return
    table = _table("backbone", ("fact", "A", "B", "means"))
    for backbone in backbones:
        for change in backbone.changes:
            table.add_row(Text(short_id(backbone.backbone_id)), *_row(change))
    print()
    tables.print_wide(table)


def _row(change: Change) -> tuple[Text, ...]:
    is_set = bool(change.added or change.removed)
    before = "  ".join(f"- {item}" for item in change.removed) if is_set else _value(change.a)
    after = "  ".join(f"+ {item}" for item in change.added) if is_set else _value(change.b)
    return tuple(Text(text) for text in (change.path, before, after, EFFECTS[change.effect]))


def _print_cells(cells: Cells) -> None:
    if not (cells.shared or cells.only_a or cells.only_b):
        return
    print()
    _say(f"cells  {len(cells.shared)} in both, {len(cells.only_a)} only in A, {len(cells.only_b)} only in B")
    for name, only in (("A", cells.only_a), ("B", cells.only_b)):
        if only:
            more = f" and {len(only) - NAMED} more" if len(only) > NAMED else ""
            _say(f"  only in {name}: {', '.join(only[:NAMED])}{more}")
    for cell in cells.ended_otherwise:
        _say(f"  {cell.cell_id}: {cell.a} in A, {cell.b} in B")


def _print_scores(metric: str, scores: Sequence[BackboneScores]) -> None:
    if not scores:
        return
    table = _table(metric, ("A", "B", "B - A", "same seeds"), justify="right")
    table.add_column("B - A by seed", no_wrap=True)
    for row in scores:
        paired = [seed for seed in row.seeds if seed.difference is not None]
        by_seed = "  ".join(f"{seed.seed}: {signed(seed.difference)}" for seed in paired[:SEEDS])
        table.add_row(
            Text(short_id(row.backbone_id)),
            *(fixed(row.a), fixed(row.b), signed(row.difference), signed(row.same_seeds)),
            by_seed + ("  ..." if len(paired) > SEEDS else ""),
        )
    print()
    tables.print_wide(table)


def _table(heading: str, columns: Sequence[str], justify: str = "left") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(Text(heading), no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right" if justify == "right" else "left", no_wrap=True)
    return table


def _value(value: JsonValue) -> str:
    return "-" if value is None else shown(value)


def _say(text: str) -> None:
    tables.out.print(text, highlight=False, markup=False, soft_wrap=True)
