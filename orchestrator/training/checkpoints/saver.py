"""Saves checkpoints behind the training: it stands still for a copy of its state, and a thread writes that copy.

The thread talks to those of the other ranks over a gloo group of their own: object collectives of DCP and the
training's own, mixed on one group, would meet each other. See docs/decisions/0010-checkpoints-behind-the-training.md.
"""

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import xxhash
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

from backbones.contract import TrainableBackbone
from orchestrator.errors import CheckpointError
from orchestrator.faults import Point
from orchestrator.hardware import GIB
from orchestrator.layout import checkpoint_folder
from orchestrator.parallel import Mesh
from orchestrator.training.checkpoints.checkpoint import Digest, learned_state, prune, write_manifest
from orchestrator.training.checkpoints.staging import Moment, Staging
from orchestrator.training.model.optimizer import Optimizers

# How long a rank that has written its files waits for the slowest one.
PATIENCE = timedelta(hours=1)
BLOCK = 1 << 22  # bytes that are digested while the processor still has them at hand
REMEDY = "free some space or set storage to another folder"


@dataclass(frozen=True)
class Committed:
    """A checkpoint that counts from now on."""

    step: int
    stall_s: float  # how long the training stood still for it, waiting for its copy included
    checkpoint_bytes: int  # over all ranks
    committed_after_s: float  # from the copy of the state to the manifest


class CheckpointSaver:
    """Writes a cell's checkpoints while its training goes on. Every rank has one; made, used and closed together."""

    def __init__(self, root: Path, attempt: int, keep: int, mesh: Mesh, reserved_bytes: int = 0):
        """`reserved_bytes`: how large this rank's share of the state will be, allocated behind the first steps."""
        self._root, self._attempt, self._keep, self._mesh = root, attempt, keep, mesh
        self._group: dist.ProcessGroup | None = dist.new_group(backend="gloo", timeout=PATIENCE)
        # A rank with no step left closes at once, which would cut the connections that another is still making.
        dist.barrier(self._group)
        self._staging = Staging(mesh.device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._reserved = self._thread.submit(self._staging.reserve, reserved_bytes)
        self._copying: Future[dict[str, Any]] | None = None
        self._pending: Future[Committed] | None = None
        self._stall_s = 0.0  # of what is pending
        self._committed: list[Committed] = []  # and not yet told

    def save(
        self,
        step: int,
        backbone: TrainableBackbone,
        optimizers: Optimizers,
        trainer: dict[str, Any],
        is_last: bool = False,
    ) -> float:
        """Begins to copy the state and to write it, once the checkpoint before is committed; collective.

        Nothing may update the model before `copied` has returned; the last one is waited for. Returns how long this
        took. Raises CheckpointError on every rank when any rank could not write the one before, or the last; earlier
        checkpoints stay untouched.
        """
        started = time.perf_counter()
        self.wait()
        state, moment = learned_state(backbone, optimizers), self._staging.moment()
        folder = checkpoint_folder(self._root, step, self._attempt)
        self._copying = self._thread.submit(self._copy, state, moment)
        self._pending = self._thread.submit(self._write, folder, step, self._copying, trainer)
        if is_last:
            self._pending.result()
        self._stall_s = time.perf_counter() - started
        return self._stall_s

    def copied(self) -> None:
        """Returns when the state that is being saved is copied, so that an update may be made."""
        if self._copying is not None:
            started = time.perf_counter()
            self._copying.result()
            self._copying = None
            self._stall_s += time.perf_counter() - started

    def committed(self) -> list[Committed]:
        """What was committed since this was asked last. Errors wait for a moment at which all ranks look."""
        if self._pending is not None and self._pending.done() and self._pending.exception() is None:
            self.wait()
        told, self._committed = self._committed, []
        return told

    def wait(self) -> None:
        """Returns when what was saved is committed; raises CheckpointError, on every rank, where it cannot be."""
        if self._pending is not None:
            self._committed.append(replace(self._pending.result(), stall_s=self._stall_s))
            self._pending = None

    def close(self) -> None:
        """Ends the thread after what it writes, and gives its memory and its group back."""
        self._thread.shutdown()
        self._pending = None
        self._staging.close()
        with suppress(ValueError):  # Ray Train ends all groups of a worker whose peer died: that is what is to be told
            dist.destroy_process_group(self._group)
        self._group = None

    def _copy(self, state: dict[str, Any], moment: Moment) -> dict[str, Any]:
        self._reserved.result()
        return self._staging.copy(state, moment)

    def _write(self, folder: Path, step: int, copying: Future[dict[str, Any]], trainer: dict[str, Any]) -> Committed:
        staged = copying.result()
        copied = time.perf_counter()
        with _named_remedy(folder):
            files = DigestingFileSystem()
            writer = _Writer(folder, files, lambda: self._mesh.faults.strike(Point.SAVE, step))
            dcp.state_dict_saver.save(staged, storage_writer=writer, process_group=self._group)
            size, committed = self._commit(folder, step, files.digests, trainer)
        return Committed(step, 0.0, size, committed - copied)

    def _commit(
        self, folder: Path, step: int, digests: dict[str, Digest], trainer: dict[str, Any]
    ) -> tuple[int, float]:
        """Writes the manifest, and only then prunes; what fails on the main rank fails on every rank.

        Returns the size over all ranks, and when it was committed.
        """
        parts: list[Any] = [None] * self._mesh.dims.world
        dist.all_gather_object(parts, digests, group=self._group)
        self._mesh.faults.strike(Point.MANIFEST, step)
        files = {name: digest for part in parts for name, digest in part.items()}
        told: list[Any] = [None]
        committed = time.perf_counter()
        if self._mesh.is_main:
            try:
                write_manifest(folder, step, trainer, files)
                committed = time.perf_counter()
                prune(self._root, self._keep)
            except OSError as error:
                told = [str(error)]
        dist.broadcast_object_list(told, group=self._group)
        if told[0] is not None:
            raise OSError(told[0])
        return sum(size for size, _ in files.values()), committed


class _Writer(FileSystemWriter):
    """DCP's writer on another file system. `struck` is called where its data is written: a full disk may be asked for.

    Nothing is on a device any more: no stream is to be synchronised, which would wait for the training.
    """

    def __init__(self, folder: Path, files: FileSystem, struck: Callable[[], None]):
        super().__init__(folder, per_thread_copy_ahead=0)
        self.fs, self._struck = files, struck

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Writes this rank's files."""
        self._struck()
        return super().write_data(plan, planner)


class DigestingFile(io.FileIO):
    """A file that digests what it writes: size and xxh3-128 of it are known without reading it again."""

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path, "wb")
        self._hasher, self._size = xxhash.xxh3_128(), 0

    def write(self, data: Any) -> int:
        """Takes at most a block, as a file may; the buffer before it comes back with the rest."""
        block = memoryview(data)[:BLOCK]
        written = super().write(block) or 0
        self._hasher.update(block[:written])
        self._size += written
        return written

    def tell(self) -> int:
        """Known without asking the system, which cannot say it of a pipe."""
        return self._size

    @property
    def digest(self) -> Digest:
        return (self._size, self._hasher.hexdigest())


class DigestingFileSystem(FileSystem):
    """DCP's file system, which knows the digest of every file that was written through it, by name."""

    def __init__(self) -> None:
        self.digests: dict[str, Digest] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        assert mode == "wb", "it is for writing"
        file = DigestingFile(path)
        with io.BufferedWriter(file) as stream:
            yield stream
        self.digests[Path(path).name] = file.digest

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.digests[Path(new_path).name] = self.digests.pop(Path(path).name)


def require_room(root: Path, checkpoint_bytes: int, count: int, mesh: Mesh) -> None:
    """Raises CheckpointError, on every rank, where `count` checkpoints of that many bytes have no room; collective.

    What the cell's checkpoints take already is room too: they are among those, or go before.
    """
    sentence = _find_lack_of_room(root, checkpoint_bytes, count) if mesh.is_main else None
    if (told := mesh.from_main(sentence)) is not None:
        raise CheckpointError(told)


def _find_lack_of_room(root: Path, checkpoint_bytes: int, count: int) -> str | None:
    taken = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    usage = shutil.disk_usage(_existing(root))
    needed, room = count * checkpoint_bytes, usage.free + taken
    if usage.total == 0 or needed <= room:  # some network file systems do not say
        return None
    return (
        f"checkpoints in {root} need {needed / GIB:.3g} GiB, and {room / GIB:.3g} GiB are free. Up to {count} of "
        f"{checkpoint_bytes / GIB:.3g} GiB lie there at a time: the newest recipe.checkpoint.keep, the best, and one "
        f"that is being written; {REMEDY}, or lower recipe.checkpoint.keep"
    )


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.is_dir())


@contextmanager
def _named_remedy(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, dcp.api.CheckpointException) as error:
        free = shutil.disk_usage(_existing(folder)).free / GIB
        raise CheckpointError(
            f"cannot write the checkpoint {folder}: {error}. {free:.1f} GiB are free there; {REMEDY}. "
            "Earlier checkpoints are untouched; running the same command resumes."
        ) from error
