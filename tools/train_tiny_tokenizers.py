"""Trains the tokenizers of the tiny backbones, which are committed as data: `python -m tools.train_tiny_tokenizers`.

They learn from the train split of `builtin:stdlib` only, so held-out text never shapes a vocabulary. Under one Python
and one `tokenizers` version a second run writes the same bytes; the committed files come from Python 3.11.7 and
tokenizers 0.23.3. Another Python documents other modules, so its tokenizers differ in some merges.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from orchestrator.data.stdlib import stdlib_examples

FOLDER = Path(__file__).parents[1] / "backbones" / "families" / "tiny_tokenizers"

LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN_BYTES = 256 + len(LLAMA_TOKENS)

# Qwen2's pre-tokenizer: contractions, words with one leading mark, single digits, punctuation, line ends, spaces.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    texts = [turn.content for example in stdlib_examples("train") for turn in example.turns]
    write(folder / "tiny-llama2", train_llama(texts, vocab_size=1024), LLAMA_TOKENS)
    write(folder / "tiny-mistral", train_llama(texts, vocab_size=PLAIN_BYTES), LLAMA_TOKENS)
    write(folder / "tiny-qwen", train_qwen(texts, vocab_size=2048), qwen_config())


def train_llama(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE that puts `<s>` in front; with `PLAIN_BYTES` there is no room for merges: one token a byte."""
    special_tokens = list(LLAMA_TOKENS.values())
    tokenizer = train(texts, vocab_size, special_tokens, ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def train_qwen(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with Qwen's pre-tokenizer and without BOS. No NFC: decoding gives back the very text."""
    words = Split(Regex(QWEN_PATTERN), behavior="isolated")
    to_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    return train(texts, vocab_size, QWEN_TOKENS, Sequence([words, to_bytes]))


def train(texts: list[str], vocab_size: int, special_tokens: list[str], pre_tokenizer: PreTokenizer) -> Tokenizer:
    """Special tokens come first, then the 256 bytes, then the merges."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def qwen_config() -> dict[str, Any]:
    """A turn ends with `<|im_end|>`, which is therefore the EOS, as in Qwen's instruct tokenizers."""
    return {
        "eos_token": "<|im_end|>",
        "additional_special_tokens": ["<|endoftext|>", "<|im_start|>"],
        "chat_template": CHAT_TEMPLATE,
    }


def write(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
