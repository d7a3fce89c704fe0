"""Weights of a sharded model: every rank reads its own rows from the safetensors files, and nothing else.

A model is laid out with its parameters on the meta device (buffers are real, so nothing that a checkpoint does not
hold can stay uninitialised), sharded, and then filled here. No rank ever holds the whole model, and no tensor is read
twice on a rank.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, WeightTransform, rename_source_key

from backbones.errors import BackboneError
from backbones.parameters import base_name, embedding_parameters, is_adapter, local_rows

_CHUNK_BYTES = 8 << 20  # what is read at a time, before it is cast into place
_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


class WeightsError(BackboneError, RuntimeError):
    """The weights do not fill the model, or the model is not of the class that the weights were made for."""


def fetch_checkpoint(
    source: str, *, revision: str | None, hf_token: str | None, local_files_only: bool = False
) -> Path:
    """The folder of a model: itself, or the hub's snapshot in the local cache, which is downloaded where it is missing.

    Fetches safetensors, tokenizer and config only. Raises what huggingface_hub raises.
    """
    if Path(source).is_absolute():
        return Path(source)
    from huggingface_hub import snapshot_download

    folder: str = snapshot_download(
        source, revision=revision, token=hf_token, allow_patterns=_FILES, local_files_only=local_files_only
    )
    return Path(folder)


@dataclass(frozen=True)
class StoredNames:
    """How a class stores its tensors, as transformers knows it. To be asked before sharding: FSDP renames the class."""

    mapping: list[WeightTransform]

    @classmethod
    def of(cls, llm: PreTrainedModel) -> "StoredNames":
        return cls(get_model_conversion_mapping(llm, add_legacy=False))

    @property
    def are_fused(self) -> bool:
        """Whether stored tensors are joined or split on loading, as those of mixture-of-experts models are."""
        return any(not isinstance(one, WeightRenaming) for one in self.mapping)

    def to_model(self, stored: str) -> str:
        """The model's name of a stored tensor."""
        renamed, _ = rename_source_key(stored, self._renamings, [])
        return str(renamed)

    def from_model(self, name: str) -> str:
        """The stored name of a model's tensor; most classes use the same."""
        renamed, _ = rename_source_key(name, [one.reverse_transform() for one in self._renamings], [], reverse=True)
        return str(renamed)

    @property
    def _renamings(self) -> list[WeightTransform]:
        return [one for one in self.mapping if isinstance(one, WeightRenaming)]


def fill(
    llm: PreTrainedModel,
    folder: Path,
    device: torch.device,
    names: StoredNames,
    fresh_rows: Mapping[str, torch.Tensor],
    *,
    part: str = "",
    converted: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
) -> None:
    """Gives every meta parameter of `llm` its storage on `device` and this rank's rows of the stored tensor.

    `fresh_rows` holds, by parameter name, the rows that the checkpoint lacks (PAD). Adapter parameters get storage
    only. Where stored names begin with `part`, the others belong to something else. `converted` says, by parameter
    name, what is made of a stored tensor before its rows are taken. Raises WeightsError for missing, left-over and
    mismatched tensors, before anything is read, and ValueError for parameters on meta that are not sharded: nothing
    would hold tied ones together.
    """
    if any(parameter.is_meta and not isinstance(parameter, DTensor) for parameter in llm.parameters()):
        raise ValueError("shard the model before its weights are loaded")
    converted = converted or {}
    with ExitStack() as stack:
        stored = {name: file for file in _open_all(folder, stack) for name in file.keys()}  # noqa: SIM118
        belonging = {name: file for name, file in stored.items() if name.startswith(part)}
        stored = belonging or stored
        reads = _match(llm, names, set(stored), folder)
        shapes = {target: stored[name].get_slice(name).get_shape() for target, name in reads if target not in converted}
        _check_shapes(llm, shapes, folder)
        llm._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
        tensors = {**dict(llm.named_parameters(remove_duplicate=False)), **dict(llm.named_buffers())}
        filled: dict[int, str] = {}
        for target, name in reads:
            local, first = local_rows(tensors[target])
            if target in converted:
                local.copy_(converted[target](stored[name].get_tensor(name))[first : first + len(local)])
                continue
            rows = stored[name].get_slice(name)
            if id(tensors[target]) in filled:
                _check_tied(local, first, rows, name, filled[id(tensors[target])])
                continue
            filled[id(tensors[target])] = name
            _copy(local, first, rows, fresh_rows.get(target))


def raise_unless_whole(folder: str, missing: Any, unexpected: Any, mismatched: Any) -> None:
    """Raises WeightsError when any of the three collections of tensor names is not empty."""
    for kind, names in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched)):
        keys = sorted(map(str, names))
        if keys:
            shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
            raise WeightsError(
                f"{folder}: {len(keys)} {kind} keys in the weights: {shown}. "
                "The file is damaged, or belongs to another class or version of transformers."
            )


def _open_all(folder: Path, stack: ExitStack) -> Iterator[Any]:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            yield stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} cannot be read ({error}): it is damaged or unfinished; copy it again"
            ) from error


def _match(llm: PreTrainedModel, mapping: StoredNames, stored: set[str], folder: Path) -> list[tuple[str, str]]:
    """(name in the model, stored name) of all tensors that are read; tied names of one parameter follow each other."""
    # Persistent buffers are stored too; of tied parameters any name will do.
    groups: dict[int, list[str]] = {}
    buffers = set(dict(llm.named_buffers()))
    for name, tensor in llm.state_dict(keep_vars=True).items():
        if not is_adapter(name):
            groups.setdefault(id(tensor), []).append(name)
    names = {base_name(name): name for group in groups.values() for name in group}
    prefix = f"{llm.base_model_prefix}."
    found: dict[str, str] = {}
    unexpected: set[str] = set()
    for name in stored:
        target = mapping.to_model(name)
        target = target if target in names else prefix + target  # a model saved without its head has no prefix
        if target in names:
            found[names[target]] = name
        else:
            unexpected.add(name)
    missing = {group[0] for group in groups.values() if not any(name in found for name in group)}
    info = SimpleNamespace(missing_keys=missing - buffers, unexpected_keys=unexpected)
    llm._adjust_missing_and_unexpected_keys(info)  # the exceptions that the class itself declares
    raise_unless_whole(str(folder), info.missing_keys, info.unexpected_keys, ())
    return [(name, found[name]) for group in groups.values() for name in group if name in found]


def _check_shapes(llm: PreTrainedModel, shapes: Mapping[str, list[int]], folder: Path) -> None:
    """The embedding and the head may have other rows than the checkpoint; all else must be equal."""
    resizable = {id(tensor) for tensor in embedding_parameters(llm).values()}
    state = llm.state_dict(keep_vars=True)
    wrong = [
        f"{name} (stored {tuple(shape)}, model {tuple(state[name].shape)})"
        for name, shape in shapes.items()
        if list(state[name].shape[1:] if id(state[name]) in resizable else state[name].shape)
        != list(shape[1:] if id(state[name]) in resizable else shape)
    ]
    raise_unless_whole(str(folder), (), (), wrong)


def _copy(local: torch.Tensor, first: int, stored: Any, fresh: torch.Tensor | None) -> None:
    """Fills rows `first ...` of a tensor from its stored rows, and those beyond them from `fresh`."""
    shape = stored.get_shape()
    if not shape:
        local.copy_(stored[...])
        return
    known = max(min(shape[0] - first, len(local)), 0)
    for start, stop in _chunks(known, local):
        local[start:stop].copy_(stored[first + start : first + stop])
    if known < len(local):
        assert fresh is not None, "rows that no checkpoint holds were drawn when the embedding was resized"
        from_row = first + known - shape[0]
        local[known:].copy_(fresh[from_row : from_row + len(local) - known])


def _check_tied(local: torch.Tensor, first: int, stored: Any, name: str, other: str) -> None:
    """Two stored tensors for one parameter must be equal, else the config ties what was trained apart."""
    for start, stop in _chunks(max(min(stored.get_shape()[0] - first, len(local)), 0), local):
        if not torch.equal(local[start:stop], stored[first + start : first + stop].to(local)):
            raise WeightsError(
                f"the config ties {name} to {other}, but the stored weights differ; set tie_word_embeddings to false "
                "in config.json"
            )


def _chunks(rows: int, local: torch.Tensor) -> Iterator[tuple[int, int]]:
    """[start, stop) of rows that are read at a time."""
    step = max(_CHUNK_BYTES // max(local[:1].numel() * local.element_size(), 1), 1)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))
