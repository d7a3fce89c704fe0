"""Backbone ids: registration, discovery, and from an id to a spec, a codec or a built backbone.

Only `build` and `load_codec` import torch or transformers.
"""

import importlib
import importlib.util
import sys
from contextlib import nullcontext
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.errors import BackboneError
from backbones.reference import hub_errors, is_reference, resolve_reference
from backbones.registered import ENTRY_POINT_GROUP, SPECS, discover
from backbones.spec import Architecture, BackboneSpec
from backbones.vision.reference import is_fused, resolve_fused

if TYPE_CHECKING:
    import torch

    from backbones.contract import LLMBackbone
    from backbones.hf_causal import HFCausalLLMBackbone
    from backbones.prompting import Codec

__all__ = [
    "Architecture",
    "BackboneSpec",
    "PluginError",
    "UnknownBackboneError",
    "backbone_ids",
    "build",
    "get_spec",
    "load_codec",
    "load_plugin",
    "register",
]

_PLUGINS: set[str] = set()


class UnknownBackboneError(BackboneError, ValueError):
    """No backbone is registered under this id."""


class PluginError(BackboneError, ValueError):
    """A module that was named as a plug-in cannot be imported, or registers no backbone."""


def register(spec: BackboneSpec) -> BackboneSpec:
    """Adds a backbone. Raises ValueError if its id is taken or would be read as an `hf:` or `fused:` reference."""
    if is_reference(spec.backbone_id) or is_fused(spec.backbone_id):
        prefix = spec.backbone_id.partition(":")[0]
        raise ValueError(
            f"backbone id {spec.backbone_id!r}: '{prefix}:' names models outside the registry; choose another id"
        )
    if spec.backbone_id in SPECS:
        raise ValueError(f"backbone id {spec.backbone_id!r} is registered twice; choose another id for the second")
    SPECS[spec.backbone_id] = spec
    return spec


def backbone_ids() -> list[str]:
    """Every registered id, in order of registration."""
    discover()
    return list(SPECS)


def get_spec(backbone_id_or_reference: str, *, hf_token: str | None = None) -> BackboneSpec:
    """The spec of a registered id, of an `hf:` reference, or of `fused:<towers>+` in front of one of these.

    Raises UnknownBackboneError, InvalidReferenceError (both ValueError), and HubError when the hub cannot be read.
    """
    if is_fused(backbone_id_or_reference):
        return resolve_fused(backbone_id_or_reference, lambda language: get_spec(language, hf_token=hf_token))
    if is_reference(backbone_id_or_reference):
        return resolve_reference(backbone_id_or_reference, hf_token=hf_token)
    discover()
    if backbone_id_or_reference not in SPECS:
        raise UnknownBackboneError(_unknown(backbone_id_or_reference))
    return SPECS[backbone_id_or_reference]


def build(
    backbone: str | BackboneSpec,
    *,
    max_length: int = 2048,
    hf_token: str | None = None,
    inference_mode: bool = False,
    attention: str = "auto",
    compute_dtype: "torch.dtype | None" = None,
    seed: int = 0,
    empty: bool = False,
) -> "HFCausalLLMBackbone":
    """A built backbone, from an id, a reference or a spec: fp32 weights, tokenizer, PAD and embedding rows in place.

    `empty` leaves pretrained weights on the meta device until `load_weights`, which follows sharding. `inference_mode`
    gives the structure with random weights, for a checkpoint to fill. `seed` decides every random weight (PAD rows,
    tiny backbones) and leaves torch's global generator as it was. `compute_dtype` is what attention will run in (None:
    half precision). Raises what `get_spec` raises, AttentionUnavailableError, and WeightsError when weights are missing
    or left over.
    """
    import torch

    from backbones.attention import resolve_attention

    spec = get_spec(backbone, hf_token=hf_token) if isinstance(backbone, str) else backbone
    if attention != "auto":
        resolve_attention(attention, dtype=compute_dtype)  # before gigabytes are read
    backbone_cls: Any = backbone_class(spec)
    place = torch.device("meta") if empty else nullcontext()
    with torch.random.fork_rng(devices=[]), hub_errors(spec.backbone_id, spec.source), place:
        torch.default_generator.manual_seed(seed)
        built: HFCausalLLMBackbone = backbone_cls(
            spec if getattr(backbone_cls, "takes_spec", False) else spec.reference,
            llm_max_length=max_length,
            hf_token=hf_token,
            inference_mode=inference_mode,
        )
    if attention != "auto" or compute_dtype is not None:
        built.use_attention(attention, compute_dtype)
    return built


def backbone_class(spec: BackboneSpec) -> "type[LLMBackbone]":
    """The class that a spec names."""
    named: type[LLMBackbone] = getattr(*_locate(spec.backbone_cls))
    return named


def fetch(spec: BackboneSpec, *, hf_token: str | None = None, cached_only: bool = False) -> BackboneSpec:
    """The same backbone in a folder of this machine: safetensors, tokenizer and config of a hub model are downloaded.

    `cached_only` reads the cache that another process has completed, without a word to the hub. Raises HubError.
    """
    from backbones.loading import fetch_checkpoint

    def folder_of(source: str, revision: str | None) -> str:
        with hub_errors(spec.backbone_id, source):
            return str(fetch_checkpoint(source, revision=revision, hf_token=hf_token, local_files_only=cached_only))

    if spec.fusion is not None:
        towers = tuple(
            tower
            if tower.hf_hub_path is None
            else replace(tower, hf_hub_path=folder_of(tower.hf_hub_path, tower.revision))
            for tower in spec.fusion.towers
        )
        language = fetch(spec.fusion.language, hf_token=hf_token, cached_only=cached_only)
        fusion = replace(spec.fusion, towers=towers, language=language)
        return replace(spec, hf_hub_path=language.hf_hub_path, fusion=fusion)
    if spec.folder is not None:
        return spec
    return replace(spec, hf_hub_path=folder_of(spec.source, spec.revision))


def load_codec(spec: BackboneSpec, *, max_length: int, hf_token: str | None = None) -> "Codec":
    """Tokenizer and prompt format of a backbone, equal to those of the built one, without its weights."""
    from backbones.tokenizer import load_tokenizer, make_codec

    with hub_errors(spec.backbone_id, spec.source):
        tokenizer = load_tokenizer(spec, max_length=max_length, hf_token=hf_token)
    return make_codec(spec, tokenizer, max_length)


def load_plugin(module: str) -> str:
    """Imports a module, or a file `path/to/family.py`, that registers backbones; loading it again does nothing.

    Returns what names it from any working directory, for the workers that must load it too. Raises PluginError, and
    then nothing of it stays registered.
    """
    discover()
    is_file = module.endswith(".py")
    reference = str(Path(module).expanduser().resolve()) if is_file else module
    if reference in _PLUGINS | {entry_point.module for entry_point in entry_points(group=ENTRY_POINT_GROUP)}:
        return reference
    name = Path(reference).stem if is_file else reference
    before, imported = dict(SPECS), set(sys.modules)
    try:
        _import_file(Path(reference)) if is_file else importlib.import_module(name)
        if SPECS.keys() == before.keys():
            raise ValueError(
                "it registers no backbone; call backbones.register(BackboneSpec(...)) where it is imported, "
                "as docs/add-a-backbone.md does"
            )
    except Exception as error:
        SPECS.clear()
        SPECS.update(before)
        if name not in imported:
            sys.modules.pop(name, None)
        raise PluginError(f"plug-in {module} cannot be loaded: {type(error).__name__}: {error}") from error
    _PLUGINS.add(reference)
    return reference


def _import_file(path: Path) -> None:
    """Imports a file under its own name, so that a spec's `backbone_cls` can name a class in it."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stem in sys.modules or not _is_free(path):
        raise ImportError(f"there already is a module called {path.stem!r}; rename the file")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None and found.loader is not None  # a .py file
    sys.modules[path.stem] = importlib.util.module_from_spec(found)
    found.loader.exec_module(sys.modules[path.stem])


def _is_free(path: Path) -> bool:
    """Whether its name imports nothing yet, or the file itself: `python -m` looks in the working directory."""
    found = importlib.util.find_spec(path.stem)
    return found is None or (found.origin is not None and Path(found.origin).resolve() == path)


def _locate(path: str) -> tuple[object, str]:
    module, _, name = path.partition(":")
    return importlib.import_module(module), name


def _unknown(backbone_id: str) -> str:
    begun = [known for known in SPECS if backbone_id and known.startswith(backbone_id)]
    near = dict.fromkeys([*begun, *get_close_matches(backbone_id, SPECS, n=3)])
    close = [f"hf:{backbone_id}"] if "/" in backbone_id else [*near][:3]
    hint = f" Did you mean {' or '.join(f'`{one}`' for one in close)}?" if close else ""
    families = ", ".join(sorted({spec.family for spec in SPECS.values()}))
    return (
        f"LLM Backbone `{backbone_id}` is not supported!{hint} `backbone list` shows all {len(SPECS)} ids, of the "
        f"families {families}. Any other causal language model: `hf:./FOLDER` or `hf:ORG/NAME@REVISION`."
    )
