"""The tables of a benchmark. No torch, ray, mlflow or transformers."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from jobs.formats import NOT_AVAILABLE, count, duration, percent, short_id, significant, size
from jobs.results.benchmark import find_median
from jobs.results.benchmark_documents import BenchmarkReport, CellFigures, SpreadFacts

Columns = tuple[tuple[str, Callable[[CellFigures], str]], ...]


def print_benchmark(document: BenchmarkReport, out: Console) -> None:
    """Speed, then what comes before and between the steps, then what speaks against the figures."""
    out = out if out.is_terminal else Console(width=200)  # a log or a pipe gets whole names
    found = [(cell["backbone_id"], cell["figures"]) for cell in document["cells"] if cell["figures"]]
    facts = document["benchmark"]
    if found:
        out.print(
            f"{facts['measured_steps']} steps after {facts['warm_up_steps']} of warm-up, on "
            f"{document['environment']['hardware']}: median [10th to 90th percentile]",
            highlight=False,
            markup=False,
        )
        out.print(_table(SPEED, found))
        out.print()
        out.print(_table(AROUND, found))
    for cell in document["cells"]:
        for fault in cell["faults"]:
            out.print(f"{cell['backbone_id']}: {fault}", highlight=False, markup=False)
    hint = f"--occurrence {facts['occurrence']}"
    out.print(f"the same command measures anew; with {hint} it finishes or shows this one", highlight=False)


# heading, and what stands below it for the figures of a cell
SPEED: Columns = (
    ("tokens/s per device", lambda figures: _ranged(figures["tokens_per_second_per_device"], count)),
    ("tokens/s", lambda figures: count(find_median(figures["tokens_per_second"]))),
    ("text/s per device", lambda figures: size(find_median(figures["bytes_per_second_per_device"]))),
    ("examples/s", lambda figures: significant(find_median(figures["examples_per_second"]))),
    ("step", lambda figures: _ranged(figures["step_time_s"], duration)),
    ("MFU", lambda figures: percent(figures["mfu"])),
    ("steps", lambda figures: count(len(figures["step_times_s"]))),
)
AROUND: Columns = (
    ("device GiB", lambda figures: significant(figures["peak_device_memory_gib"])),
    ("host GiB", lambda figures: significant(figures["peak_host_memory_gib"])),
    ("workers", lambda figures: duration(figures["startup"] and figures["startup"]["workers_s"])),
    ("load", lambda figures: duration(figures["startup"] and figures["startup"]["load_s"])),
    ("first step after", lambda figures: duration(figures["startup"] and figures["startup"]["first_step_s"])),
    ("checkpoint stall", lambda figures: duration(figures["checkpoint_stall_s"])),
    ("checkpoint", lambda figures: size(figures["checkpoint_bytes"])),
    ("between steps", lambda figures: duration(find_median(figures["gap_s"]))),
)


def _table(columns: Columns, rows: Sequence[tuple[str, CellFigures]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("backbone", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for backbone_id, figures in rows:
        table.add_row(short_id(backbone_id), *(written(figures) for _, written in columns))
    return table


def _ranged(spread: SpreadFacts | None, written: Callable[[float], str]) -> str:
    if spread is None:
        return NOT_AVAILABLE
    # A bracket would be markup to rich if a letter followed it; a number never does.
    return f"{written(spread['median'])} [{written(spread['low'])} to {written(spread['high'])}]"
