"""From the spool of a benchmarked cell to its figures: medians after warm-up, with their spread. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.stats import binom

from orchestrator.results import StepMetrics
from orchestrator.tracking.spool import Entry, EntryKind, with_warm_up

LOW, HIGH = 0.1, 0.9
WIDE = 0.2  # of the median: a wider range from LOW to HIGH is worth a word
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A figure over the measured steps: its median, and the range from the 10th to the 90th percentile.

    `sure` holds the median of all steps that could have been made, with at least 95 % confidence; None for less than
    six values. It knows the noise within a run, not that between runs.
    """

    median: float
    low: float
    high: float
    count: int  # values behind it
    sure: tuple[float, float] | None

    @property
    def is_wide(self) -> bool:
        return self.high - self.low > WIDE * self.median


@dataclass(frozen=True)
class MeasuredStep:
    """A step after warm-up, and what it alone consumed. `gap_s`: from the end of the step before it to its start,
    or None where something else than a step came before it.
    """

    metrics: StepMetrics
    ended_ms: int
    examples: int
    bytes: int
    gap_s: float | None


@dataclass(frozen=True)
class Startup:
    """Seconds of the attempt that made the first step, until that step. None: not recorded."""

    workers_s: float | None  # from the request for workers until they run: Ray, processes, imports, process group
    model_s: float  # to build, shard and fill the backbone
    data_s: float  # optimizer and data
    load_s: float  # from a running worker to a trainable model: both, and a checkpoint to resume from
    first_step_s: float  # from the request, else from a running worker, to the end of the first step
    load_average: float  # of the machine of rank 0 before it loaded, over one minute
    cores: int


@dataclass(frozen=True)
class CheckpointWrite:
    """One checkpoint: how long training stood still for it, and its size over all ranks."""

    step: int
    stall_s: float
    size_bytes: int


@dataclass(frozen=True)
class Figures:
    """What a cell's spool says of its speed. Rates are of single steps; None: no step was left after warm-up."""

    step_time_s: Spread | None
    gap_s: Spread | None  # between steps: the next batch, bookkeeping
    tokens_per_second: Spread | None  # over all devices, input tokens without padding
    bytes_per_second: Spread | None  # over all devices, learnable text
    examples_per_second: Spread | None  # over all devices
    startup: Startup | None
    checkpoints: tuple[CheckpointWrite, ...]
    step_times_s: tuple[tuple[int, float], ...]  # (step, seconds) of the measured steps
    span_ms: tuple[int, int] | None  # Unix milliseconds at which the first and the last of them ended

    @property
    def stall_s(self) -> float | None:
        """The median checkpoint."""
        return median(one.stall_s for one in self.checkpoints) if self.checkpoints else None


def figures(entries: Sequence[Entry], warm_up: int, workers: int) -> Figures:
    """The figures of one cell. The first `warm_up` steps of every attempt do not count."""
    steps = measured_steps(entries, warm_up)

    def per_second(amount: Callable[[MeasuredStep], float]) -> Spread | None:
        return spread([amount(step) / step.metrics.step_time_s for step in steps])

    return Figures(
        step_time_s=spread([step.metrics.step_time_s for step in steps]),
        gap_s=spread([step.gap_s for step in steps if step.gap_s is not None]),
        tokens_per_second=spread([step.metrics.tokens_per_second_per_device * workers for step in steps]),
        bytes_per_second=per_second(lambda step: step.bytes),
        examples_per_second=per_second(lambda step: step.examples),
        startup=find_startup(entries),
        checkpoints=checkpoint_writes(entries),
        step_times_s=tuple((step.metrics.step, step.metrics.step_time_s) for step in steps),
        span_ms=(steps[0].ended_ms, steps[-1].ended_ms) if steps else None,
    )


def measured_steps(entries: Sequence[Entry], warm_up: int) -> list[MeasuredStep]:
    """The steps that count, in order. A step that a later attempt repeats is in no spool twice."""
    steps, before, last = [], None, None
    for entry, counts in with_warm_up(entries, warm_up):
        if entry.kind is EntryKind.STEP:
            metrics = StepMetrics(**entry.fields)
            if counts:
                examples = metrics.examples_seen - (last.examples_seen if last else 0)
                size = metrics.bytes_seen - (last.bytes_seen if last else 0)
                steps.append(MeasuredStep(metrics, entry.time_ms, examples, size, _gap_s(before, entry)))
            last = metrics
        before = entry
    return steps


def spread(values: Sequence[float]) -> Spread | None:
    """Median and percentiles, interpolated between neighbours; None of nothing."""
    if not values:
        return None
    low, middle, high = np.quantile(values, (LOW, 0.5, HIGH))
    return Spread(float(middle), float(low), float(high), len(values), median_interval(values))


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The distribution-free interval of a median: the k-th smallest and the k-th largest value.

    A value lies below the median with probability 1/2, so their number is binomial. Source: Conover, Practical
    Nonparametric Statistics, 3rd edition, section 3.2.
    """
    cut = int(binom.ppf((1 - CONFIDENCE) / 2, len(values), 0.5))
    ordered = sorted(values)
    return (float(ordered[cut - 1]), float(ordered[-cut])) if cut else None


def find_startup(entries: Sequence[Entry]) -> Startup | None:
    """How long it took to get to the first step; None while there is none."""
    first = next((entry for entry in entries if entry.kind is EntryKind.STEP), None)
    if first is None:
        return None
    phases: dict[str, Entry] = {}
    for entry in entries:
        if entry.kind is EntryKind.PHASE and entry.attempt == first.attempt:
            phases.setdefault(entry.fields["phase"], entry)
    loading, training, asked = phases["loading"], phases["training"], phases.get("starting")
    return Startup(
        workers_s=None if asked is None else _seconds(asked, loading),
        model_s=training.fields["model_s"],
        data_s=training.fields["data_s"],
        load_s=_seconds(loading, training),
        first_step_s=_seconds(asked or loading, first),
        load_average=loading.fields["load_average"],
        cores=loading.fields["cores"],
    )


def checkpoint_writes(entries: Sequence[Entry]) -> tuple[CheckpointWrite, ...]:
    """Every checkpoint of every attempt."""
    written = [entry.fields for entry in entries if entry.kind is EntryKind.PHASE and "stall_s" in entry.fields]
    return tuple(CheckpointWrite(one["step"], one["stall_s"], one["checkpoint_bytes"]) for one in written)


def find_faults(found: Figures, asked: int, attempts: int) -> list[str]:
    """Why the figures are worth less than they look, a sentence each; empty where nothing speaks against them."""
    faults = []
    steps = len(found.step_times_s)
    if steps < asked:
        faults.append(f"only {steps} of {asked} steps were measured")
    if attempts > 1:
        faults.append("it was restarted; the first steps of each attempt are warm-up")
    startup = found.startup
    if startup is not None and startup.load_average > startup.cores + 1:
        cores = "1 core" if startup.cores == 1 else f"{startup.cores} cores"
        faults.append(f"the machine was busy before it began: load average {startup.load_average:.1f} on {cores}")
    time_s = found.step_time_s
    if time_s is not None and time_s.is_wide:
        share = (time_s.high - time_s.low) / time_s.median
        faults.append(
            f"step times vary: from the 10th to the 90th percentile they span {share:.0%} of the median; "
            "measure more steps, or on a quieter machine"
        )
    return faults


def same_time_as(name: str, spans: Mapping[str, tuple[int, int] | None]) -> list[str]:
    """The cells whose measured steps fell into the same time: on one machine they slow each other down."""
    mine = spans[name]
    if mine is None:
        return []
    others = {other: span for other, span in spans.items() if other != name and span is not None}
    return [other for other, (first, last) in others.items() if first < mine[1] and mine[0] < last]


def _gap_s(before: Entry | None, step: Entry) -> float | None:
    """An entry is written when its step ends, to the millisecond: less than that can come out negative."""
    if before is None or before.kind != "step" or before.attempt != step.attempt:
        return None
    return max(0.0, _seconds(before, step) - float(step.fields["step_time_s"]))


def _seconds(start: Entry, end: Entry) -> float:
    return (end.time_ms - start.time_ms) / 1000
