"""`CausalLMBackbone`: a backbone made from its spec alone, and the class names of OpenVLA's families and its forks'."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from backbones.hf_causal import HFCausalLLMBackbone
from backbones.prompting import Codec, PromptBuilder
from backbones.reference import InvalidReferenceError
from backbones.registry import get_spec
from backbones.spec import BackboneSpec, ConfigValue, VisionTower
from backbones.tokenizer import add_tokens, make_codec, unused_ids


class CausalLMBackbone(HFCausalLLMBackbone):
    """Any causal language model of transformers: a registered id, an `hf:` reference, or a spec that was resolved."""

    takes_spec = True  # as the first argument of its constructor: `registry.build` passes it, so nothing is looked up

    def __init__(
        self,
        llm_backbone_id: str | BackboneSpec,
        llm_max_length: int = 2048,
        hf_token: str | None = None,
        inference_mode: bool = False,
        use_flash_attention_2: bool = True,
    ) -> None:
        # The base constructor already needs these; a Module takes plain attributes before its own __init__.
        if isinstance(llm_backbone_id, str):
            llm_backbone_id = get_spec(llm_backbone_id, hf_token=hf_token)
        self.spec = spec = llm_backbone_id
        self.revision = spec.revision
        self.requires_bos = spec.requires_bos
        self.decoder_layer_cls = spec.decoder_layer_cls
        super().__init__(
            spec.backbone_id,
            llm_family=spec.family,
            llm_cls=find_class(spec),
            hf_hub_path=spec.source,
            llm_max_length=llm_max_length,
            hf_token=hf_token,
            inference_mode=inference_mode,
            use_flash_attention_2=use_flash_attention_2,
        )
        self.fit_embeddings()

    def fit_embeddings(self) -> None:
        """Gives the tokenizer its PAD and extra tokens, and the embedding the rows that it then needs."""
        added = add_tokens(self.spec, self.tokenizer)
        self.resize_embeddings(added=added, may_shrink=self.spec.prompt_variant == "legacy")

    def resize_embeddings(self, *, added: int, may_shrink: bool) -> None:
        """As for every backbone; and generation, here and from an export, never draws a row that no token has."""
        super().resize_embeddings(added=added, may_shrink=may_shrink)
        unused = unused_ids(self.tokenizer, self.tokenizer_rows.total)
        if unused and self.llm.generation_config is not None:
            self.llm.generation_config.suppress_tokens = unused

    @cached_property
    def codec(self) -> Codec:
        """Tokenizer and prompt format; equal to `load_codec(self.spec)`."""
        return make_codec(self.spec, self.tokenizer, self.llm_max_length)

    @property
    def prompt_builder_fn(self) -> type[PromptBuilder]:
        return self.codec.prompt_builder


class LLaMa2LLMBackbone(CausalLMBackbone):
    """Llama-2 and Vicuna under the name that OpenVLA imports."""


class MistralLLMBackbone(CausalLMBackbone):
    """Mistral under the name that OpenVLA imports."""


class PhiLLMBackbone(CausalLMBackbone):
    """Phi-2 under the name that OpenVLA imports."""


class Qwen25LLMBackbone(CausalLMBackbone):
    """Qwen2.5 under the name that forks of Prismatic import; None for `num_extra_tokens` is what the id says."""

    def __init__(
        self,
        llm_backbone_id: str | BackboneSpec,
        llm_max_length: int = 2048,
        hf_token: str | None = None,
        inference_mode: bool = False,
        use_flash_attention_2: bool = True,
        num_extra_tokens: int | None = None,
    ) -> None:
        spec = get_spec(llm_backbone_id, hf_token=hf_token) if isinstance(llm_backbone_id, str) else llm_backbone_id
        if num_extra_tokens is not None:
            spec = replace(spec, extra_tokens=num_extra_tokens)
        super().__init__(spec, llm_max_length, hf_token, inference_mode, use_flash_attention_2)


def make_config(spec: BackboneSpec) -> PreTrainedConfig:
    """The config of a model with the spec's sizes, without token ids: those are its tokenizer's to say."""
    sizes = spec.architecture
    text = {
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocab_size,
        "tie_word_embeddings": sizes.tied_embeddings,
        "max_position_embeddings": spec.context_length,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    further = {key: _thaw(value) for key, value in spec.config}
    config_class = find_class(spec).config_class
    if spec.vision is None:
        return config_class(**text, architectures=[spec.llm_cls], **further)
    (tower,) = spec.vision.towers
    vision = _vision_config(tower, spec.vision.image_size, config_class.sub_configs["vision_config"])
    return config_class(
        text_config=text | further.pop("text_config", {}),
        vision_config=vision | further.pop("vision_config", {}),
        tie_word_embeddings=sizes.tied_embeddings,
        architectures=[spec.llm_cls],
        **further,
    )


def _vision_config(tower: VisionTower, image_size: int, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    sizes = {name: getattr(tower, name) for name in ("hidden_size", "intermediate_size", "patch_size")}
    if hasattr(config_class, "depth"):  # Qwen's names; its towers take images of any size
        return sizes | {"depth": tower.num_layers, "num_heads": tower.num_heads}
    counts = {"num_hidden_layers": tower.num_layers, "num_attention_heads": tower.num_heads}
    return sizes | counts | {"image_size": image_size}


def _thaw(value: ConfigValue) -> Any:
    """A tuple of (name, value) is an object, any other a list."""
    if not isinstance(value, tuple):
        return value
    pairs = [one for one in value if isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str)]
    return {key: _thaw(inner) for key, inner in pairs} if len(pairs) == len(value) else [_thaw(one) for one in value]


def find_class(spec: BackboneSpec) -> type[PreTrainedModel]:
    """The spec's class of transformers. Raises InvalidReferenceError where this version has none of that name."""
    sees = spec.vision is not None
    known = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if sees else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES).values()
    names = {name for entry in known for name in ([entry] if isinstance(entry, str) else entry)}
    if spec.llm_cls not in names:
        kind = "model of images and text" if sees else "causal language model"
        raise InvalidReferenceError(
            f"{spec.backbone_id}: transformers {transformers.__version__} has no {kind} {spec.llm_cls}; "
            "a newer version may"
        )
    llm_cls: type[PreTrainedModel] = getattr(transformers, spec.llm_cls)
    return llm_cls
