"""How fast backbones train: a comparison's cells with fewer steps and less data, and the figures they leave."""

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from jobs.driver.kinds.kind import Conclusion, OneRound, metric_name
from jobs.report.benchmark import render_benchmark
from jobs.results.benchmark import benchmark_document
from orchestrator.data.sources.dataset import Dataset
from orchestrator.errors import InputError
from orchestrator.identity import backbone_slug, content_hash
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import Cell, Plan, by_budget, load_comparison, untuned
from orchestrator.results import CellResult, CellStatus, write_json
from orchestrator.spec_files.spec import Benchmark, Budget, Checkpointing, Comparison, Evaluate, SeveralBackbones

KIND = "benchmark"
WARM_UP, MEASURED = 5, 20
FEWEST = 3  # steps of which a spread can be told
# Speed depends on how long examples are, not on how many there are: a sample saves the tokenizing of the rest.
TRAINING_EXAMPLES, HELD_OUT_EXAMPLES = 10_000, 16


def load_benchmark(path: Path, warm_up: int = WARM_UP, measured: int = MEASURED, occurrence: str | None = None) -> Plan:
    """Plans the benchmark of `compare.yaml`. Raises SpecError, and InputError for what is wrong with the numbers.

    Every call plans a new measurement, unless `occurrence` names one: then what it has finished is not run again.
    """
    if warm_up < 0 or measured < FEWEST:
        raise InputError(f"--steps must be at least {FEWEST} and --warmup at least 0; a spread needs some steps")
    return benchmark_plan(
        untuned(by_budget(load_comparison(path))[-1]), warm_up, measured, occurrence or new_occurrence()
    )


def new_occurrence() -> str:
    """A name that no other measurement has; the time in it is for people."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}-{uuid.uuid4().hex[:6]}"


def benchmark_plan(comparison: Plan, warm_up: int, measured: int, occurrence: str) -> Plan:
    """The benchmark of a planned comparison: its first seed, no evaluation to speak of, and ids of its own."""
    assert isinstance(comparison.job, Comparison)
    seed = comparison.job.seed_list[0]
    job = _job(comparison.job, seed, warm_up, measured, occurrence)
    train = sample(comparison.train, TRAINING_EXAMPLES)
    validation = sample(comparison.validation, HELD_OUT_EXAMPLES)
    pairs = zip(comparison.cells, comparison.forecasts, strict=True)
    chosen = [(cell, forecast) for cell, forecast in pairs if cell.seed == seed]
    cells = tuple(_cell(cell, job, train, validation) for cell, _ in chosen)
    return replace(
        comparison,
        job_id=f"{job.name}-{KIND}-{content_hash([KIND, [cell.cell_id for cell in cells]])[:10]}",
        job=job,
        cells=cells,
        forecasts=tuple(forecast for _, forecast in chosen),
        train=train,
        validation=validation,
    )


def sample(data: Dataset, count: int) -> Dataset:
    """At most `count` examples, evenly spaced, so that sources which stand one after the other are all in it."""
    total = len(data)
    return data if total <= count else data.take([index * total // count for index in range(count)])


def _job(job: Comparison, seed: int, warm_up: int, measured: int, occurrence: str) -> Benchmark:
    """A checkpoint in the middle of the measured steps shows how long it stalls them; one at the end is the rule."""
    total = warm_up + measured
    changes = {
        "budget": Budget(kind="steps", amount=total),
        "evaluate": Evaluate(every=1.0),
        "checkpoint": Checkpointing(every=(warm_up + (measured + 1) // 2) / total, keep=1),
    }
    fields = {key: getattr(job, key) for key in SeveralBackbones.model_fields}
    fields |= {"seeds": (seed,), "recipe": job.recipe.model_copy(update=changes)}
    return Benchmark(**fields, warm_up=warm_up, measured=measured, occurrence=occurrence)


def _cell(cell: Cell, job: Benchmark, train: Dataset, validation: Dataset) -> Cell:
    """`cell_id` hashes the comparison's own, so no cell of a comparison can have it."""
    steps = [job.warm_up, job.measured, job.recipe.checkpoint.every]
    identity = content_hash([KIND, cell.cell_id, steps, [train.digest, validation.digest], job.occurrence])
    return replace(
        cell,
        cell_id=f"{backbone_slug(cell.backbone)}-{KIND}-{identity[:10]}",
        recipe=job.recipe,
        train_digest=train.digest,
        validation_digest=validation.digest,
        occurrence=job.occurrence,
        work=identity,
    )


class BenchmarkKind(OneRound):
    """`backbone benchmark`."""

    entry_point = "jobs.benchmark"

    def conclude(self, plan: Plan, results: Sequence[CellResult], command: str) -> Conclusion:
        """Writes the page and the facts behind it.

        The checkpoints of finished cells go: they were written to be timed, and nothing continues from them.
        """
        document = benchmark_document(plan, results, command)
        write_json(plan.files.benchmark, document)
        plan.files.benchmark_page.write_text(render_benchmark(document), encoding="utf-8")
        for result in results:
            if result.status is CellStatus.SUCCEEDED:
                shutil.rmtree(CellFolder(Path(result.folder)).checkpoints, ignore_errors=True)
        figures = {
            metric_name(name, backbone_id): value
            for backbone_id, values in document["metrics"].items()
            for name, value in values.items()
        }
        files = (plan.files.benchmark_page, plan.files.benchmark)
        return Conclusion(document, files, figures, verdict=str(document["verdict"]["sentence"]))
