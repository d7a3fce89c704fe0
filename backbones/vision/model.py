"""`FusedForConditionalGeneration`: vision towers, a projector and any causal language model as one model.

Importing this module makes it known to transformers, so that `AutoModelForImageTextToText` loads a folder of it. Shape
suffixes: B rows, T positions, N images, C channels (three for each tower), S pixels a side, P patches, V width of the
patch features, H width of the language model; M placeholders of all images.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Dinov2WithRegistersConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import CausalLMOutputWithPast

from backbones.labelled import labelled_logits, labelled_nats
from backbones.spec import Tower
from backbones.vision.projector import Projector
from backbones.vision.towers import MODEL_TYPE


class FusedConfig(PreTrainedConfig):
    """Configs of the towers and of the language model, the projector's kind, and the id that stands for a patch."""

    model_type = MODEL_TYPE
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_configs: list[dict[str, Any]] | None = None
    projector: str = "gelu-mlp"
    image_token_id: int = -1
    eyes: str = ""  # the name of the towers
    means: list[float] | None = None  # three values for each tower
    stds: list[float] | None = None
    tie_word_embeddings: bool = False  # between its own parts nothing is tied; the language model's config says its own


class FusedForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """What an id `image_token_id` would embed is replaced by a projected patch; all else is the language model's.

    Equal to upstream's PrismaticVLM, which concatenates, where those ids stand right behind the first token.
    """

    config_class = FusedConfig
    config: FusedConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(
        self,
        config: FusedConfig,
        language_model: PreTrainedModel | None = None,
        towers: Sequence[PreTrainedModel] | None = None,
    ) -> None:
        """`language_model` and `towers`: parts that are built already, of just these configs."""
        super().__init__(config)
        self.vision_towers = nn.ModuleList(towers or map(AutoModel.from_config, tower_configs(config)))
        width = sum(int(cast(Any, tower).config.hidden_size) for tower in self.vision_towers)
        self.projector = Projector(config.projector, width, int(config.get_text_config().hidden_size))
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        self.generation_config = self.language_model.generation_config
        with no_init_weights():  # each part has drawn its own values, or was given them
            self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_positions: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """The language model's forward pass, behind `pixel_values` (N, C, S, S) where there are some.

        `image_positions` (M,) say where the placeholders stand in the rows laid end to end; without them they are
        looked for. Raises ValueError where images and placeholders do not come out even.
        """
        if pixel_values is not None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, pixel_values, image_positions)
            input_ids = None
        output: CausalLMOutputWithPast = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            **options,
        )
        return output

    def embed(
        self, input_ids_BT: torch.Tensor, pixel_values_NCSS: torch.Tensor, positions_M: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, T, H): the embeddings of all tokens, with patches in the place of placeholders."""
        if positions_M is None:
            positions_M = (input_ids_BT.flatten() == self.config.image_token_id).nonzero().flatten()
        patches_MH = self.projector(self.patch_features(pixel_values_NCSS)).flatten(0, 1)
        if len(patches_MH) != len(positions_M):
            raise ValueError(
                f"{len(pixel_values_NCSS)} images have {len(patches_MH)} patches, but the ids have {len(positions_M)} "
                f"placeholders ({self.config.image_token_id})"
            )
        ids = input_ids_BT.flatten().index_fill(0, positions_M, 0)  # a placeholder may have no row
        tokens = self.get_input_embeddings()(ids.view_as(input_ids_BT))
        filled = tokens.flatten(0, 1).index_copy(0, positions_M, patches_MH.to(tokens.dtype))
        return cast(torch.Tensor, filled.view_as(tokens))

    def patch_features(self, pixel_values_NCSS: torch.Tensor) -> torch.Tensor:
        """(N, P, V): of each patch, what the second-to-last layers of all towers say, joined."""
        pixels = pixel_values_NCSS.split(3, dim=1)
        return torch.cat([patches_of(*pair) for pair in zip(self.vision_towers, pixels, strict=True)], dim=-1)

    def labelled_nats(
        self, positions_N: torch.Tensor, targets_N: torch.Tensor, chunks: int, **arguments: torch.Tensor
    ) -> torch.Tensor:
        """As every backbone's `labelled_nats`: the language model's, of embedded inputs."""
        return labelled_nats(self.language_model, positions_N, targets_N, chunks, **self._embedded(**arguments))

    def labelled_logits(self, positions_N: torch.Tensor, **arguments: torch.Tensor) -> torch.Tensor:
        """As every backbone's `labelled_logits`: the language model's, of embedded inputs."""
        return labelled_logits(self.language_model, positions_N, **self._embedded(**arguments))

    def _embedded(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_positions: torch.Tensor | None = None,
        **others: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """What the language model is given in place of the arguments that `collate` makes."""
        if pixel_values is None:
            return {"input_ids": input_ids, **others}
        return {"inputs_embeds": self.embed(input_ids, pixel_values, image_positions), **others}

    def frozen_parameters(self) -> list[nn.Parameter]:
        """What never learns: what features do not depend on, and class tokens, whose positions learn in their place.

        timm, and so upstream, has both of these in one tensor: two would take its steps twice.
        """
        return [parameter for tower in self.vision_towers for parameter in _without_learning(tower)]

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,  # by this name transformers knows that `forward` has further ones
    ) -> dict[str, Any]:
        """As for every language model; images go in with the prompt alone."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        seen = kwargs.get("past_key_values")
        if seen is None or seen.get_seq_length() == 0:
            inputs["pixel_values"] = pixel_values
        return cast(dict[str, Any], inputs)

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.language_model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return cast("nn.Module | None", self.language_model.get_output_embeddings())

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def set_attn_implementation(self, *arguments: Any, **options: Any) -> None:
        """The language model's kernel. The towers see whole images without a mask, so they keep theirs."""
        self.language_model.set_attn_implementation(*arguments, **options)


AutoConfig.register(MODEL_TYPE, FusedConfig)
AutoModelForImageTextToText.register(FusedConfig, FusedForConditionalGeneration)


def fused_config(
    towers: Sequence[Tower], eyes: str, projector: str, text_config: PreTrainedConfig, image_token_id: int
) -> FusedConfig:
    """The config of these parts. The language model's is taken as it is, its attention kernel included."""
    kernel = text_config._attn_implementation
    config = FusedConfig(
        text_config=text_config,
        vision_configs=[tower_config(tower).to_dict() for tower in towers],
        projector=projector,
        image_token_id=image_token_id,
        eyes=eyes,
        means=[value for tower in towers for value in tower.mean],
        stds=[value for tower in towers for value in tower.std],
        dtype=text_config.dtype,
        architectures=[FusedForConditionalGeneration.__name__],
    )
    text_config._attn_implementation = kernel  # a composite config gives its own to all parts
    return config


def tower_config(tower: Tower) -> PreTrainedConfig:
    """The config of a tower's class in transformers; nothing is dropped out."""
    sizes = tower.sizes
    common: dict[str, Any] = {
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "image_size": tower.image_size,
        "patch_size": sizes.patch_size,
    }
    common |= {"attn_implementation": "sdpa", "dtype": torch.float32}
    if tower.family == "siglip":
        # Exact, as timm has it and so upstream; SigLIP itself was trained with the approximation by tanh.
        return SiglipVisionConfig(intermediate_size=sizes.intermediate_size, hidden_act="gelu", **common)
    return Dinov2WithRegistersConfig(
        mlp_ratio=sizes.intermediate_size // sizes.hidden_size, num_register_tokens=tower.registers, **common
    )


def tower_configs(config: FusedConfig) -> list[PreTrainedConfig]:
    """The towers' configs, in the order in which their features are joined; scaled dot products are their kernel."""
    return [
        AutoConfig.for_model(**{**one, "attn_implementation": "sdpa", "dtype": config.dtype})
        for one in config.vision_configs or []
    ]


def patches_of(tower: PreTrainedModel, pixel_values_N3SS: torch.Tensor) -> torch.Tensor:
    """(N, P, width): the patches behind a tower's second-to-last layer, without norm, class and register tokens.

    Source: `get_intermediate_layers(n={len(blocks) - 2})` in openvla/openvla, prismatic/models/backbones/vision.
    """
    hidden = tower.embeddings(pixel_values_N3SS)
    for layer in tower_layers(tower)[:-1]:
        hidden = layer(hidden, None)
    return cast(torch.Tensor, hidden[:, _tokens_before_patches(tower) :])


def tower_layers(tower: PreTrainedModel) -> nn.ModuleList:
    """All layers of a tower, the unused last one too."""
    return cast(nn.ModuleList, getattr(tower.encoder, "layers", None) or tower.encoder.layer)


def _tokens_before_patches(tower: PreTrainedModel) -> int:
    registers = getattr(tower.config, "num_register_tokens", None)
    return 0 if registers is None else 1 + int(registers)


def _without_learning(tower: PreTrainedModel) -> list[nn.Parameter]:
    outside = [getattr(tower, name, None) for name in ("post_layernorm", "head", "layernorm")]
    unused = [parameter for module in outside if module is not None for parameter in module.parameters()]
    tokens = [getattr(tower.embeddings, name, None) for name in ("mask_token", "cls_token")]
    return [*tower_layers(tower)[-1].parameters(), *unused, *(token for token in tokens if token is not None)]
