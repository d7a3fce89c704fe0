"""What a finished job came to, as an object: its verdict, its data frames, its report."""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli.options import storage_folder
from jobs.report.benchmark import render_benchmark
from jobs.report.html import render_report
from jobs.results.benchmark_documents import BenchmarkReport, load_benchmark_report
from jobs.results.documents import Report, Verdict, find_verdict
from jobs.results.documents import load_report as load_document
from orchestrator.errors import InputError
from orchestrator.layout import JobFolder

if TYPE_CHECKING:
    from jobs.notebook.frames import Frame

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
        """A row for each held-out item of each finished cell: nats, tokens, bytes, bits per byte."""
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
    given = Path(path).expanduser()
    if not given.exists() and given.name == str(path):
        given = storage_folder(None) / given.name
    if not given.exists():
        raise InputError(f"{path}: no such folder or file; give the folder <name>-<hash> that a job wrote")
    folder = (given if given.is_dir() else given.parent).resolve()
    files = JobFolder(folder)
    named = {files.report.name, files.report_page.name} if given.is_file() else set()
    if files.benchmark.is_file() and given.name not in named:
        return BenchmarkResult(load_benchmark_report(files.benchmark), folder)
    if files.report.is_file():
        return JobResult(load_document(files.report), folder)
    raise InputError(
        f"{folder} holds neither {files.report.name} nor {files.benchmark.name}; a job writes it when it ends: call "
        "what started the job again, which goes on or waits for it"
    )


def framed(page: str, title: str) -> str:
    """A whole page for a notebook's cell: a document of its own, whose styles stay inside, and which runs nothing."""
    return (
        f'<iframe title="{html.escape(title)}" sandbox="" referrerpolicy="no-referrer" loading="lazy" '
        f'style="width:100%;height:{HEIGHT_PX}px;border:0" srcdoc="{html.escape(page)}"></iframe>'
    )
