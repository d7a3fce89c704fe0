"""What OpenVLA and Prismatic import, under their names: their code runs on these backbones by changing the import.

    from backbones.prismatic import LLMBackbone, get_llm_backbone_and_tokenizer

Their `generate` needs `adapt_vlm(PrismaticVLM)` beside that, whosever backbones it uses: docs/openvla.md.
All tables are made from the registry, so they also hold the ids that upstream lacks. Signatures, error texts and the
checkpoint's layout are those of TRI-ML/prismatic-vlms (prismatic/models/materialize.py, models/backbones/llm) and
openvla/openvla (prismatic/extern/hf/configuration_prismatic.py).
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase

from backbones.causal_lm import LLaMa2LLMBackbone, MistralLLMBackbone, PhiLLMBackbone, Qwen25LLMBackbone
from backbones.contract import LLMBackbone
from backbones.hf_causal import HFCausalLLMBackbone
from backbones.prompting import (
    LLaMa2ChatPromptBuilder,
    MistralInstructPromptBuilder,
    PhiPromptBuilder,
    PromptBuilder,
    PurePromptBuilder,
    QwenPromptBuilder,
    VicunaV15ChatPromptBuilder,
)
from backbones.registry import backbone_ids, get_spec
from backbones.spec import BackboneSpec
from backbones.vision.backbone import FusedBackbone
from backbones.vision.modules import PROJECTOR, read_modules, written_modules
from backbones.vlm_generation import adapt_vlm

__all__ = [
    "LLAMA2_MODELS",
    "LLM_BACKBONES",
    "LLM_BACKBONE_TO_HF_METACLASS",
    "LLM_BACKBONE_TO_HF_PATH",
    "MISTRAL_MODELS",
    "PHI_MODELS",
    "QWEN25_MODELS",
    "VALID_LLM_BACKBONES",
    "HFCausalLLMBackbone",
    "LLMBackbone",
    "LLaMa2ChatPromptBuilder",
    "LLaMa2LLMBackbone",
    "MistralInstructPromptBuilder",
    "MistralLLMBackbone",
    "PhiLLMBackbone",
    "PhiPromptBuilder",
    "PromptBuilder",
    "PurePromptBuilder",
    "Qwen25LLMBackbone",
    "QwenPromptBuilder",
    "VicunaV15ChatPromptBuilder",
    "adapt_vlm",
    "get_llm_backbone_and_tokenizer",
    "load_checkpoint",
    "save_checkpoint",
    "validate_llm_backbone_id",
]

_MODULE = "llm_backbone"


def _class(spec: BackboneSpec) -> Any:
    module, _, name = spec.backbone_cls.partition(":")
    return getattr(import_module(module), name)


def _models(family_class: type[LLMBackbone]) -> dict[str, dict[str, Any]]:
    return {
        backbone_id: {
            "llm_family": spec.family,
            "llm_cls": getattr(transformers, spec.llm_cls),
            "hf_hub_path": spec.hf_hub_path,
        }
        for backbone_id, spec in _SPECS.items()
        if _class(spec) is family_class
    }


# The ids that upstream ships, and every other one that is registered when this module is imported.
_SPECS = {backbone_id: get_spec(backbone_id) for backbone_id in backbone_ids()}
_ON_THE_HUB = {backbone_id: spec for backbone_id, spec in _SPECS.items() if spec.folder is None}

LLAMA2_MODELS = _models(LLaMa2LLMBackbone)
MISTRAL_MODELS = _models(MistralLLMBackbone)
PHI_MODELS = _models(PhiLLMBackbone)
QWEN25_MODELS = _models(Qwen25LLMBackbone)  # of forks; upstream has none
LLM_BACKBONES: dict[str, dict[str, Any]] = {
    backbone_id: {"cls": _class(spec), "kwargs": {}} for backbone_id, spec in _SPECS.items()
}

LLM_BACKBONE_TO_HF_PATH = {backbone_id: spec.hf_hub_path for backbone_id, spec in _ON_THE_HUB.items()}
LLM_BACKBONE_TO_HF_METACLASS = {
    backbone_id: getattr(transformers, spec.llm_cls).config_class.model_type
    for backbone_id, spec in _ON_THE_HUB.items()
}
VALID_LLM_BACKBONES = set(LLM_BACKBONE_TO_HF_PATH)


def validate_llm_backbone_id(llm_backbone_id: str) -> None:
    """Raises ValueError, with upstream's text, for an id that upstream's Hugging Face config would refuse."""
    if llm_backbone_id not in VALID_LLM_BACKBONES:
        raise ValueError(f"LLM backbone `{llm_backbone_id}` not in VALID_LLM_BACKBONES = {VALID_LLM_BACKBONES}")


def get_llm_backbone_and_tokenizer(
    llm_backbone_id: str,
    llm_max_length: int = 2048,
    hf_token: str | None = None,
    inference_mode: bool = False,
) -> tuple[LLMBackbone, PreTrainedTokenizerBase]:
    """The backbone and its tokenizer. Raises ValueError for an id that is not in `LLM_BACKBONES`, which may grow."""
    if llm_backbone_id not in LLM_BACKBONES:
        raise ValueError(f"LLM Backbone `{llm_backbone_id}` is not supported!")
    entry = LLM_BACKBONES[llm_backbone_id]
    backbone: LLMBackbone = entry["cls"](
        llm_backbone_id,
        llm_max_length=llm_max_length,
        hf_token=hf_token,
        inference_mode=inference_mode,
        **entry["kwargs"],
    )
    return backbone, backbone.get_tokenizer()


def load_checkpoint(backbone: LLMBackbone, path: Path) -> None:
    """Fills a backbone from a Prismatic or OpenVLA checkpoint: `{"model": {"llm_backbone": {"llm....": tensor}}}`.

    A fused backbone reads `projector` too and, where the file has it, `vision_backbone`: upstream leaves frozen towers
    out. Else other modules are left to their owners. Nothing in the file is executed. Raises ValueError for a file of
    another layout and RuntimeError for missing, unexpected or mismatched tensors.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    model = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    needed = (_MODULE, PROJECTOR) if isinstance(backbone, FusedBackbone) else (_MODULE,)
    if not isinstance(model, dict) or not all(name in model for name in needed):
        found = sorted(model) if isinstance(model, dict) else "no 'model'"
        wanted = " and ".join(f"model/{name}" for name in needed)
        raise ValueError(f"{path}: a Prismatic checkpoint holds {wanted}; this one holds {found}")
    if isinstance(backbone, FusedBackbone):
        read_modules(backbone.llm, model)
    _language(backbone).load_state_dict(model[_MODULE])


def save_checkpoint(backbone: LLMBackbone, path: Path, others: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Writes a backbone as Prismatic reads it, beside the state dicts of `others` (`"projector"`, ...).

    Of a fused backbone towers and projector are written too.
    """
    own = written_modules(backbone.llm) if isinstance(backbone, FusedBackbone) else {}
    torch.save({"model": {**own, **(others or {}), _MODULE: _language(backbone).state_dict()}}, path)


def _language(backbone: LLMBackbone) -> LLMBackbone:
    return backbone.language if isinstance(backbone, FusedBackbone) else backbone
