"""A spec as a path, as a dict, or as keywords: in the end a file, so that the command line can repeat the job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import PydanticSerializationError, to_jsonable_python

from backbones.registry import PluginError, load_plugin
from orchestrator.errors import InputError
from orchestrator.identity import content_hash
from orchestrator.spec_files.source import read_spec

Spec = str | Path | Mapping[str, Any]

FOLDER = "backbone-specs"  # in the working directory: it travels with a submission, as `runs` does not


def spec_file(spec: Spec | None, keys: Mapping[str, Any]) -> Path:
    """The spec's file; `keys` stand over its own, whole key by whole key.

    A dict, or a path with keys, becomes a new file named by its content: beside the file that it changes, so that its
    relative paths stay true, else in `backbone-specs/`. Raises InputError for what YAML cannot hold.
    """
    if spec is None and not keys:
        raise InputError("no spec was given; pass the path of a YAML file, a dict, or its keys as keyword arguments")
    if isinstance(spec, str | Path):
        path = Path(spec).expanduser()
        return path if not keys else _written({**read_spec(path).data, **keys}, path.parent, path.stem)
    return _written({**(spec or {}), **keys}, Path(FOLDER), str({**(spec or {}), **keys}.get("name", "unnamed")))


def load_plugins(plugins: tuple[str, ...]) -> tuple[str, ...]:
    """Registers the backbones of modules and files. Returns names that mean the same in every working directory."""
    try:
        return tuple(load_plugin(plugin) for plugin in plugins)
    except PluginError as error:
        raise InputError(str(error)) from error


def _written(data: Mapping[str, Any], folder: Path, stem: str) -> Path:
    try:
        plain = to_jsonable_python(dict(data))
    except PydanticSerializationError as error:
        raise InputError(f"the spec holds what no file can: {error}; use text, numbers, lists and dicts") from error
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in stem)[:80]
    file = folder / f"{name}-{content_hash(plain)[:8]}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file
