"""A trained backbone as a Hugging Face folder that plain `transformers` loads."""

import json
from dataclasses import asdict
from typing import Any

import torch.distributed as dist
from backbones.contract import LLMBackbone
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from orchestrator.cell_job import EXPORT_MANIFEST, ExportRequest
from orchestrator.errors import ExportError


def export_model(backbone: LLMBackbone, request: ExportRequest, cell_id: str) -> None:
    """Gathers the sharded weights on rank 0 and writes weights, tokenizer and manifest; collective.

    `config.json` is written last: until it is there, no library takes the folder for a model. Raises ExportError on
    rank 0 when the folder cannot be written.
    """
    state = get_model_state_dict(backbone.llm, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        try:
            _write(backbone, request, cell_id, state)
        except OSError as error:
            raise ExportError(
                f"cannot write the export {request.folder}: {error}; set export.folder to another"
            ) from error
    dist.barrier()


def _write(backbone: LLMBackbone, request: ExportRequest, cell_id: str, state: dict[str, Any]) -> None:
    folder, config = request.folder, request.folder / "config.json"
    folder.mkdir(parents=True, exist_ok=True)
    config.unlink(missing_ok=True)
    llm = backbone.llm
    staged = folder / "unfinished"
    llm.save_pretrained(staged, state_dict=state)
    backbone.tokenizer.save_pretrained(staged)
    manifest = {
        "cell_id": cell_id,
        "backbone_id": backbone.identifier,
        "tokenizer_rows": asdict(backbone.tokenizer_rows),
        "attention": asdict(backbone.attention),
        **request.facts,
    }
    (staged / EXPORT_MANIFEST).write_text(json.dumps(manifest, indent=2, default=str), encoding="utf-8")
    for file in sorted(staged.iterdir(), key=lambda path: path.name == "config.json"):
        file.replace(folder / file.name)
    staged.rmdir()
