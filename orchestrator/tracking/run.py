"""A run as the driver describes it and as MLflow has acknowledged it, each a file, so that somebody else can finish it.

The state file holds what was sent; the file beside it (`.run.json`) what the run is and what is to become of it. Both
are written before the driver relies on them: whoever finds them after its death sends the same rows that it would have.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.layout import RUN_SUFFIX
from orchestrator.results import read_json, write_json
from orchestrator.tracking.spool import read_from
from orchestrator.tracking.system import Sample, read_samples, sample_files

HIDDEN = "***"


@dataclass(frozen=True)
class Destination:
    """An MLflow server and an experiment on it. `address` is its URI without a password."""

    address: str
    experiment: str


@dataclass(frozen=True)
class TrackedDataset:
    """A split that a run sees: as what (training, validation), as the spec calls it, and a digest of its content."""

    use: str
    reference: str
    digest: str
    examples: int
    learnable_bytes: int
    images: int = 0


class Point(NamedTuple):
    """One of a line that a run draws of what is known of other times."""

    step: int
    time_ms: int
    value: float


@dataclass
class TrackedRun:
    """One MLflow run: what it is called, where its spool is, and what is to become of it."""

    name: str
    state_file: Path  # remembers what was acknowledged
    tags: dict[str, str]
    params: dict[str, str]
    datasets: tuple[TrackedDataset, ...] = ()
    spool_folder: Path | None = None
    parent: "TrackedRun | None" = None
    began_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    status: str = "RUNNING"  # MLflow RunStatus name
    ended_ms: int = 0  # 0 until it has a terminal status
    summary: dict[str, float] = field(default_factory=dict)
    summary_time_ms: int = 0  # of the facts behind the summary, not of its sending: a repeat must be identical
    series: dict[str, list[Point]] = field(default_factory=dict)  # whole lines, sent with the summary
    artifacts: tuple[Path, ...] = ()
    registered_model: tuple[str, Path] | None = None  # name and folder of the model that it exports if it finishes
    sent: "Sent" = field(default_factory=lambda: Sent())
    problem: str | None = None
    destination: Destination | None = None  # None until a writer tracks it

    @property
    def is_settled(self) -> bool:
        """Everything is acknowledged, or MLflow refused it for good."""
        return self.problem is not None or (self.status != "RUNNING" and self._is_sent)

    @property
    def lacks_model(self) -> bool:
        """Whether its exported folder is still to be registered."""
        wanted = self.registered_model if self.status == "FINISHED" else None
        return wanted is not None and [str(part) for part in wanted] != self.sent.model

    @property
    def _is_sent(self) -> bool:
        sent = self.sent
        known = self.status == sent.status and self.summary == sent.summary and self.tags == sent.tags
        return (
            known
            and not self.lacks_model
            and (self.spool_folder is None or next(read_from(self.spool_folder, sent.offset), None) is None)
            and next(self.unsent_samples(), None) is None
        )

    def unsent_samples(self) -> Iterator[tuple[str, Sample, int]]:
        """What machines did that is not acknowledged yet: the machine, the sample, and the offset behind it."""
        if self.spool_folder is None:
            return
        for machine, file in sample_files(self.spool_folder).items():
            for sample, end in read_samples(file, self.sent.samples.get(machine, 0)):
                yield machine, sample, end


@dataclass
class Sent:
    """What MLflow has acknowledged, as kept in the state file."""

    uri: str = ""  # without a password
    creation_id: str = ""  # a tag of the run, noted before the run is created: finds it when the answer was lost
    run_id: str | None = None
    sole: bool = False  # the first request to create it was answered, so the server made no other run of this creation
    params: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    offset: int = 0
    samples: dict[str, int] = field(default_factory=dict)  # offsets, by machine
    summary: dict[str, float] = field(default_factory=dict)
    model: list[str] = field(default_factory=list)  # name and folder of the registered model
    status: str = ""


def recall_sent(run: TrackedRun, address: str) -> Sent:
    """What an earlier process already sent of this run to the same server."""
    if run.state_file.exists():
        sent = Sent(**read_json(run.state_file))
        sent.uri = without_password(sent.uri)
        if sent.uri == address:
            return sent
    return Sent(uri=address)


def describe(run: TrackedRun) -> None:
    """Writes down what a tracked run is; paths relative to the file, so that a storage may be mounted elsewhere."""
    assert run.destination is not None
    folder = run.state_file.parent
    model = run.registered_model
    document = {
        **asdict(run.destination),
        "name": run.name,
        "parent": None if run.parent is None else run.parent.state_file.name,
        "tags": run.tags.copy(),
        "params": run.params,
        "datasets": [asdict(one) for one in run.datasets],
        "spool_folder": None if run.spool_folder is None else os.path.relpath(run.spool_folder, folder),
        "began_ms": run.began_ms,
        "status": run.status,
        "ended_ms": run.ended_ms,
        "summary": run.summary,
        "summary_time_ms": run.summary_time_ms,
        "series": {name: [list(point) for point in points] for name, points in run.series.items()},
        "artifacts": [os.path.relpath(artifact, folder) for artifact in run.artifacts],
        "registered_model": None if model is None else [model[0], str(model[1])],
    }
    file = run.state_file.with_suffix(RUN_SUFFIX)
    if not file.exists() or read_json(file) != document:
        write_json(file, document)


def described_runs(folder: Path) -> list[TrackedRun]:
    """The runs whose descriptions are in a folder, every parent before its children."""
    documents = {file.name.removesuffix(RUN_SUFFIX): read_json(file) for file in sorted(folder.glob(f"*{RUN_SUFFIX}"))}
    runs: dict[str, TrackedRun] = {}
    for stem, document in sorted(documents.items(), key=lambda item: item[1]["parent"] is not None):
        runs[f"{stem}.json"] = _described(folder, f"{stem}.json", document, runs)
    return [*runs.values()]


def _described(folder: Path, state_name: str, document: dict[str, Any], known: dict[str, TrackedRun]) -> TrackedRun:
    def located(path: str) -> Path:
        return Path(os.path.normpath(folder / path))

    spool, model, parent = document["spool_folder"], document["registered_model"], document["parent"]
    return TrackedRun(
        name=document["name"],
        state_file=folder / state_name,
        tags=document["tags"],
        params=document["params"],
        datasets=tuple(TrackedDataset(**one) for one in document.get("datasets", ())),  # earlier versions had none
        spool_folder=None if spool is None else located(spool),
        parent=None if parent is None else known[parent],
        began_ms=document["began_ms"],
        status=document["status"],
        ended_ms=document["ended_ms"],
        summary=document["summary"],
        summary_time_ms=document["summary_time_ms"],
        series={name: [Point(*one) for one in points] for name, points in document.get("series", {}).items()},
        artifacts=tuple(map(located, document["artifacts"])),
        registered_model=None if model is None else (model[0], Path(model[1])),
        destination=Destination(document["address"], document["experiment"]),
    )


def without_password(uri: str) -> str:
    """A URI with *** in the place of its user and password, and of what its query calls a secret."""
    scheme, separator, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    _, at, host = authority.rpartition("@")
    shown = f"{scheme}{separator}{HIDDEN}@{host}{slash}{path}" if at else uri
    return re.sub(r"(?i)((?:password|passwd|token|secret)=)[^&]*", rf"\1{HIDDEN}", shown)
