"""`RandomInitBackbone`: a model that exists as sizes and a seed, with a tokenizer that ships with this package."""

from contextlib import nullcontext

import torch
from transformers import PreTrainedModel

from backbones.causal_lm import CausalLMBackbone, make_config


class RandomInitBackbone(CausalLMBackbone):
    """Weights drawn from torch's CPU generator, which `build(seed=...)` seeds; nothing is downloaded or read."""

    def load_llm(self, llm_cls: type[PreTrainedModel], hf_hub_path: str, hf_token: str | None) -> PreTrainedModel:
        """The model that the spec's architecture describes."""
        self.weights_read = "none: drawn from the seed"
        with nullcontext() if self.inference_mode else torch.device("cpu"):  # no file would fill it later
            return llm_cls._from_config(
                make_config(self.spec), dtype=torch.float32, attn_implementation=self.attention.prepare()
            )

    def resize_embeddings(self, *, added: int, may_shrink: bool) -> None:
        """As for every backbone; and the config gets the tokenizer's BOS and EOS, so that generation stops."""
        super().resize_embeddings(added=added, may_shrink=may_shrink)
        for config in (self.llm.config.get_text_config(), self.llm.generation_config):
            if config is not None:
                config.bos_token_id = self.tokenizer.bos_token_id
                config.eos_token_id = self.tokenizer.eos_token_id
