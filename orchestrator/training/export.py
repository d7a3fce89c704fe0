"""A trained backbone as a Hugging Face folder that plain `transformers` loads."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from backbones.contract import TrainableBackbone
from backbones.parameters import base_name, is_adapter
from backbones.tokenizer import make_codec
from orchestrator.cell_job import CellJob, ExportRequest
from orchestrator.data.prepare import Prepared
from orchestrator.errors import ExportError
from orchestrator.hardware import package_versions
from orchestrator.layout import EXPORT_MANIFEST, EXPORT_UNFINISHED
from orchestrator.parallel import Mesh
from orchestrator.results import write_json
from orchestrator.training.measurement import ItemScores

FILE_BYTES = 2 << 30  # of one safetensors file: what rank 0 holds at most, beside the tensor that is being gathered
ADAPTER = "adapter"  # subfolder, in peft's format
# What an earlier export may have left that this one does not write: weights in another number of files would be read
# instead of ours, and so would a chat template.
ACTION_STATISTICS = "dataset_statistics.json"  # the name by which OpenVLA's code looks for it
STALE = (
    "*.safetensors",
    "*.safetensors.index.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    ACTION_STATISTICS,
    ADAPTER,
)


def export_model(backbone: TrainableBackbone, job: CellJob, scores: ItemScores, mesh: Mesh) -> None:
    """Writes the fp32 weights, tokenizer, processors and manifest, tensor by tensor, and how actions are scaled.
    Collective.

    Adapters are merged into the weights and also saved alone, in the subfolder `adapter`. `config.json` is written
    last: until it is there, no library takes the folder for a model. Raises ExportError on rank 0 when the folder
    cannot be written.
    """
    assert job.export is not None and job.prepared is not None
    folder = job.export.folder
    try:
        if mesh.is_main:
            _prepare(folder)
        _write_weights(backbone, folder / EXPORT_UNFINISHED, job.cell.backbone.source, mesh.is_main)
        if mesh.is_main:
            manifest = _manifest(backbone, job, job.export, job.prepared, scores)
            if job.prepared.actions is not None:
                named = job.prepared.actions.as_openvla(Path(job.cell.recipe.data.train).stem)
                write_json(folder / EXPORT_UNFINISHED / ACTION_STATISTICS, named)
            _finish(backbone, folder, manifest, job.cell.backbone.context_length)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"cannot write the export {folder}: {error}; make room there, or set export.folder to another. The trained "
            "weights are in the last checkpoint: the same command exports them."
        ) from error
    mesh.barrier()


def _write_weights(backbone: TrainableBackbone, staged: Path, source: str, writing: bool) -> None:
    """Gathers one tensor at a time; the one that is `writing` writes them. Collective."""
    llm = backbone.llm
    adapters = {name: _whole(tensor) for name, tensor in llm.state_dict().items() if is_adapter(name)}
    if backbone.stored_names.are_fused:  # transformers turns fused tensors back into the stored ones, all at once
        state = dict(_merged(backbone, adapters))
        if writing:
            llm.save_pretrained(staged, state_dict=state)
    else:
        _write_files(backbone, adapters, staged, writing)
    if adapters and writing:
        _write_adapter(backbone, staged / ADAPTER, adapters, source)


def _write_files(backbone: TrainableBackbone, adapters: dict[str, torch.Tensor], folder: Path, writing: bool) -> None:
    """Safetensors files of at most FILE_BYTES, each written once its last tensor is gathered; collective."""
    stored_as = backbone.stored_names.from_model
    # The hub's library cuts by sizes alone, so tensors without data do: the whole model is in no memory.
    sizes = {
        stored_as(base_name(name)): torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in _stored(backbone.llm)
    }
    split = split_torch_state_dict_into_shards(sizes, max_shard_size=FILE_BYTES)
    held: dict[str, dict[str, torch.Tensor]] = {file: {} for file in split.filename_to_tensors}
    for name, tensor in _merged(backbone, adapters):
        if writing:
            file = split.tensor_to_filename[stored_as(name)]
            held[file][stored_as(name)] = tensor.contiguous()
            if len(held[file]) == len(split.filename_to_tensors[file]):
                save_file(held.pop(file), folder / file, metadata={"format": "pt"})
    if writing and split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _stored(llm: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor as this rank has it) of everything that a checkpoint of this class stores."""
    tied = {name for name, _ in llm.named_parameters(remove_duplicate=False)} - set(dict(llm.named_parameters()))
    # The hooks of a state dict give shards, where parameters may be gathered ones.
    return ((name, tensor) for name, tensor in llm.state_dict().items() if not (is_adapter(name) or name in tied))


def _merged(backbone: TrainableBackbone, adapters: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name without peft, whole tensor) of everything that is stored; collective."""
    llm = backbone.llm
    for name, tensor in _stored(llm):
        whole = _whole(tensor)
        if ".base_layer.weight" in name:
            owner = name.removesuffix(".base_layer.weight")
            layer = llm.get_submodule(owner)
            a, b = (adapters[f"{owner}.lora_{which}.default.weight"] for which in "AB")
            delta = layer.scaling["default"] * (b @ a)
            whole = whole + (delta.T if layer.fan_in_fan_out else delta)
        yield base_name(name), whole


def _write_adapter(backbone: TrainableBackbone, folder: Path, adapters: dict[str, torch.Tensor], source: str) -> None:
    """The adapter in peft's format: `PeftModel.from_pretrained(base, folder)` loads it."""
    folder.mkdir()
    config = backbone.llm.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = source, True
    config.save_pretrained(folder)
    state = {f"base_model.model.{name.replace('.default.', '.')}": tensor for name, tensor in adapters.items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "adapter_model.safetensors")
    _share(folder, (folder / "adapter_config.json").stat().st_mode)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu()


def _manifest(
    backbone: TrainableBackbone, job: CellJob, export: ExportRequest, prepared: Prepared, scores: ItemScores
) -> dict[str, Any]:
    """What the folder came from, how good it is, and how to prompt it."""
    cell, length = job.cell, job.cell.recipe.sequence_length
    return {
        "cell_id": cell.cell_id,
        "backbone_id": cell.backbone.backbone_id,
        "hf_hub_path": cell.backbone.hf_hub_path,
        "revision": cell.backbone.revision,
        "weights_digest": cell.backbone.weights_digest,
        "seed": cell.seed,
        "val_bits_per_byte": scores.bits_per_byte,
        "prompt_format": cell.backbone.prompt_builder,
        "vision": None if cell.backbone.vision is None else asdict(cell.backbone.vision),
        "prompt_hash": prepared.fingerprint[:16],
        "prompt_example": prepared.prompt_example,
        "prompt_with_image": make_codec(cell.backbone, backbone.tokenizer, length).prompt_with_image,
        "prompt_for_processor": None if backbone.processor is None else backbone.processor.prompt,
        "adaptation": cell.recipe.adaptation.summary,
        "tokenizer_rows": asdict(backbone.tokenizer_rows),
        "attention": asdict(backbone.attention),
        "train_hash": cell.train_digest,
        "validation_hash": cell.validation_digest,
        "packages": package_versions(),
        "spec": export.spec,
    }


def _prepare(folder: Path) -> None:
    """From here until `_finish` the folder is no model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    shutil.rmtree(folder / EXPORT_UNFINISHED, ignore_errors=True)  # of an export that was interrupted
    (folder / EXPORT_UNFINISHED).mkdir()


def _finish(backbone: TrainableBackbone, folder: Path, manifest: dict[str, Any], context_length: int) -> None:
    staged, llm = folder / EXPORT_UNFINISHED, backbone.llm
    # Training switches the cache off, tells the tokenizer the recipe's length, and gives the class FSDP's name; none
    # of it is a fact about the model.
    llm.config.get_text_config().use_cache = True
    llm.config.architectures = [type(llm).__name__.removeprefix("FSDP")]
    llm.config.dtype = torch.float32
    if context_length:
        backbone.tokenizer.model_max_length = context_length
    llm.config.save_pretrained(staged)
    if llm.generation_config is not None:
        llm.generation_config.save_pretrained(staged)
    backbone.tokenizer.save_pretrained(staged)
    if (image_processor := backbone.image_processor) is not None:
        image_processor.save_pretrained(staged)
    if (processor := backbone.processor) is not None:
        processor.save(staged)
    (staged / EXPORT_MANIFEST).write_text(json.dumps(manifest, indent=2, default=str), encoding="utf-8")
    _share(staged, (staged / "config.json").stat().st_mode)
    for pattern in STALE:
        for old in folder.glob(pattern):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for file in sorted(staged.iterdir(), key=lambda path: path.name == "config.json"):
        file.replace(folder / file.name)
    staged.rmdir()


def _share(folder: Path, mode: int) -> None:
    """safetensors makes its files readable to this user alone."""
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)
