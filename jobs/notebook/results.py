"""What a finished job came to, as an object: its verdict, its data frames, its report."""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli.options import storage_folder
from jobs.report.benchmark import render_benchmark
from jobs.report.html import render_report
from jobs.results.benchmark_documents import BenchmarkReport, load_benchmark_report
from jobs.results.differences.stored import find_given, job_folder, unfinished
from jobs.results.documents import Report, Verdict, find_verdict
from jobs.results.documents import load_report as load_document
from orchestrator.layout import JobFolder

if TYPE_CHECKING:
    from jobs.notebook.frames import Frame
    from jobs.results.differences.comparability import Difference

HEIGHT_PX = 720


@dataclass(frozen=True, repr=False)
class JobResult:
    """A comparison or a finetune. In a notebook it shows its report."""

    document: Report
    folder: Path

    @property
    def job_id(self) -> str:
        return self.document["comparison"]["id"]

    @property
    def verdict(self) -> Verdict | None:
        """Of a comparison: outcome, winner, sentence, pairs. None of a finetune."""
        return find_verdict(self.document)

    @property
    def winner(self) -> str | None:
        """The backbone that beats every other; None where none does."""
        return None if self.verdict is None else self.verdict["winner"]

    @property
    def export(self) -> Path | None:
        """The Hugging Face folder of a finetune that exported one."""
        folder = self.document["comparison"].get("export")
        return Path(folder) if folder else None

    @property
    def ranking(self) -> "Frame":
        """A row for each backbone, best first; empty for a finetune."""
        from jobs.notebook.frames import ranking_frame

        return ranking_frame(self.document.get("ranking") or [])

    @property
    def cells(self) -> "Frame":
        """A row for each cell: backbone, seed, status, and its metrics."""
        from jobs.notebook.frames import cells_frame

        return cells_frame(self.document["cells"])

    @property
    def items(self) -> "Frame":
        """A row for each held-out item of each finished cell: its nats, tokens and bytes, and its row's columns."""
        from jobs.notebook.frames import items_frame

        return items_frame(self.document["cells"], self.folder)

    @property
    def curves(self) -> "Frame":
        """A row for each step at which a cell was scored or its training loss kept."""
        from jobs.notebook.frames import curves_frame

        return curves_frame(self.document["cells"])

    @property
    def pairs(self) -> "Frame":
        """A row for every two backbones with two seeds or more: difference, interval, p-values."""
        from jobs.notebook.frames import pairs_frame

        return pairs_frame(self.verdict["pairs"] if self.verdict else [])

    def diff(self, other: "JobResult") -> "Difference":
        """What changed from this job to another, and whether their scores are comparable; as `backbone diff`."""
        from jobs.results.differences.comparability import find_difference
        from jobs.results.differences.sides import side_of_report

        return find_difference(*(side_of_report(job.document, str(job.folder)) for job in (self, other)))

    def __repr__(self) -> str:
        sentence = self.verdict["sentence"] if self.verdict else f"{len(self.document['cells'])} cell(s)"
        return f"{self.job_id}: {sentence} (report: {JobFolder(self.folder).report_page})"

    def _repr_html_(self) -> str:
        return framed(render_report(self.document), self.job_id)


@dataclass(frozen=True, repr=False)
class BenchmarkResult:
    """How fast each backbone trains. In a notebook it shows its page."""

    document: BenchmarkReport
    folder: Path

    @property
    def job_id(self) -> str:
        return self.document["comparison"]["id"]

    @property
    def sentence(self) -> str:
        """Who is fastest."""
        return self.document["verdict"]["sentence"]

    @property
    def cells(self) -> "Frame":
        """A row for each backbone: status and figures, medians of single steps."""
        from jobs.notebook.frames import figures_frame

        return figures_frame(self.document["cells"], self.document["metrics"])

    def __repr__(self) -> str:
        return f"{self.job_id}: {self.sentence} (report: {JobFolder(self.folder).benchmark_page})"

    def _repr_html_(self) -> str:
        return framed(render_benchmark(self.document), self.job_id)


def load_report(path: str | Path) -> JobResult | BenchmarkResult:
    """The result of a finished job: of its folder, of a file in it, or by its id in the storage.

    The storage is BACKBONE_STORAGE, else ./runs. Raises InputError where there is no report, or none that is sound.
    """
    given = find_given(path, storage_folder(None))
    files = job_folder(given)
    named = {files.report.name, files.report_page.name} if given.is_file() else set()
    if files.benchmark.is_file() and given.name not in named:
        return BenchmarkResult(load_benchmark_report(files.benchmark), files.path)
    if files.report.is_file():
        return JobResult(load_document(files.report), files.path)
    raise unfinished(files)


def framed(page: str, title: str) -> str:
    """A whole page for a notebook's cell: a document of its own, whose styles stay inside, and which runs nothing."""
    return (
        f'<iframe title="{html.escape(title)}" sandbox="" referrerpolicy="no-referrer" loading="lazy" '
        f'style="width:100%;height:{HEIGHT_PX}px;border:0" srcdoc="{html.escape(page)}"></iframe>'
    )
