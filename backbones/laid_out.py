"""`lay_out`: a backbone from its config alone, on the meta device: no weights, and nothing is downloaded."""

from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from backbones.causal_lm import CausalLMBackbone, make_config
from backbones.errors import BackboneError
from backbones.hf_causal import HFCausalLLMBackbone
from backbones.reference import hub_errors
from backbones.registry import backbone_class
from backbones.spec import BackboneSpec
from backbones.tokenizer import padded_rows
from backbones.vision.backbone import FusedBackbone
from backbones.vision.model import FusedConfig


class LayoutError(BackboneError, ValueError):
    """A backbone's class builds itself, so nothing can be said of it without its weights."""

    status = "INFEASIBLE"


def lay_out(spec: BackboneSpec) -> HFCausalLLMBackbone:
    """A backbone of the spec's own class, for what can be seen without weights: layers, adapters, shards.

    One of the hub has no tokenizer (a gated one could not be read), and the rows that its spec's vocabulary, PAD and
    extra tokens need if none is spare. A registered id needs no network; an `hf:` reference to the hub reads its
    config.json. Raises LayoutError for a class that is no CausalLMBackbone, and HubError where a config is not here and
    the hub cannot be read.
    """
    own_class = backbone_class(spec)
    if issubclass(own_class, FusedBackbone):
        assert spec.fusion is not None
        language = lay_out(spec.fusion.language)
        with torch.device("meta"):
            return own_class(spec, laid_out=language)
    if not issubclass(own_class, CausalLMBackbone):
        raise LayoutError(
            f"{spec.backbone_id}: {own_class.__name__} builds itself, so it cannot be laid out without its weights; "
            "derive it from backbones.causal_lm.CausalLMBackbone"
        )
    laid_out: Any = type(own_class.__name__, (_LaidOut, own_class), {})
    with hub_errors(spec.backbone_id, spec.source), torch.device("meta"):
        backbone: CausalLMBackbone = laid_out(spec)
    return backbone


class _LaidOut(CausalLMBackbone):
    """Stands before a backbone's class, in place of what reads weights, and what reads a tokenizer of the hub."""

    def load_llm(self, llm_cls: type[PreTrainedModel], hf_hub_path: str, hf_token: str | None) -> PreTrainedModel:
        """The model as `build(empty=True)` has it before it is filled."""
        self.weights_read = "none: laid out"
        common = {"dtype": torch.float32, "attn_implementation": self.attention.kernel}
        with torch.device("cpu"), init_empty_weights():
            llm = llm_cls._from_config(_config(self.spec, hf_token), **common)
        llm.tie_weights()
        return llm

    def load_tokenizer(self, hf_hub_path: str, hf_token: str | None) -> None:
        if self.spec.folder is not None:
            super().load_tokenizer(hf_hub_path, hf_token)

    def fit_embeddings(self) -> None:
        if self.spec.folder is not None:
            super().fit_embeddings()
            return
        current = self.llm.get_input_embeddings().weight.shape[0]
        rows = padded_rows(current + (self.spec.pad_token is not None) + self.spec.extra_tokens)
        if rows != current:
            self.llm.resize_token_embeddings(rows, mean_resizing=False)


def _config(spec: BackboneSpec, hf_token: str | None) -> PreTrainedConfig:
    """The registry's of a registered id; else the model's own file, which planning has read before."""
    if spec.is_reference or (spec.folder is not None and (spec.folder / "config.json").is_file()):
        config = AutoConfig.from_pretrained(
            spec.source, revision=spec.revision, token=hf_token, trust_remote_code=False
        )
        return config.text_config if isinstance(config, FusedConfig) else config
    return make_config(spec)
