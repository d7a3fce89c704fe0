"""`VisionLanguageBackbone`: what the families that see have in common."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from backbones.attention import AttentionChoice, AttentionUnavailableError, resolve_attention
from backbones.causal_lm import CausalLMBackbone
from backbones.contract import Part
from backbones.inputs import Example, Inputs, images_of, make_inputs, placeholders_of
from backbones.loading import WeightsError
from backbones.prompting import CodecError, ImageTokens
from backbones.random_init import RandomInitBackbone
from backbones.spec import FILTERS, Vision, VisionTower
from backbones.vision_language.pixels import normalised
from backbones.vision_language.processor import Processor


class VisionLanguageBackbone(CausalLMBackbone):
    """A class of transformers with a vision tower. A family says which of its modules are which, and places images.

    `tower` and `connector` are the names in `llm` of the modules that see and of those that hand on what was seen; a
    connector may stand inside of the tower.
    """

    tower: ClassVar[tuple[str, ...]]
    connector: ClassVar[tuple[str, ...]]
    # From the best on. The others know no attention that is not causal, or were not proven with images.
    kernels: ClassVar[tuple[str, ...]] = ("sdpa", "eager")
    reads_labelled = True  # `forward` passes on what it is given

    @property
    def vision(self) -> Vision:
        """How it sees, as its spec says."""
        assert self.spec.vision is not None, f"{self.identifier}: a backbone that sees needs the field vision"
        return self.spec.vision

    @cached_property
    def image_tokens(self) -> ImageTokens:
        """What stands for an image in a prompt; looked up in the vocabulary once, not for every batch."""
        return ImageTokens.of(self.vision, self.tokenizer)

    def fit_embeddings(self) -> None:
        """As for every backbone; and config and tokenizer must mean the same token by an image's placeholder."""
        super().fit_embeddings()
        if not self.inference_mode:  # checkpointed layers need it when the embedding is frozen
            self.llm.get_input_embeddings().register_forward_hook(_require_grad)
        self.match_placeholder(self.image_tokens.placeholder)

    def match_placeholder(self, placeholder: int) -> None:
        """Raises WeightsError where the model's config has another id for a placeholder than the tokenizer."""
        if self.llm.config.image_token_id != placeholder:
            raise WeightsError(
                f"{self.identifier}: config.json replaces token {self.llm.config.image_token_id} by what is seen, but "
                f"{self.vision.placeholder!r} is token {placeholder}; correct the placeholder in its spec"
            )

    def let_gradients_in(self) -> None:
        """Nothing yet: a hook on every embedding would drive gradients through a frozen tower too."""

    def enable_gradient_checkpointing(self, selective: bool = False) -> None:
        super().enable_gradient_checkpointing(selective)
        self.llm.disable_input_require_grads()  # transformers sets those hooks here again

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The model's forward pass; what `collate` made comes by name."""
        return self.llm(*arguments, **named)

    def collate(self, rows: Sequence[Sequence[Example]], width: int | None = None) -> Inputs:
        """The rows and their images as the forward pass takes them, padded to `width` positions or to the longest.

        Raises CodecError where an example's image tokens are not those of its images: features would slip into the
        places of another.
        """
        for row in rows:
            if len(row) > 1 and not self.vision.packs:
                raise CodecError(f"{self.identifier}: its examples cannot share a row; set recipe.packing to false")
            for example in row:
                placeholders_of(example, self.image_tokens.placeholder, self.vision)
        inputs = self.arrange(make_inputs(rows, self.pad_token_id, width), rows)
        images = images_of(rows)
        if images is None:
            return inputs
        return replace(inputs, extras={**inputs.extras, **self.look_at(normalised(images, self.vision))})

    def as_processed(self, example: Example) -> dict[str, np.ndarray]:
        """Ids, pixels and token types, as the class's processor gives them: the class makes positions and masks."""
        ids = {"input_ids": example.input_ids[None]}
        seen = {} if example.images is None else self.look_at(normalised(example.images, self.vision))
        return {**ids, **seen, **self.token_types(example)}

    @property
    def image_processor(self) -> BaseImageProcessor:
        """The processor of the class in transformers, by pillow, for the one square that this backbone looks at."""
        own_class: type[BaseImageProcessor] = IMAGE_PROCESSOR_MAPPING[type(self.llm.config)]["pil"]
        return own_class(
            do_convert_rgb=True,
            resample=FILTERS[self.vision.resample],
            image_mean=list(self.vision.mean),
            image_std=list(self.vision.std),
            **self.processor_settings(),
        )

    def processor_settings(self) -> dict[str, Any]:
        """What else the class's image processor is told."""
        return {"size": {"height": self.vision.image_size, "width": self.vision.image_size}}

    @property
    def processor(self) -> Processor | None:
        """The class's processor of text and images; None unless a family's was proven to give the same."""
        return None

    @property
    def placeholders(self) -> str:
        """The text of one image's placeholders."""
        assert self.vision.placeholder is not None
        return self.vision.placeholder * self.vision.tokens_per_image

    def token_types(self, example: Example) -> dict[str, np.ndarray]:
        """The token types of one example, (1, T), where the class's processor gives any."""
        return {}

    def arrange(self, inputs: Inputs, rows: Sequence[Sequence[Example]]) -> Inputs:
        """The inputs with whatever the language model needs to know of where images stand."""
        return inputs

    def look_at(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Arguments of the forward pass made of the pixels (images, 3, S, S) of all rows; a class may want others."""
        return {"pixel_values": pixels}

    def is_image_token(self, input_ids: np.ndarray) -> np.ndarray:
        """Bool in the same shape: where placeholders stand."""
        return np.asarray(input_ids == self.image_tokens.placeholder)

    @property
    def vision_layers(self) -> Sequence[tuple[VisionTower, list[nn.Module]]]:
        """Each tower of the spec with the layers of its class that there are."""
        modules = list(self.llm.modules())
        return [
            (tower, [module for module in modules if type(module).__name__.removeprefix("FSDP") == tower.layer_cls])
            for tower in self.vision.towers
        ]

    def part_of(self, name: str) -> Part:
        if any(name.startswith(f"{prefix}.") for prefix in self.connector):
            return "connector"
        return "vision" if any(name.startswith(f"{prefix}.") for prefix in self.tower) else "language"

    @classmethod
    def find_attention(
        cls,
        request: str,
        dtype: torch.dtype,
        llm_cls: type[PreTrainedModel] | None,
        config: PreTrainedConfig | None = None,
        generates: bool = False,
    ) -> AttentionChoice:
        """The kernel that both towers take. Raises AttentionUnavailableError for the others."""
        if request == "auto":
            found = resolve_attention(cls.kernels[0], dtype=dtype, llm_cls=llm_cls)
            return replace(found, requested="auto", reason="the best that both towers take")
        if request not in cls.kernels:
            raise AttentionUnavailableError(
                f"attention {request} cannot run here: not both towers of {cls.__name__} take it, or not the masks of "
                f"its images; choose {' or '.join(cls.kernels)}, or auto"
            )
        return resolve_attention(request, dtype=dtype, llm_cls=llm_cls)

    def _choose_attention(self, llm_cls: type[PreTrainedModel], flash: bool) -> AttentionChoice:
        return self.find_attention("auto", self.half_precision_dtype, llm_cls)


class RandomVision(RandomInitBackbone):
    """Stands before a family's class: weights drawn from a seed, and a config that follows the tokenizer."""

    def match_placeholder(self, placeholder: int) -> None:
        """The config's is set: no checkpoint says another."""
        self.llm.config.image_token_id = placeholder


def _require_grad(_: nn.Module, __: Any, output: torch.Tensor) -> None:
    output.requires_grad_(True)
