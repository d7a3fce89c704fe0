"""Resumable checkpoints: sharded by DCP into a directory of their own, then a COMMITTED manifest, written last.

Nothing is ever renamed, so the rules hold on object stores too. A reader accepts a directory only when its manifest
parses, holds its own digest, says COMMITTED, and every file has the size and digest written there; others are passed
over.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
import xxhash
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from backbones.contract import TrainableBackbone
from orchestrator.errors import CheckpointError
from orchestrator.hardware import GIB
from orchestrator.layout import MANIFEST, checkpoint_folder, checkpoint_folders
from orchestrator.parallel import Mesh
from orchestrator.training.optimizer import Optimizers

# What does not learn comes from where the backbone came from; storing it again would make an adapter's checkpoint huge.
LEARNED = StateDictOptions(ignore_frozen_params=True, strict=False)
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint and the trainer state stored in its manifest."""

    folder: Path
    step: int
    trainer: dict[str, Any]


def save_checkpoint(
    root: Path,
    attempt: int,
    step: int,
    backbone: TrainableBackbone,
    optimizers: Optimizers,
    trainer: dict[str, Any],
    mesh: Mesh,
) -> Path:
    """Writes and commits a checkpoint; collective. Each rank digests the files it wrote itself.

    Raises CheckpointError on every rank when any rank could not write; earlier checkpoints stay untouched.
    """
    folder = checkpoint_folder(root, step, attempt)
    with _named_remedy(folder):
        model_state, optimizer_state = get_state_dict(backbone.llm, optimizers.torch_optimizers, options=LEARNED)
        state = {"model": model_state, "optimizer": optimizer_state}
        dcp.state_dict_saver.save(state, checkpoint_id=folder)
        mine = sorted(folder.glob(f"__{mesh.rank}_*")) + ([folder / ".metadata"] if mesh.is_main else [])
        digests = mesh.gathered({file.name: _digest(file) for file in mine})
        if mesh.is_main:
            files = {name: digest for part in digests for name, digest in part.items()}
            manifest = {"format": FORMAT, "state": "COMMITTED", "step": step, "trainer": trainer, "files": files}
            _write_durably(folder / MANIFEST, json.dumps({**manifest, "digest": _own_digest(manifest)}))
        mesh.barrier()
    return folder


def load_checkpoint(checkpoint: Checkpoint, backbone: TrainableBackbone, optimizers: Optimizers) -> None:
    """Loads weights and optimizer state into the sharded model; collective. Works for any number of ranks.

    DCP's `.metadata` is a pickle: it is read only after `find_latest` has matched its digest with our manifest.
    """
    model_state, optimizer_state = get_state_dict(backbone.llm, optimizers.torch_optimizers, options=LEARNED)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    dcp.state_dict_loader.load(state, checkpoint_id=checkpoint.folder)
    set_state_dict(
        backbone.llm,
        optimizers.torch_optimizers,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=LEARNED,
    )


def find_latest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not."""
    rejected: list[str] = []
    for folder in checkpoint_folders(root):
        reason = _find_fault(folder)
        if reason is None:
            manifest = _manifest(folder)
            return Checkpoint(folder, manifest["step"], manifest["trainer"]), rejected
        rejected.append(f"{folder.name}: {reason}; it is passed over")
    return None, rejected


def prune(root: Path, keep: int) -> None:
    """Deletes committed checkpoints beyond the newest `keep`, and unfinished ones older than the newest committed."""
    committed = 0
    for folder in checkpoint_folders(root):
        committed += _manifest(folder) is not None
        if committed > keep or (committed and _manifest(folder) is None):
            # The manifest goes first: a half-deleted directory must not look committed.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _manifest(folder: Path) -> Any:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        digest = manifest.pop("digest")
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None
    whole = digest == _own_digest(manifest) and manifest["state"] == "COMMITTED" and manifest["format"] == FORMAT
    return manifest if whole else None


def _own_digest(manifest: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(manifest).encode()).hexdigest()


def _find_fault(folder: Path) -> str | None:
    manifest = _manifest(folder)
    if manifest is None:
        return "it was never committed, or its manifest is damaged"
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != expected:
            return f"{name} is damaged"
    return None


def _digest(file: Path) -> list[int | str]:
    """Size and xxh3-128 of a file."""
    hasher = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            hasher.update(block)
    return [file.stat().st_size, hasher.hexdigest()]


def _write_durably(file: Path, text: str) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def _named_remedy(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, dcp.api.CheckpointException) as error:
        existing = next(parent for parent in folder.parents if parent.is_dir())
        free = shutil.disk_usage(existing).free / GIB
        raise CheckpointError(
            f"cannot write the checkpoint {folder}: {error}. {free:.1f} GiB are free there; free some space or set "
            "storage to another folder. Earlier checkpoints are untouched; running the same command resumes."
        ) from error
