"""Gemma 3 and PaliGemma: SigLIP before a Gemma whose image tokens attend in both directions.

Shape suffixes: B rows, T positions.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from backbones.inputs import Example, Inputs
from backbones.vision_language.backbone import RandomVision, VisionLanguageBackbone
from backbones.vision_language.processor import Processor


class Gemma3VLBackbone(VisionLanguageBackbone):
    """Tokens of an image see each other in both directions; `token_type_ids` say which they are, 1 for an image's.

    Examples cannot share a row: transformers 5 looks up in layers with a window which tokens are an image's by their
    place in the example, not in the row, so that the second image of a row is seen in one direction only.
    """

    tower = ("model.vision_tower",)
    connector = ("model.multi_modal_projector",)

    def arrange(self, inputs: Inputs, rows: Sequence[Sequence[Example]]) -> Inputs:
        types_BT = self.is_image_token(inputs.input_ids_BT).astype(np.int64)
        return replace(inputs, token_extras={"token_type_ids": types_BT})

    def token_types(self, example: Example) -> dict[str, np.ndarray]:
        return {"token_type_ids": self.is_image_token(example.input_ids)[None].astype(np.int64)}

    @property
    def processor(self) -> Processor | None:
        """Gemma 3's, which puts an image in the place of the token that begins one."""
        ((begin,), (end,)), (lead, trail) = self.vision.frame, self.vision.around
        prompt = str(self.codec.prompt_with_image)
        prompt = prompt.replace(f"{lead}{begin}{self.placeholders}{end}{trail}", begin)
        tokens = {"image_token": str(self.vision.placeholder), "boi_token": begin, "eoi_token": end}
        return Processor("Gemma3Processor", {"image_seq_length": self.vision.tokens_per_image}, tokens, prompt)


class PaliGemmaBackbone(VisionLanguageBackbone):
    """All of a prompt, images included, sees itself in both directions: type 0; what is answered is type 1.

    The prompt ends in front of the first token that is learned. Positions begin at 1. Examples cannot share a row:
    the prompts of all of them would see each other (`packs` in the spec).
    """

    tower = ("model.vision_tower",)
    connector = ("model.multi_modal_projector",)
    kernels = ("eager",)  # Gemma 2 caps its attention scores

    def arrange(self, inputs: Inputs, rows: Sequence[Sequence[Example]]) -> Inputs:
        types_BT = np.ones_like(inputs.input_ids_BT)  # padding is part of no prompt
        for line, row in enumerate(rows):
            types_BT[line, : len(row[0].input_ids)] = self.token_types(row[0])["token_type_ids"]
        positions = {"position_ids": inputs.position_ids_BT + 1}
        return replace(inputs, token_extras={**positions, "token_type_ids": types_BT})

    def token_types(self, example: Example) -> dict[str, np.ndarray]:
        return {"token_type_ids": np.cumsum(example.is_learned, dtype=np.int64).clip(max=1)[None]}

    def processor_settings(self) -> dict[str, Any]:
        """The class's processor counts the tokens of an image by what its image processor says."""
        return {**super().processor_settings(), "image_seq_length": self.vision.tokens_per_image}

    @property
    def processor(self) -> Processor | None:
        """PaliGemma's, which puts BOS behind the images and a line's end behind the prompt."""
        before, prompt = f"{self.placeholders}{self.tokenizer.bos_token}", str(self.codec.prompt_with_image)
        if not (prompt.startswith(before) and prompt.endswith("\n")):  # a folder's own chat template
            return None
        placeholder = str(self.vision.placeholder)
        asked = placeholder + prompt.removeprefix(before).removesuffix("\n")
        return Processor("PaliGemmaProcessor", {}, {"image_token": placeholder}, asked)


class RandomGemma3VLBackbone(RandomVision, Gemma3VLBackbone):
    """Drawn from a seed; so is the connector's matrix, which transformers leaves at zero: nothing would be seen."""

    def load_llm(self, llm_cls: type[PreTrainedModel], hf_hub_path: str, hf_token: str | None) -> PreTrainedModel:
        llm = super().load_llm(llm_cls, hf_hub_path, hf_token)
        weight: torch.Tensor = llm.get_submodule("model.multi_modal_projector").mm_input_projection_weight
        torch.nn.init.normal_(weight, std=llm.config.get_text_config().initializer_range)
        return llm


class RandomPaliGemmaBackbone(RandomVision, PaliGemmaBackbone):
    """Drawn from a seed."""
