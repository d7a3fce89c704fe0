"""`RandomInitBackbone`: a model that exists as sizes and a seed, with a tokenizer that ships with this package."""

from contextlib import nullcontext

import torch
from transformers import PreTrainedModel

from backbones.causal_lm import CausalLMBackbone


class RandomInitBackbone(CausalLMBackbone):
    """Weights drawn from torch's CPU generator, which `build(seed=...)` seeds; nothing is downloaded or read."""

    def load_llm(self, llm_cls: type[PreTrainedModel], hf_hub_path: str, hf_token: str | None) -> PreTrainedModel:
        """The model that the spec's architecture describes."""
        sizes = self.spec.architecture
        config = llm_cls.config_class(
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            vocab_size=sizes.vocab_size,
            tie_word_embeddings=sizes.tied_embeddings,
            max_position_embeddings=self.spec.context_length,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            architectures=[llm_cls.__name__],
        )
        self.weights_read = "none: drawn from the seed"
        with nullcontext() if self.inference_mode else torch.device("cpu"):  # no file would fill it later
            return llm_cls._from_config(config, dtype=torch.float32, attn_implementation=self.attention.kernel)

    def resize_embeddings(self, *, added: int, may_shrink: bool) -> None:
        """As for every backbone; and the config gets the tokenizer's BOS and EOS, so that generation stops."""
        super().resize_embeddings(added=added, may_shrink=may_shrink)
        for config in (self.llm.config, self.llm.generation_config):
            if config is not None:
                config.bos_token_id = self.tokenizer.bos_token_id
                config.eos_token_id = self.tokenizer.eos_token_id
