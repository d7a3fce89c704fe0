"""Every name in a storage and in an export, in this one place. Pure; nothing here looks at a disk but the globs.

A storage holds `cells/`, a folder for each job, and what jobs share. Its names outlive versions: a stored run is found
by them. Over 300 lines: nobody has to look for a name elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUN_SUFFIX = ".run.json"  # beside the state file of a tracked run: what the run is
SPOOL_FILE = "steps.jsonl"
MANIFEST = "manifest.json"  # of a checkpoint, written last
TASK_RESULTS, TASK_SAMPLES = "tasks.json", "tasks.parquet"  # of a cell, or wherever a model was asked
ROLLOUTS, FILMS = "rollouts.json", ("success.webp", "failure.webp")  # of a cell, or wherever a model acted
EXPORT_MANIFEST, EXPORT_UNFINISHED = "training_manifest.json", "unfinished"  # in an export folder


@dataclass(frozen=True)
class Storage:
    """The folder that every node shares."""

    path: Path

    def cell(self, cell_id: str) -> "CellFolder":
        """Shared by every job that has the cell."""
        return CellFolder(self.path / "cells" / cell_id)

    def job(self, job_id: str) -> "JobFolder":
        """Where a job's report goes."""
        return JobFolder(self.path / job_id)

    def tracked_jobs(self) -> list["JobFolder"]:
        """The jobs that MLflow was to hear of, by name."""
        return [JobFolder(path.parent) for path in sorted(self.path.glob("*/tracking"))]

    def reports(self) -> list["JobFolder"]:
        """The jobs that have a report, by name."""
        return [JobFolder(path.parent) for path in sorted(self.path.glob("*/report.json"))]

    def begun(self) -> list["JobFolder"]:
        """The jobs that a driver was started for, by name."""
        return [JobFolder(path.parent) for path in sorted(self.path.glob("*/spec.yaml"))]

    def benchmarks(self) -> list["JobFolder"]:
        """The jobs that measured speed, by name."""
        return [JobFolder(path.parent) for path in sorted(self.path.glob("*/benchmark.json"))]

    def looks(self) -> list[Path]:
        """What each job keeps of its looks at a comparison."""
        return sorted(self.path.glob("*/looks.json"))

    @property
    def certificates(self) -> Path:
        return self.path / "certificates"

    def certification(self, slug: str, launch: str) -> Path:
        """Of a certification while its proofs are made."""
        return self.certificates / f".{slug}-{launch}"

    @property
    def prepared(self) -> Path:
        """Token arrays, named by content."""
        return self.path / "prepared"

    def work(self, work: str, cell_id: str) -> Path:
        """What a cell of that `Cell.work` learned from."""
        return self.path / "works" / work[:32] / f"{cell_id}.json"

    def works(self, work: str) -> dict[str, Path]:
        """Those files by cell, of all cells of that work."""
        return {file.name.removesuffix(".json"): file for file in sorted(self.work(work, "").parent.glob("*.json"))}

    def learned(self, digest: str) -> Path:
        """A set of training examples that cells learned from, named by content."""
        return self.path / "works" / "learned" / f"{digest[:32]}.npy"

    @property
    def queue_store(self) -> Path:
        """The dispatcher's database, where it is SQLite."""
        return self.path / "queue" / "queue.db"

    @property
    def code(self) -> Path:
        """Of submitted jobs, as zips named by content."""
        return self.path / "queue" / "code"

    @property
    def compiled(self) -> Path:
        """What Inductor made of decoder layers, for every job and process."""
        return self.path / "compiled"

    def schedule(self, name: str) -> Path:
        """What each firing of a schedule measured, a file a firing."""
        return self.path / "schedules" / name

    @property
    def mlflow_database(self) -> Path:
        """Where no MLflow server is given."""
        return self.path / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Beside that database."""
        return self.path / "mlartifacts"

    @property
    def cluster(self) -> Path:
        """What `backbone up` started on this machine, and its logs."""
        return self.path / "cluster"

    @property
    def cluster_state(self) -> Path:
        return self.cluster / "state.json"

    @property
    def cluster_lock(self) -> Path:
        return self.cluster / "lock"


@dataclass(frozen=True)
class JobFolder:
    """A job's own folder: `<name>-<hash>`."""

    path: Path

    @property
    def spec(self) -> Path:
        """The spec as its author wrote it."""
        return self.path / "spec.yaml"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def report_page(self) -> Path:
        return self.path / "report.html"

    @property
    def items(self) -> Path:
        """The held-out items side by side: what is known of each, and each backbone's bits per byte."""
        return self.path / "items.parquet"

    @property
    def output(self) -> Path:
        """What a driver prints that a Python program started on this machine."""
        return self.path / "output.txt"

    @property
    def looks(self) -> Path:
        """The verdicts that were made in this folder, and what each cost of alpha."""
        return self.path / "looks.json"

    @property
    def benchmark(self) -> Path:
        return self.path / "benchmark.json"

    @property
    def benchmark_page(self) -> Path:
        return self.path / "benchmark.html"

    def certificate(self, slug: str, identity: str) -> Path:
        """A candidate's certificate, beside the report."""
        return self.path / f"certificate-{slug}-{identity[:10]}.json"

    @property
    def preparation(self) -> Path:
        """What was tokenized for the job, and what each candidate sees."""
        return self.path / "data" / "preparation.json"

    def selection(self, number: int) -> Path:
        """The examples that one candidate sees."""
        return self.path / "data" / f"selection-{number}.npz"

    def trial_selection(self, number: int) -> Path:
        """The examples that its trials see, where learning rates are tuned."""
        return self.path / "data" / f"trial-selection-{number}.npz"

    @property
    def tracking(self) -> Path:
        """What MLflow is told: a description and a state for each run."""
        return self.path / "tracking"

    @property
    def synced(self) -> Path:
        """There while nothing of the job is left to send."""
        return self.tracking / "synced.json"

    @property
    def parent_run(self) -> Path:
        return self.tracking / "parent.json"

    def child_run(self, cell_id: str) -> Path:
        return self.tracking / f"{cell_id}.json"

    @property
    def driver_lock(self) -> Path:
        """Held, shared, by every driver of the job while it lives."""
        return self.path / "driver.lock"

    @property
    def driver_waits(self) -> Path:
        """There while a driver waits for a sync to leave."""
        return self.path / "driver.waits"


@dataclass(frozen=True)
class CellFolder:
    """A cell's folder, shared by all its attempts and by all ranks."""

    path: Path

    @property
    def storage(self) -> Storage:
        """Where the folder is."""
        return Storage(self.path.parents[1])

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def stop(self) -> Path:
        """While it exists, the workers stop at the next step, after a checkpoint."""
        return self.path / "stop"

    @property
    def lock(self) -> Path:
        """Held by whoever trains the cell."""
        return self.path / "lock"

    @property
    def ray(self) -> Path:
        """Ray Train's own folder."""
        return self.path / "ray"

    def gang(self, attempt: int) -> Path:
        """The mailbox of a gang that was started for an attempt at this cell, while the gang lives."""
        return self.path / "gangs" / f"attempt-{attempt:03d}"

    def worker(self, rank: int) -> Path:
        """Where a rank's process is noted: its node, its pid and its attempt."""
        return self.path / "workers" / f"rank-{rank}.json"

    def failure(self, attempt: int, rank: int | None) -> Path:
        """A rank's account of why an attempt ended."""
        return self.path / "failures" / f"attempt-{attempt:03d}-rank-{rank}.json"

    def failures(self, attempt: int) -> Iterator[Path]:
        """The accounts of an attempt that there are."""
        return (self.path / "failures").glob(f"attempt-{attempt:03d}-rank-*.json")

    def stack(self, attempt: int, rank: int) -> Path:
        """Where a rank stood when nothing went on any more."""
        return self.path / "failures" / f"attempt-{attempt:03d}-rank-{rank}.stack.txt"

    @property
    def attempts(self) -> Path:
        """How many there were, and why each ended."""
        return self.path / "attempts.json"

    @property
    def certificate(self) -> Path:
        """A copy of the certificate that the cell was trained under."""
        return self.path / "certificate.json"

    @property
    def contract(self) -> Path:
        """What the run really was, as found after the first step."""
        return self.path / "contract.json"

    @property
    def items(self) -> Path:
        """Per-item scores: item, nats, tokens, bytes."""
        return self.path / "items.parquet"

    @property
    def earlier_items(self) -> Path:
        """The same, as cells of earlier versions have them."""
        return self.path / "items.npz"

    @property
    def item_table(self) -> Path:
        """The first items with their texts, for a tracker to show."""
        return self.path / "items.json"

    @property
    def measurement(self) -> Path:
        """The last thing that a worker writes."""
        return self.path / "measurement.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def adoption(self) -> Path:
        """Whose result the cell took over. Without a result beside it, the taking over was cut off."""
        return self.path / "adoption.json"

    @property
    def tasks(self) -> tuple[Path, ...]:
        """What it answered, where it was asked tasks or held-out instructions."""
        return self.path / TASK_RESULTS, self.path / TASK_SAMPLES, self.answers

    @property
    def answers(self) -> Path:
        """What it wrote to held-out instructions."""
        return self.path / "answers.parquet"

    @property
    def rollouts(self) -> Path:
        """The episodes that it played, where it did."""
        return self.path / ROLLOUTS

    @property
    def films(self) -> tuple[Path, Path]:
        """Of one that succeeded and of one that did not, where there are such."""
        return self.path / FILMS[0], self.path / FILMS[1]

    @property
    def outcome(self) -> tuple[Path, ...]:
        """What attempts leave behind; the result goes first, so that nothing unfinished looks finished."""
        files = (self.result, self.measurement, self.items, self.earlier_items, self.item_table, self.contract)
        asked = (*self.tasks, self.rollouts, *self.films)
        folders = (self.spool, self.checkpoints, self.path / "failures")
        return (*files, self.certificate, self.attempts, *asked, *folders)


@dataclass(frozen=True)
class MailboxFolder:
    """Between a driver and a gang of workers."""

    path: Path

    @property
    def call(self) -> Path:
        """What the gang is to do next."""
        return self.path / "call.json"

    @property
    def answer(self) -> Path:
        """What became of the last call."""
        return self.path / "answer.json"


def certificate_file(folder: Path, slug: str, keys_hash: str) -> Path:
    """A certificate in the folder of all of them, named by everything that it depends on."""
    return folder / f"{slug}-{keys_hash[:16]}.json"


def certificate_run(file: Path, launch: str) -> Path:
    """What MLflow was sent of a certificate, by a launch."""
    return file.parent / "tracking" / f"{file.stem}-{launch}.json"


def checkpoint_folder(root: Path, step: int, attempt: int) -> Path:
    """Where one checkpoint goes: a folder of its own, so that nothing is ever written over."""
    return root / f"step-{step:08d}-attempt-{attempt:03d}"


def checkpoint_folders(root: Path) -> list[Path]:
    """The newest attempt first, then the latest step: an attempt may have passed a damaged one over and gone back."""
    folders = (path for path in root.glob("step-*-attempt-*") if path.is_dir())
    return sorted(folders, key=lambda path: (path.name.rpartition("-")[2], path.name), reverse=True)
