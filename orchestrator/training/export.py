"""A trained backbone as a Hugging Face folder that plain `transformers` loads."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from backbones.hf_causal import HFCausalLLMBackbone
from backbones.parameters import base_name, is_adapter
from orchestrator.cell_job import CellJob, ExportRequest
from orchestrator.data.prepare import Prepared
from orchestrator.errors import ExportError
from orchestrator.hardware import package_versions
from orchestrator.layout import EXPORT_MANIFEST, EXPORT_UNFINISHED
from orchestrator.parallel import Mesh
from orchestrator.training.measurement import ItemScores

FILE_BYTES = 2 << 30  # of one safetensors file: what rank 0 holds at most, beside the tensor that is being gathered
ADAPTER = "adapter"  # subfolder, in peft's format
# What an earlier export may have left that this one does not write: weights in another number of files would be read
# instead of ours, and so would a chat template.
STALE = ("*.safetensors", "*.safetensors.index.json", "chat_template.jinja", ADAPTER)


def export_model(backbone: HFCausalLLMBackbone, job: CellJob, scores: ItemScores, mesh: Mesh) -> None:
    """Writes the fp32 weights, tokenizer and manifest, tensor by tensor; collective.

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
            _finish(backbone, folder, manifest, job.cell.backbone.context_length)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"cannot write the export {folder}: {error}; make room there, or set export.folder to another. The trained "
            "weights are in the last checkpoint: the same command exports them."
        ) from error
    mesh.barrier()


def _write_weights(backbone: HFCausalLLMBackbone, staged: Path, source: str, writing: bool) -> None:
    """Gathers one tensor at a time; the one that is `writing` fills files of FILE_BYTES. Collective."""
    llm = backbone.llm
    adapters = {name: _whole(tensor) for name, tensor in llm.state_dict().items() if is_adapter(name)}
    if backbone.stored_names.are_fused:  # transformers turns fused tensors back into the stored ones, all at once
        state = dict(_merged(backbone, adapters))
        if writing:
            llm.save_pretrained(staged, state_dict=state)
    else:
        files = _WeightFiles(staged)
        for name, tensor in _merged(backbone, adapters):
            if writing:
                files.add(backbone.stored_names.from_model(name), tensor.contiguous())
        if writing:
            files.close()
    if adapters and writing:
        _write_adapter(backbone, staged / ADAPTER, adapters, source)


def _merged(backbone: HFCausalLLMBackbone, adapters: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name without peft, whole tensor) of everything that a checkpoint of this class stores; collective."""
    llm = backbone.llm
    tied = {name for name, _ in llm.named_parameters(remove_duplicate=False)} - set(dict(llm.named_parameters()))
    for name, tensor in llm.state_dict().items():  # its hooks give shards, where parameters may be gathered ones
        if is_adapter(name) or name in tied:
            continue
        whole = _whole(tensor)
        if ".base_layer.weight" in name:
            owner = name.removesuffix(".base_layer.weight")
            layer = llm.get_submodule(owner)
            a, b = (adapters[f"{owner}.lora_{which}.default.weight"] for which in "AB")
            delta = layer.scaling["default"] * (b @ a)
            whole = whole + (delta.T if layer.fan_in_fan_out else delta)
        yield base_name(name), whole


class _WeightFiles:
    """Safetensors files of a limited size, and the index that names them."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._held: dict[str, torch.Tensor] = {}
        self._files: list[list[str]] = []
        self._bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Takes a tensor, and writes a file when enough has come together."""
        self._held[name] = tensor
        if sum(one.nbytes for one in self._held.values()) >= FILE_BYTES:
            self._flush()

    def _flush(self) -> None:
        save_file(self._held, self._path(len(self._files) + 1), metadata={"format": "pt"})
        self._bytes += sum(one.nbytes for one in self._held.values())
        self._files.append(list(self._held))
        self._held = {}

    def close(self) -> None:
        """Writes the rest, and gives the files the names that transformers looks for."""
        if self._held:
            self._flush()
        total = len(self._files)
        if total == 1:
            self._path(1).rename(self._folder / "model.safetensors")
            return
        places: dict[str, str] = {}
        for number, names in enumerate(self._files, start=1):
            file = f"model-{number:05d}-of-{total:05d}.safetensors"
            self._path(number).rename(self._folder / file)
            places |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": places}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number}"


def _write_adapter(backbone: HFCausalLLMBackbone, folder: Path, adapters: dict[str, torch.Tensor], source: str) -> None:
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
    backbone: HFCausalLLMBackbone, job: CellJob, export: ExportRequest, prepared: Prepared, scores: ItemScores
) -> dict[str, Any]:
    """What the folder came from, how good it is, and how to prompt it."""
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
        "prompt_hash": prepared.fingerprint[:16],
        "prompt_example": prepared.prompt_example,
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


def _finish(backbone: HFCausalLLMBackbone, folder: Path, manifest: dict[str, Any], context_length: int) -> None:
    staged, llm = folder / EXPORT_UNFINISHED, backbone.llm
    # Training switches the cache off, tells the tokenizer the recipe's length, and gives the class FSDP's name; none
    # of it is a fact about the model.
    llm.config.use_cache = True
    llm.config.architectures = [type(llm).__name__.removeprefix("FSDP")]
    llm.config.dtype = torch.float32
    if context_length:
        backbone.tokenizer.model_max_length = context_length
    llm.config.save_pretrained(staged)
    if llm.generation_config is not None:
        llm.generation_config.save_pretrained(staged)
    backbone.tokenizer.save_pretrained(staged)
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
