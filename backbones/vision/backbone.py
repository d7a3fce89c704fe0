"""`FusedBackbone`: a language backbone of any family behind vision towers, as one model that is trained and saved."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import CausalLMOutputWithPast

from backbones.causal_lm import CausalLMBackbone
from backbones.contract import LLMBackbone, Part
from backbones.hf_causal import HFCausalLLMBackbone
from backbones.inputs import Example, Inputs, images_of, make_inputs
from backbones.loading import StoredNames, WeightsError, fetch_checkpoint, fill, raise_unless_whole
from backbones.prompting import Codec, ImageTokens, PromptBuilder
from backbones.registry import backbone_class, get_spec
from backbones.spec import FILTERS, BackboneSpec, Tower, VisionTower
from backbones.tokenizer import TokenizerRows, end_of_ids, make_codec
from backbones.vision.model import FusedForConditionalGeneration, fused_config, tower_config, tower_layers
from backbones.vision.pixels import normalised, placeholder_positions
from backbones.vision.processor import FusedImageProcessor
from backbones.vision.weights import fill_tower


class FusedBackbone(HFCausalLLMBackbone):
    """`.llm` is towers, projector and language model; `.language` is the backbone that was put behind them.

    Tokenizer, prompts, rows and decoder layers are the language backbone's own. Constructed inside
    `with torch.device("meta")`, what has weights on the hub is laid out without them: shard it, then `load_weights`.
    """

    takes_spec = True
    reads_labelled = True  # `forward` passes on what it is given
    language: HFCausalLLMBackbone
    llm: FusedForConditionalGeneration

    def __init__(
        self,
        llm_backbone_id: str | BackboneSpec,
        llm_max_length: int = 2048,
        hf_token: str | None = None,
        inference_mode: bool = False,
        use_flash_attention_2: bool = True,
        laid_out: HFCausalLLMBackbone | None = None,  # the language backbone; then nothing else gets weights either
    ) -> None:
        spec = get_spec(llm_backbone_id, hf_token=hf_token) if isinstance(llm_backbone_id, str) else llm_backbone_id
        assert spec.fusion is not None and spec.vision is not None, f"{spec.backbone_id} is no fused backbone"
        LLMBackbone.__init__(self, spec.backbone_id)  # what HFCausalLLMBackbone reads, the language backbone has read
        self.spec, self.vision = spec, spec.vision
        language = laid_out or _build_language(
            spec.fusion.language, llm_max_length, hf_token, inference_mode, use_flash_attention_2
        )
        object.__setattr__(self, "language", language)  # no submodule: its `llm` becomes a part of ours
        self.llm_family, self.llm_max_length, self.inference_mode = spec.family, llm_max_length, inference_mode
        self.tokenizer, self.attention = language.tokenizer, language.attention
        self.weights_read = language.weights_read
        self._unread: dict[int, Path] = {}  # the folders of towers that are laid out
        self._hf_token = hf_token
        if isinstance(language, SavedLanguage) and laid_out is None:
            self.llm = language.whole
            if self.llm.config.image_token_id != end_of_ids(self.tokenizer):
                raise WeightsError(
                    f"{self.identifier}: config.json has patches stand for id {self.llm.config.image_token_id}, which "
                    f"the tokenizer beside it does not end in front of; the two are not of one export"
                )
        else:
            self.llm = self._put_together(language.llm, reads_weights=laid_out is None and not inference_mode)
        self.stored_names = _stored_names(self.llm, language)
        without = set(map(id, self.llm.frozen_parameters()))
        self._unused = {name for name, parameter in self.llm.named_parameters() if id(parameter) in without}

    def _put_together(self, language_model: PreTrainedModel, reads_weights: bool) -> FusedForConditionalGeneration:
        assert self.spec.fusion is not None
        towers, kind = self.spec.fusion.towers, self.spec.fusion.projector
        made = [self._tower(number, tower, reads_weights) for number, tower in enumerate(towers)]
        # Of a hub's model that is laid out there is no tokenizer.
        placeholder = -1 if self.tokenizer is None else end_of_ids(self.tokenizer)
        config = fused_config(towers, self.spec.fusion.eyes, kind, language_model.config, placeholder)
        on_meta = torch.get_default_device().type == "meta" and not reads_weights
        with torch.device("meta" if on_meta else "cpu"):
            return FusedForConditionalGeneration(config, language_model, made)

    def _tower(self, number: int, tower: Tower, reads_weights: bool) -> PreTrainedModel:
        """Drawn, read, or laid out until it is read."""
        is_read = reads_weights and tower.hf_hub_path is not None
        on_meta = torch.get_default_device().type == "meta"
        if on_meta and (is_read or not reads_weights):
            with torch.device("cpu"), init_empty_weights():  # buffers are real: no checkpoint holds them
                made: PreTrainedModel = AutoModel.from_config(tower_config(tower))
        else:
            with torch.device("cpu"):
                made = AutoModel.from_config(tower_config(tower))
        if is_read:
            assert tower.hf_hub_path is not None
            folder = fetch_checkpoint(tower.hf_hub_path, revision=tower.revision, hf_token=self._hf_token)
            if on_meta:
                self._unread[number] = folder
            else:
                fill_tower(made, folder, torch.device("cpu"))
        return made

    def load_weights(self, device: torch.device) -> None:
        """Fills what was laid out on meta; each rank reads its own rows. Raises WeightsError."""
        if isinstance(self.language, SavedLanguage):
            self.language.fill_whole(device)
            return
        self.language.load_weights(device)
        for number, folder in self._unread.items():
            fill_tower(self.llm.vision_towers[number], folder, device)

    def collate(self, rows: Sequence[Sequence[Example]], width: int | None = None) -> Inputs:
        """As of every backbone; images become `pixel_values` (N, 3 for each tower, S, S), fp32, and the positions of
        their placeholders in the rows laid end to end. Raises CodecError where the two do not come out even."""
        inputs = make_inputs(rows, self.pad_token_id, width)
        images = images_of(rows)
        if images is None:
            return inputs
        width = inputs.input_ids_BT.shape[1]
        positions = placeholder_positions(rows, width, self.llm.config.image_token_id, self.vision)
        extras = {"pixel_values": normalised(images, self.vision), "image_positions": positions}
        return Inputs(inputs.input_ids_BT, inputs.position_ids_BT, inputs.labels_BT, extras)

    @property
    def image_processor(self) -> FusedImageProcessor:
        """Gives an export's readers the pixels of `collate`."""
        return FusedImageProcessor(
            size={"height": self.vision.image_size, "width": self.vision.image_size},
            resample=FILTERS[self.vision.resample],
            image_mean=list(self.vision.mean),
            image_std=list(self.vision.std),
        )

    def forward(  # type: ignore[override]
        self, input_ids: torch.Tensor | None = None, **arguments: Any
    ) -> CausalLMOutputWithPast:
        """The contract's ten arguments, and `pixel_values` and `image_positions` as `collate` makes them."""
        output: CausalLMOutputWithPast = self.llm(input_ids=input_ids, **arguments)
        return output

    def use_attention(self, request: str, dtype: torch.dtype | None = None) -> None:
        """Of the language model; the towers keep scaled dot products: they see whole images, without a mask."""
        self.language.use_attention(request, dtype)
        self.attention = self.language.attention

    @property
    def embed_dim(self) -> int:
        return self.language.embed_dim

    @property
    def tokenizer_rows(self) -> TokenizerRows:
        return self.language.tokenizer_rows

    @property
    def decoder_layers(self) -> nn.ModuleList:
        return self.language.decoder_layers

    @property
    def transformer_layer_cls(self) -> type[nn.Module]:
        return self.language.transformer_layer_cls

    @property
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        return self.language.last_layer_finetune_modules

    @property
    def vision_layers(self) -> Sequence[tuple[VisionTower, list[nn.Module]]]:
        """Each tower of the spec with all of its layers."""
        layers = (list(tower_layers(tower)) for tower in cast(Sequence[Any], self.llm.vision_towers))
        return list(zip(self.vision.towers, layers, strict=True))

    def part_of(self, name: str) -> Part:
        if name.startswith("projector."):
            return "connector"
        if not name.startswith("vision_towers."):
            return "language"
        return "unused" if name in self._unused else "vision"

    @cached_property
    def image_tokens(self) -> ImageTokens:
        """What stands for an image in a prompt."""
        return ImageTokens.of(self.vision, self.tokenizer)

    @property
    def prompt_builder_fn(self) -> type[PromptBuilder]:
        return self.language.prompt_builder_fn

    @cached_property
    def codec(self) -> Codec:
        """Tokenizer, prompt format and image tokens; equal to `load_codec(self.spec)`."""
        return make_codec(self.spec, self.tokenizer, self.llm_max_length)


class SavedLanguage(CausalLMBackbone):
    """The language backbone of a folder that holds a fused model: `.whole` is that model."""

    whole: FusedForConditionalGeneration

    def load_llm(self, llm_cls: type[PreTrainedModel], hf_hub_path: str, hf_token: str | None) -> PreTrainedModel:
        """The whole model is laid out or loaded; returns its language model."""
        options = self._hub_options(hf_hub_path, hf_token)
        config = AutoConfig.from_pretrained(hf_hub_path, **options)
        whole: FusedForConditionalGeneration
        if self.inference_mode:
            self.weights_read = "none: random, for a checkpoint to fill"
            whole = FusedForConditionalGeneration._from_config(config, dtype=torch.float32)
        elif torch.get_default_device().type == "meta":
            self.weights_read = "each rank its own rows"
            with torch.device("cpu"), init_empty_weights():
                whole = FusedForConditionalGeneration._from_config(config, dtype=torch.float32)
            whole.tie_weights()
        else:
            self.weights_read = "each rank the whole checkpoint"
            whole, info = FusedForConditionalGeneration.from_pretrained(
                hf_hub_path,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
            kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
            raise_unless_whole(self.identifier, *(info[kind] for kind in kinds))
        whole.set_attn_implementation(self.attention.prepare())
        object.__setattr__(self, "whole", whole)
        self._source = (hf_hub_path, hf_token)
        return whole.language_model

    def fill_whole(self, device: torch.device) -> None:
        """Fills the whole model, sharded before."""
        path, token = self._source
        folder = fetch_checkpoint(path, revision=self.revision, hf_token=token)
        fresh = {f"language_model.{name}": rows for name, rows in self._fresh_rows.items()}
        fill(self.whole, folder, device, StoredNames.of(self.whole), fresh)


def _build_language(
    spec: BackboneSpec, max_length: int, hf_token: str | None, inference_mode: bool, flash: bool
) -> HFCausalLLMBackbone:
    own_class: Any = backbone_class(spec)
    built: HFCausalLLMBackbone = own_class(
        spec if getattr(own_class, "takes_spec", False) else spec.reference,
        llm_max_length=max_length,
        hf_token=hf_token,
        inference_mode=inference_mode,
        use_flash_attention_2=flash,
    )
    return built


def _stored_names(llm: PreTrainedModel, language: HFCausalLLMBackbone) -> StoredNames:
    """Of the parts only a language model may be stored fused; DINOv2's converters are for sizes that no tower has."""
    names = StoredNames.of(llm)
    if language.stored_names.are_fused:
        return names
    return StoredNames([one for one in names.mapping if isinstance(one, WeightRenaming)])
