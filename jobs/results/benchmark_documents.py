"""What `benchmark.json` holds, key for key."""

from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from jobs.results.documents import CellOutcome, Environment, Facts, JobFacts, RankedBackbone, load_document


class SpreadFacts(TypedDict):
    """A figure over the measured steps, as `throughput.Spread` explains it."""

    median: float
    low: float
    high: float
    count: int
    sure: list[float] | None


class StartupFacts(TypedDict):
    """Seconds until the first step, as `throughput.Startup` explains them."""

    workers_s: float | None
    model_s: float
    data_s: float
    load_s: float
    first_step_s: float
    load_average: float
    cores: int


class CheckpointFacts(TypedDict):
    """One checkpoint: how long training stood still for it, and its size over all ranks."""

    step: int
    stall_s: float
    size_bytes: int


class SpoolFigures(TypedDict):
    """What a cell's spool says of its speed, as `throughput.Figures` explains it."""

    step_time_s: SpreadFacts | None
    gap_s: SpreadFacts | None
    tokens_per_second: SpreadFacts | None
    bytes_per_second: SpreadFacts | None
    examples_per_second: SpreadFacts | None
    startup: StartupFacts | None
    checkpoints: list[CheckpointFacts]
    step_times_s: list[tuple[int, float]]  # (step, seconds)
    span_ms: tuple[int, int] | None


class CellFigures(SpoolFigures):
    """The same with what the spool does not know: the share of each device, MFU, memory. None: not measured."""

    tokens_per_second_per_device: SpreadFacts | None
    bytes_per_second_per_device: SpreadFacts | None
    mfu: float | None
    flops_per_token: float
    peak_device_memory_gib: float | None
    peak_host_memory_gib: float | None
    predicted_device_memory_gib: float
    checkpoint_bytes: int | None
    checkpoint_stall_s: float | None


class MeasuredCell(CellOutcome):
    """A cell of a benchmark; without a measurement it has no figures."""

    figures: CellFigures | None
    faults: list[str]  # why the figures are worth less than they look, a sentence each
    contract: Facts


class BenchmarkFacts(TypedDict):
    """What was asked to be measured."""

    occurrence: str
    warm_up_steps: int
    measured_steps: int
    workers: int
    global_batch_size: int
    sequence_length: int
    training_examples: int
    held_out_examples: int


class BenchmarkSentence(TypedDict):
    """Who is fastest."""

    sentence: str


class BenchmarkReport(TypedDict):
    """`benchmark.json`. `ranking`, `history` and `certificates` are for those who read every job's document alike."""

    format: Literal[1]
    comparison: JobFacts
    benchmark: BenchmarkFacts
    environment: Environment
    cells: list[MeasuredCell]
    metrics: dict[str, dict[str, float]]  # backbone -> figures as single numbers
    ranking: list[RankedBackbone]
    history: None
    certificates: dict[str, Facts | None]
    verdict: BenchmarkSentence


def load_benchmark_report(path: Path) -> BenchmarkReport:
    """Reads `benchmark.json`. Raises InputError for another format, or for what is no benchmark."""
    return load_document(path, TypeAdapter(BenchmarkReport))
