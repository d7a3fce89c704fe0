"""A tokenizer under the class by which OpenVLA and Prismatic know Llama's, with the ids of its own file."""

import json
from copy import copy
from typing import Any

from transformers import LlamaTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

_SPACE = "▁"  # what SentencePiece writes for a space


class LlamaTokenizerFromFile(LlamaTokenizerFast):
    """A tokenizer.json as it stands, which passes `isinstance(tokenizer, LlamaTokenizerFast)`.

    Upstream's `predict_action` and `FinetuneDataset` refuse tokenizers that do not. transformers' own class builds
    another tokenizer from the file's pieces, whose ids differ where a text begins with a space; so this one is never
    built, it is only put on what was read, and what it saves and loads is what that would: the class is in no file.
    """

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> "LlamaTokenizerFromFile":
        tokenizer: LlamaTokenizerFromFile = PreTrainedTokenizerFast.from_pretrained(*arguments, **options)
        tokenizer.__class__ = cls
        return tokenizer

    def save_pretrained(self, *arguments: Any, **options: Any) -> tuple[str, ...]:
        files: tuple[str, ...] = self._as_read().save_pretrained(*arguments, **options)
        return files

    def train_new_from_iterator(self, *arguments: Any, **options: Any) -> PreTrainedTokenizerFast:
        return self._as_read().train_new_from_iterator(*arguments, **options)

    def _as_read(self) -> PreTrainedTokenizerFast:
        tokenizer = copy(self)
        tokenizer.__class__ = PreTrainedTokenizerFast
        return tokenizer


def as_llama(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, which from here on passes for Llama's if it is of that kind; ids, files and all else stay.

    Of that kind: pieces of SentencePiece, with bytes for what has none. Mistral Nemo's, of byte-level BPE, is not, and
    one whose class is another than the plain one is left alone.
    """
    if type(tokenizer) is PreTrainedTokenizerFast and _is_sentencepiece(tokenizer):
        tokenizer.__class__ = LlamaTokenizerFromFile
    return tokenizer


def _is_sentencepiece(tokenizer: PreTrainedTokenizerFast) -> bool:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model["type"] == "BPE" and bool(model["byte_fallback"]) and _SPACE in model["vocab"]
