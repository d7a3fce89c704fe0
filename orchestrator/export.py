"""A trained backbone as a Hugging Face folder that plain `transformers` loads."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from backbones.hf_causal import HFCausalLLMBackbone
from orchestrator.cell_job import CellJob
from orchestrator.errors import ExportError
from orchestrator.hardware import package_versions
from orchestrator.measurement import ItemScores
from orchestrator.preflight import EXPORT_MANIFEST, UNFINISHED

# What an earlier export may have left that this one does not write: weights in another number of files would be read
# instead of ours, and so would a chat template.
STALE = ("*.safetensors", "*.safetensors.index.json", "chat_template.jinja")


def export_model(backbone: HFCausalLLMBackbone, job: CellJob, scores: ItemScores) -> None:
    """Gathers the sharded fp32 weights on rank 0 and writes weights, tokenizer and manifest; collective.

    `config.json` is written last: until it is there, no library takes the folder for a model. Raises ExportError on
    rank 0 when the folder cannot be written.
    """
    assert job.export is not None
    state = get_model_state_dict(backbone.llm, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        try:
            _write(
                backbone, job.export.folder, _manifest(backbone, job, scores), state, job.cell.backbone.context_length
            )
        except (OSError, SafetensorError) as error:
            raise ExportError(
                f"cannot write the export {job.export.folder}: {error}; make room there, or set export.folder to "
                "another. The trained weights are in the last checkpoint: the same command exports them."
            ) from error
    dist.barrier()


def _manifest(backbone: HFCausalLLMBackbone, job: CellJob, scores: ItemScores) -> dict[str, Any]:
    """What the folder came from, how good it is, and how to prompt it."""
    assert job.export is not None
    cell = job.cell
    return {
        "cell_id": cell.cell_id,
        "backbone_id": cell.backbone.backbone_id,
        "hf_hub_path": cell.backbone.hf_hub_path,
        "revision": cell.backbone.revision,
        "weights_digest": cell.backbone.weights_digest,
        "seed": cell.seed,
        "val_bits_per_byte": scores.bits_per_byte,
        "prompt_format": cell.backbone.prompt_builder,
        "prompt_example": job.prepared.prompt_example,
        "tokenizer_rows": asdict(backbone.tokenizer_rows),
        "attention": asdict(backbone.attention),
        "train_hash": cell.train_digest,
        "validation_hash": cell.validation_digest,
        "packages": package_versions(),
        "spec": job.export.spec,
    }


def _write(
    backbone: HFCausalLLMBackbone, folder: Path, manifest: dict[str, Any], state: dict[str, Any], context_length: int
) -> None:
    staged, config = folder / UNFINISHED, folder / "config.json"
    folder.mkdir(parents=True, exist_ok=True)
    config.unlink(missing_ok=True)
    shutil.rmtree(staged, ignore_errors=True)  # of an export that was interrupted
    # Training switches the cache off and tells the tokenizer the recipe's length; neither is a fact about the model.
    backbone.llm.config.use_cache = True
    if context_length:
        backbone.tokenizer.model_max_length = context_length
    backbone.llm.save_pretrained(staged, state_dict=state)
    backbone.tokenizer.save_pretrained(staged)
    (staged / EXPORT_MANIFEST).write_text(json.dumps(manifest, indent=2, default=str), encoding="utf-8")
    mode = (staged / "config.json").stat().st_mode
    for weights in staged.glob("*.safetensors"):
        weights.chmod(mode)  # safetensors makes them readable to this user alone
    for pattern in STALE:
        for file in folder.glob(pattern):
            file.unlink()
    for file in sorted(staged.iterdir(), key=lambda path: path.name == "config.json"):
        file.replace(folder / file.name)
    staged.rmdir()
