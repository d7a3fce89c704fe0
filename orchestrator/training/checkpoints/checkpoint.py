"""Resumable checkpoints: sharded by DCP into a directory of their own, then a COMMITTED manifest, written last.

Nothing is ever renamed, so the rules hold on object stores too. A reader accepts a directory only when its manifest
parses, holds its own digest, says COMMITTED, and every file has the size and digest written there; others are passed
over.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
import xxhash
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from backbones.contract import TrainableBackbone
from orchestrator.layout import MANIFEST, checkpoint_folders
from orchestrator.training.model.optimizer import Optimizers

# What does not learn comes from where the backbone came from; storing it again would make an adapter's checkpoint huge.
LEARNED = StateDictOptions(ignore_frozen_params=True, strict=False)
FORMAT = 1
SCORE = "val_bits_per_byte"  # of the trainer state in a manifest, where the held-out items were scored at that step
ROUNDING = 1024  # bytes: scalars beside a parameter, and where each of its tensors may begin

Digest = tuple[int, str]  # size and xxh3-128 of a file


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint and the trainer state stored in its manifest."""

    folder: Path
    step: int
    trainer: dict[str, Any]


def learned_state(backbone: TrainableBackbone, optimizers: Optimizers) -> dict[str, Any]:
    """What a checkpoint holds of the model and its optimizers: the tensors themselves, sharded; collective."""
    model_state, optimizer_state = get_state_dict(backbone.llm, optimizers.torch_optimizers, options=LEARNED)
    return {"model": model_state, "optimizer": optimizer_state}


def state_bytes(backbone: TrainableBackbone, moments_bytes: float) -> tuple[int, int]:
    """How much a checkpoint will hold over all ranks, and how much a copy of this rank's share takes, at most.

    `moments_bytes`: what the optimizer keeps of each learning parameter. Tied embeddings are stored under both names.
    """
    names = dict(backbone.llm.named_parameters(remove_duplicate=False)).values()
    stored = sum(one.numel() * one.element_size() for one in names if one.requires_grad)
    learning = [parameter for parameter in backbone.llm.parameters() if parameter.requires_grad]
    moments = sum(one.numel() * moments_bytes for one in learning)
    local = [one.to_local() if isinstance(one, DTensor) else one for one in learning]
    share = sum(one.numel() * (one.element_size() + moments_bytes) + ROUNDING for one in local)
    return int(stored + moments), int(share)


def load_checkpoint(checkpoint: Checkpoint, backbone: TrainableBackbone, optimizers: Optimizers) -> None:
    """Loads weights and optimizer state into the sharded model; collective. Works for any number of ranks.

    DCP's `.metadata` is a pickle: it is read only after `find_latest` has matched its digest with our manifest.
    """
    state = learned_state(backbone, optimizers)
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
    """Deletes committed checkpoints but the newest `keep` and the best, and unfinished ones older than the newest."""
    manifests = {folder: _manifest(folder) for folder in checkpoint_folders(root)}
    committed = [folder for folder, manifest in manifests.items() if manifest is not None]
    scores = {folder: manifests[folder]["trainer"].get(SCORE) for folder in committed}
    scored = [folder for folder in committed if scores[folder] is not None]
    kept = {*committed[:keep], *sorted(scored, key=lambda folder: scores[folder])[:1]}
    newer = True
    for folder in manifests:
        newer = newer and folder not in committed
        if folder not in kept and not newer:
            # The manifest goes first: a half-deleted directory must not look committed.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, step: int, trainer: dict[str, Any], files: dict[str, Digest]) -> None:
    """Commits a checkpoint whose files are all written."""
    manifest = {"format": FORMAT, "state": "COMMITTED", "step": step, "trainer": trainer, "files": files}
    with open(folder / MANIFEST, "w", encoding="utf-8") as stream:
        stream.write(json.dumps({**manifest, "digest": _own_digest(manifest)}))
        stream.flush()
        os.fsync(stream.fileno())


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
        if _digest(file) != tuple(expected):
            return f"{name} is damaged"
    return None


def _digest(file: Path) -> Digest:
    hasher = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            hasher.update(block)
    return file.stat().st_size, hasher.hexdigest()
