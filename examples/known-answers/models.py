"""Writes two small random models that like different learning rates: `large` and `small`, beside this file.

    python examples/known-answers/models.py

They share the tokenizer of tiny-llama2. What the specs beside this file must say of them is known beforehand.
"""

from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

import backbones

HERE = Path(__file__).parent
TOKENIZER = Path(backbones.__file__).parent / "families" / "tiny_tokenizers" / "tiny-llama2"
SHAPES = {
    "large": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4},
    "small": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def main() -> None:
    """Writes both; what is there is written over."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    for name, shape in SHAPES.items():
        set_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **shape,
        )
        LlamaForCausalLM(config).save_pretrained(HERE / name)
        tokenizer.save_pretrained(HERE / name)
        print(HERE / name)


if __name__ == "__main__":
    main()
