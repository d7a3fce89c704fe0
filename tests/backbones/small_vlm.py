"""A vision-language model with the structure of upstream's: our words, upstream's signatures and rules.

Upstream's own code is no dependency. What follows has the parts that `generate` meets (openvla/openvla,
prismatic/models/vlms/base_vlm.py and prismatic.py): a module that mixes transformers' generation in without being a
PreTrainedModel, patches between the first token and the rest, a step behind a cache that goes straight to the language
model, and a cache that is asked for its truth value.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig

from backbones.prismatic import LLMBackbone

PATCH, PIXELS, WIDTH = 8, 32, 24


class VisionBackbone(nn.Module):
    """Square patches of an image, each through one matrix."""

    embed_dim = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.patches(pixel_values).flatten(2).transpose(1, 2)


class VLM(nn.Module, GenerationMixin, ABC):
    """Upstream's base class: abstract, and without the methods that generation prepares its steps by."""

    def __init__(self, model_family: str, model_id: str, vision_backbone: Any, llm_backbone: LLMBackbone) -> None:
        super().__init__()
        self.model_family, self.model_id = model_family, model_id
        self.vision_backbone, self.llm_backbone = vision_backbone, llm_backbone
        self.generation_config = llm_backbone.llm.generation_config
        self.main_input_name = "input_ids"

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def config(self) -> PretrainedConfig:
        return self.llm_backbone.llm.config

    @staticmethod
    def can_generate() -> bool:
        return True

    def _reorder_cache(self, past_key_values: Any, beam_idx: Any) -> Any:
        return self.llm_backbone.llm._reorder_cache(past_key_values, beam_idx)

    @abstractmethod
    def forward(self, input_ids: Any = None, attention_mask: Any = None, pixel_values: Any = None) -> Any: ...


class PrismaticVLM(VLM):
    """Upstream's `forward`, `prepare_inputs_for_generation` and `generate`, for batches that are all images."""

    def __init__(self, model_id: str, vision_backbone: Any, llm_backbone: LLMBackbone) -> None:
        super().__init__("prismatic", model_id, vision_backbone, llm_backbone)
        self.projector = nn.Linear(vision_backbone.embed_dim, llm_backbone.embed_dim)

    def embed(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """The first token, the patches, the other tokens."""
        tokens = self.llm_backbone.embed_input_ids(input_ids)
        return torch.cat([tokens[:, :1], self.projector(self.vision_backbone(pixel_values)), tokens[:, 1:]], dim=1)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        pixel_values: Any = None,
        labels: Any = None,
        inputs_embeds: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
        output_attentions: Any = None,
        output_hidden_states: Any = None,
        return_dict: Any = None,
        multimodal_indices: Any = None,
    ) -> Any:
        rest = {
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": return_dict,
        }
        if input_ids.shape[1] == 1 and past_key_values is not None:
            return self.llm_backbone(input_ids=input_ids, **rest)
        if input_ids.shape[1] == 1 or pixel_values is None:
            raise RuntimeError("Invalid `forward()` call!")
        embeddings = self.embed(input_ids, pixel_values)
        if attention_mask is not None:
            seen = attention_mask.new_ones(len(input_ids), embeddings.shape[1] - input_ids.shape[1])
            attention_mask = torch.cat([attention_mask[:, :1], seen, attention_mask[:, 1:]], dim=1)
        return self.llm_backbone(inputs_embeds=embeddings, attention_mask=attention_mask, labels=labels, **rest)

    def prepare_inputs_for_generation(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        pixel_values: Any = None,
        inputs_embeds: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if past_key_values:  # before transformers 5 there was none at the first step
            input_ids = input_ids[:, -1:]
        first_by_embeddings = inputs_embeds is not None and past_key_values is None
        inputs = {"inputs_embeds": inputs_embeds} if first_by_embeddings else {"input_ids": input_ids}
        return inputs | {
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }

    @torch.inference_mode()
    def generate(self, image: torch.Tensor, prompt_text: str, **kwargs: Any) -> str:
        tokenizer = self.llm_backbone.tokenizer
        input_ids = tokenizer(prompt_text, truncation=True, return_tensors="pt").input_ids.to(self.device)
        generated = super().generate(input_ids=input_ids, pixel_values=image[None].to(self.device), **kwargs)
        return tokenizer.decode(generated[0, input_ids.shape[1] :], skip_special_tokens=True).strip()
