"""`hf:` references: any causal language model in a folder or on the Hugging Face hub, and models that see.

No torch, no transformers, but for models that see.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from backbones.errors import BackboneError, InvalidReferenceError
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec
from backbones.vision.reference import fuse_saved
from backbones.vision.towers import MODEL_TYPE
from backbones.vision_language.reference import CLASSES, kin_of, sight_of, whole_config

__all__ = ["HubError", "InvalidReferenceError", "hub_errors", "is_reference", "resolve_reference"]

_PREFIX = "hf:"
_SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model"]
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")

# Tensors that old checkpoints store although they are buffers, not parameters.
_BUFFERS = re.compile(r"(\.inv_freq|\.masked_bias|\.(attn|attention)\.bias)$")

# Names that older configs use for the same size.
_ALIASES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "num_heads": ("num_attention_heads", "n_head", "num_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "context_length": ("max_position_embeddings", "n_positions", "seq_length"),
}


class HubError(BackboneError, RuntimeError):
    """The Hugging Face hub could not be read: no network, no such model, or no permission."""

    retriable = True


def is_reference(backbone_id: str) -> bool:
    """Whether this is an `hf:` reference rather than a registered id."""
    return backbone_id.startswith(_PREFIX)


def resolve_reference(reference: str, *, hf_token: str | None = None) -> BackboneSpec:
    """The spec of `hf:./FOLDER` or `hf:ORG/NAME[@REVISION]`, read from its config.json and safetensors headers.

    An export of a fused backbone is one again, and a model that sees is of the family whose class it names.

    Raises InvalidReferenceError (not a causal language model, remote code, pickled weights, no such folder) or
    HubError.
    """
    target = reference.removeprefix(_PREFIX)
    if target.startswith(("/", "./", "../", "~")):
        folder = Path(target).expanduser().resolve()
        return _spec_of_folder(reference, folder)
    match = _HUB_ID.fullmatch(target)
    if match is None:
        raise InvalidReferenceError(f"{reference}: write hf:ORG/NAME, hf:ORG/NAME@REVISION, or hf:./FOLDER")
    return _spec_on_hub(reference, match["repo"], match["revision"], hf_token)


def _spec_of_folder(reference: str, folder: Path) -> BackboneSpec:
    if not folder.is_dir():
        raise InvalidReferenceError(f"{reference}: there is no folder {folder}; a hub model is written hf:ORG/NAME")
    config = _read_config(reference, folder)
    shapes = _local_shapes(reference, folder)
    if not shapes:
        raise InvalidReferenceError(
            f"{reference}: {folder} has no *.safetensors file. Pickled weights (*.bin, *.pt) can run code and are not "
            "loaded; save the model with save_pretrained, which writes safetensors."
        )
    return _make_spec(reference, str(folder), None, config, folder, shapes, licence="unknown", gated=False)


def _spec_on_hub(reference: str, repo: str, revision: str | None, token: str | None) -> BackboneSpec:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import NotASafetensorsRepoError

    with hub_errors(reference, repo):
        folder = Path(snapshot_download(repo, revision=revision, token=token, allow_patterns=_SMALL_FILES))
        commit = folder.name  # a snapshot's folder is called after its commit
        config = _read_config(reference, folder)
        shapes = _local_shapes(reference, folder)
        if constants.HF_HUB_OFFLINE:
            if not shapes:
                raise FileNotFoundError(f"HF_HUB_OFFLINE is set and the weights of {repo} are not in the local cache")
            return _make_spec(reference, repo, commit, config, folder, shapes, licence="unknown", gated=False)
        api = HfApi(token=token)
        info = api.model_info(repo, revision=commit)
        try:
            shapes = shapes or _hub_shapes(api.get_safetensors_metadata(repo, revision=commit))
        except NotASafetensorsRepoError as error:
            raise InvalidReferenceError(f"{reference}: {repo} has no safetensors weights, only pickled ones") from error
    licence = str((info.card_data and info.card_data.get("license")) or "unknown")
    return _make_spec(reference, repo, commit, config, folder, shapes, licence=licence, gated=bool(info.gated))


@contextmanager
def hub_errors(reference: str, repo: str) -> Iterator[None]:
    """Turns what goes wrong while a hub model is read into a HubError that names the cause and the remedy."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (OSError, HTTPError) as error:
        if Path(repo).is_absolute():
            raise  # a folder: nothing here came from the hub
        raise HubError(_hub_failure(reference, repo, error)) from error


def _make_spec(
    reference: str,
    path: str,
    revision: str | None,
    config: dict[str, Any],
    folder: Path,
    shapes: dict[str, list[int]],
    *,
    licence: str,
    gated: bool,
) -> BackboneSpec:
    if not (folder / "tokenizer.json").is_file():
        raise InvalidReferenceError(
            f"{reference}: there is no tokenizer.json, and a tokenizer.model alone is not read exactly. Load the "
            "tokenizer where sentencepiece is installed, check its ids against it, and save it with save_pretrained."
        )
    if config["model_type"] == MODEL_TYPE:
        part = "language_model."
        inside = {name.removeprefix(part): shape for name, shape in shapes.items() if name.startswith(part)}
        language = _make_spec(
            reference, path, revision, config["text_config"], folder, inside, licence=licence, gated=gated
        )
        return fuse_saved(reference, config, shapes, language)
    whole = whole_config(reference, folder) if config["architectures"][0] in CLASSES else None
    if whole is not None:  # sizes are its language model's
        names = {name: config[name] for name in ("architectures", "model_type")}
        config = {**whole.get_text_config().to_dict(), **names, "tie_word_embeddings": whole.tie_word_embeddings}
    spec = BackboneSpec(
        backbone_id=reference,
        family=config["model_type"],
        hf_hub_path=path,
        revision=revision,
        parameters=sum(math.prod(shape) for name, shape in shapes.items() if not _BUFFERS.search(name)),
        prompt_builder=CHAT if _has_chat_template(folder) else PURE,
        context_length=_size(reference, config, "context_length", default=0),
        licence=licence,
        llm_cls=config["architectures"][0],
        architecture=_architecture(reference, config, tied="lm_head.weight" not in shapes),
        gated=gated,
    )
    if whole is None:
        return spec
    kin = kin_of(spec.llm_cls)
    return replace(
        spec,
        prompt_builder=spec.prompt_builder if kin.prompt_builder in (CHAT, PURE) else kin.prompt_builder,
        requires_bos=kin.requires_bos,
        decoder_layer_cls=kin.decoder_layer_cls,
        backbone_cls=CLASSES[spec.llm_cls],
        vision=sight_of(reference, whole, folder, shapes, kin),
    )


def _read_config(reference: str, folder: Path) -> dict[str, Any]:
    """config.json of a causal language model that needs no code of its own."""
    path = folder / "config.json"
    if not path.is_file():
        raise InvalidReferenceError(f"{reference}: there is no config.json in {folder}; is it a Hugging Face model?")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidReferenceError(f"{reference}: {path} is not JSON: {error}") from error
    for file in (path, folder / "tokenizer_config.json"):
        if file.is_file() and "auto_map" in json.loads(file.read_text(encoding="utf-8")):
            raise InvalidReferenceError(
                f"{reference}: the model brings its own Python code (auto_map in {file.name}), which is never run. "
                "Use a model whose classes are part of transformers."
            )
    architectures = config.get("architectures") or ["none"]
    if config.get("model_type") == MODEL_TYPE:
        return config
    known = architectures[0] in CLASSES or architectures[0].endswith(("ForCausalLM", "LMHeadModel"))
    if "model_type" not in config or not known:
        raise InvalidReferenceError(
            f"{reference}: config.json names the class {architectures[0]}, not a causal language model (*ForCausalLM) "
            f"or one of those that see: {', '.join(CLASSES)}"
        )
    return config


def _architecture(reference: str, config: dict[str, Any], tied: bool) -> Architecture:
    hidden_size = _size(reference, config, "hidden_size")
    num_heads = _size(reference, config, "num_heads")
    return Architecture(
        hidden_size=hidden_size,
        intermediate_size=_size(reference, config, "intermediate_size", default=4 * hidden_size),
        num_layers=_size(reference, config, "num_layers"),
        num_heads=num_heads,
        num_kv_heads=1 if config.get("multi_query") else _size(reference, config, "num_kv_heads", default=num_heads),
        head_dim=config.get("head_dim") or hidden_size // num_heads,
        vocab_size=config["vocab_size"],
        tied_embeddings=config.get("tie_word_embeddings", tied),
    )


def _size(reference: str, config: dict[str, Any], name: str, default: int | None = None) -> int:
    values = [config[alias] for alias in _ALIASES[name] if config.get(alias) is not None]
    if not values and default is None:
        raise InvalidReferenceError(f"{reference}: config.json has none of {', '.join(_ALIASES[name])}")
    return int(values[0]) if values else int(default or 0)


def _has_chat_template(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    declared = path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    return bool(declared) or (folder / "chat_template.jinja").is_file()


def _local_shapes(reference: str, folder: Path) -> dict[str, list[int]]:
    """Tensor names and shapes of a folder's safetensors files, from their headers."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with open(path, "rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(min(size, path.stat().st_size)))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            shapes |= {name: entry["shape"] for name, entry in tensors.items()}
            needed = 8 + size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
            message = f"{reference}: {path} has no safetensors header; it is damaged or unfinished, copy it again"
            raise InvalidReferenceError(message) from error
        if (found := path.stat().st_size) < needed:
            raise InvalidReferenceError(
                f"{reference}: {path} has {found:,} of its {needed:,} bytes; it is damaged or unfinished, copy it again"
            )
    return shapes


def _hub_shapes(metadata: Any) -> dict[str, list[int]]:
    files = metadata.files_metadata.values()
    return {name: list(tensor.shape) for file in files for name, tensor in file.tensors.items()}


def _hub_failure(reference: str, repo: str, error: BaseException) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    state = "this HF_TOKEN has no access" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set here"
    causes = list(_chain(error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return (
            f"{reference}: {repo} is gated on Hugging Face and {state}. Accept the licence at huggingface.co/{repo} "
            "and set HF_TOKEN on the cluster's nodes; never write it in a spec."
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"{reference}: there is no public model {repo} on the hub; if it is private: {state}"
    return f"{reference}: the Hugging Face hub could not be read: {str(error).splitlines()[0]}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
