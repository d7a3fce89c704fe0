"""What travels from the driver to a cell's workers, and the files both sides know. No torch, ray, mlflow."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backbones.spec import BackboneSpec
from orchestrator.data.prepare import Prepared
from orchestrator.faults import Fault
from orchestrator.identity import content_hash
from orchestrator.layout import EXPORT_MANIFEST, CellFolder
from orchestrator.planning.plan import Cell
from orchestrator.results import read_json
from orchestrator.spec_files.spec import Generation, Recipe


@dataclass(frozen=True)
class ExportRequest:
    """Where to write the trained model, and the spec that asked for it."""

    folder: Path
    spec: dict[str, Any]


@dataclass(frozen=True)
class CertificateRequest:
    """Which certificate a gang of workers must hold, and how they would train: it is proved as they would run it."""

    backbone: BackboneSpec
    recipe: Recipe  # its adaptation, attention, precision and activation checkpointing count here
    replicas: int
    folder: Path  # of all certificates; every node sees it
    launch: str
    plugins: tuple[str, ...] = ()
    device_gib: float | None = None  # what a worker may use; None: all that its device has


@dataclass(frozen=True)
class TaskRequest:
    """Which tasks of lm-evaluation-harness a trained cell is asked. `digest` of their names and their own files."""

    names: tuple[str, ...]
    include_path: Path | None  # every node sees it
    digest: str


def generation_digest(asked: Generation) -> str:
    """Tells whether a cell was given the same instructions before."""
    return content_hash(asked.model_dump(mode="json"))


@dataclass(frozen=True)
class RolloutRequest:
    """Which episodes a trained cell plays, and how often on the way."""

    environment: str
    episodes: int
    seed: int
    max_steps: int | None = None  # None: the environment's own limit
    execute: int | None = None  # actions of a chunk that are taken before the next question; None: all
    every: float = 1.0  # share of the budget after which they are played; 1: at the end alone
    code: str = ""  # a hash of the module that the environment's name imports, if any

    @property
    def digest(self) -> str:
        """Tells whether a cell played the same episodes before; a curve is no reason to play them anew."""
        limit = () if self.max_steps is None else (self.max_steps,)
        taken = () if self.execute is None else ("execute", self.execute)
        code = ("code", self.code) if self.code else ()
        return content_hash([self.environment, self.episodes, self.seed, *limit, *taken, *code])


@dataclass(frozen=True)
class CellJob:
    """One attempt at a cell: everything its workers need, small enough to travel."""

    cell: Cell  # with the micro-batch of this attempt
    attempt: int
    folder: Path  # shared by all ranks and by all attempts
    prepared: Prepared | None  # None: nothing is trained, the certificate is all that is asked for
    selection_file: str
    flops_per_token: float
    deadline: float  # time.time() at which the cell has used up policy.timeout
    export: ExportRequest | None = None
    certificate: CertificateRequest | None = None  # None: nobody asks for one
    tasks: TaskRequest | None = None
    rollouts: RolloutRequest | None = None
    plugins: tuple[str, ...] = ()  # modules that register backbones
    hang_timeout_s: float | None = None  # without progress in a step; None: by how long steps take
    faults: tuple[Fault, ...] = ()  # that somebody asked for

    @property
    def name(self) -> str:
        return self.cell.cell_id

    @property
    def trains(self) -> bool:
        """Whether the cell is trained and measured, or only certified."""
        return self.prepared is not None

    @property
    def spool_folder(self) -> Path:
        return CellFolder(self.folder).spool

    @property
    def checkpoint_root(self) -> Path:
        return CellFolder(self.folder).checkpoints

    @property
    def stop_file(self) -> Path:
        """While it exists, the workers stop at the next step, after a checkpoint."""
        return CellFolder(self.folder).stop

    @property
    def has_started(self) -> bool:
        """Whether rank 0 of this attempt runs."""
        file = CellFolder(self.folder).worker(0)
        return file.exists() and read_json(file)["attempt"] == self.attempt


def find_missing_harness() -> str | None:
    """What to do where lm-evaluation-harness is not installed; None where it is."""
    if find_spec("lm_eval") is not None:
        return None
    return (
        "tasks are run by lm-evaluation-harness, which is not installed here; "
        "run `pip install 'backbone-orchestrator[eval]'`, on every node of a cluster"
    )


def find_export(folder: Path) -> str | None:
    """The cell_id that a finished export folder came from, or None."""
    manifest = folder / EXPORT_MANIFEST
    if not (manifest.is_file() and (folder / "config.json").is_file()):
        return None
    return str(read_json(manifest)["cell_id"])
