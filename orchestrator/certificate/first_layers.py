"""The first decoder layers of a checkpoint as a folder of their own, for proofs on models that exceed one device."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file

from backbones.loading import fetch_checkpoint
from backbones.spec import BackboneSpec

if TYPE_CHECKING:
    import torch

KEPT_LAYERS = 2
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_LISTS = ("layer_types",)  # one entry for each layer
_COPIED = ("tokenizer*", "special_tokens_map.json", "*.jinja", "generation_config.json")
_TOWER = re.compile(r"(?:^|\.)(?:visual|vision_\w+)\.")  # stays whole
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def write_first_layers(spec: BackboneSpec, folder: Path) -> None:
    """Writes config, tokenizer and the weights of the first layers of a backbone's checkpoint to `folder`."""
    source = fetch_checkpoint(spec.source, revision=spec.revision, hf_token=None)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for text in (config, config.get("text_config", {})):  # the latter where a vision tower stands beside it
        text |= {name: KEPT_LAYERS for name in _COUNTS if name in text}
        text |= {name: text[name][:KEPT_LAYERS] for name in _LISTS if text.get(name)}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for path in {path for pattern in _COPIED for path in source.glob(pattern)}:
        shutil.copyfile(path, folder / path.name)
    save_file(dict(_first_layers(source)), folder / "model.safetensors", metadata={"format": "pt"})


def _first_layers(source: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                layer = _LAYER.search(name)
                if layer is None or int(layer[1]) < KEPT_LAYERS or _TOWER.search(name):
                    yield name, stored.get_tensor(name)
