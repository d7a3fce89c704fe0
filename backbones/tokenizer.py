"""Loads a backbone's tokenizer, gives it a PAD of its own, and counts the embedding rows it needs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.prompting import Codec, ImageTokens, prompt_builder_class
from backbones.spec import BackboneSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROW_MULTIPLE = 64  # upstream's, and a size that matrix units like
# Families whose tokenizers upstream asks to be `LlamaTokenizerFast`, which they were before transformers 5.
_LLAMA_FAMILIES = {"llama2", "mistral"}
_PROBES = ("Hello  world", "\n x 12345", "In: Q\nOut: A", "naïve 你好 😀", " It's\t{done}")


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer and which reading of its files it is."""

    tokenizer: "PreTrainedTokenizerBase"
    reading: str


@dataclass(frozen=True)
class TokenizerRows:
    """Rows of the embedding: up to the tokenizer's own largest id, for added tokens, beyond every id, and all."""

    base: int
    added: int
    padded: int
    total: int

    @property
    def effective_vocab_size(self) -> int:
        """One more than the largest id of a token: rows from here on only pad the matrix."""
        return self.base + self.added


def read_tokenizer(
    source: str, *, family: str, max_length: int, revision: str | None = None, hf_token: str | None = None
) -> LoadedTokenizer:
    """The tokenizer of a folder or hub id, padding on the right; those of Llama-2's kind pass for Llama's.

    AutoTokenizer may rebuild a tokenizer as the class that belongs to config.json's model type and so give other ids
    than its tokenizer.json; the file is the truth then, and `reading` says so.
    """
    loaded = _read_tokenizer(source, max_length=max_length, revision=revision, hf_token=hf_token)
    if family in _LLAMA_FAMILIES:
        from backbones.llama_tokenizer import as_llama

        return replace(loaded, tokenizer=as_llama(loaded.tokenizer))
    return loaded


def _read_tokenizer(source: str, *, max_length: int, revision: str | None, hf_token: str | None) -> LoadedTokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import cached_file

    where: dict[str, Any] = {"local_files_only": True}
    if not Path(source).is_absolute():
        where = {"revision": revision, "token": hf_token}
    options = {"model_max_length": max_length, "padding_side": "right", "trust_remote_code": False, **where}
    auto = AutoTokenizer.from_pretrained(source, **options)
    if cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **where) is None:
        return LoadedTokenizer(auto, f"AutoTokenizer ({type(auto).__name__}), converted: there is no tokenizer.json")
    from_file = PreTrainedTokenizerFast.from_pretrained(source, **options)
    if all(auto(probe)["input_ids"] == from_file(probe)["input_ids"] for probe in _PROBES):
        return LoadedTokenizer(auto, f"AutoTokenizer ({type(auto).__name__})")
    return LoadedTokenizer(from_file, f"tokenizer.json; AutoTokenizer ({type(auto).__name__}) gives other ids")


def load_tokenizer(spec: BackboneSpec, *, max_length: int, hf_token: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a spec, PAD and extra tokens included."""
    loaded = read_tokenizer(
        spec.source, family=spec.family, max_length=max_length, revision=spec.revision, hf_token=hf_token
    )
    add_tokens(spec, loaded.tokenizer)
    return loaded.tokenizer


def add_tokens(spec: BackboneSpec, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Gives the tokenizer its PAD and behind it, where ours lacks them, the tokens of images, and the extra tokens.

    Returns how many tokens that added.
    """
    return ensure_pad(spec, tokenizer) + _add_image_tokens(spec, tokenizer) + _add_extra_tokens(spec, tokenizer)


def ensure_pad(spec: BackboneSpec, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Gives the tokenizer a PAD that is neither EOS nor BOS; returns how many tokens that added."""
    taken = (None, tokenizer.eos_token_id, tokenizer.bos_token_id)
    if spec.pad_token is None and tokenizer.pad_token_id not in taken:
        return 0
    added: int = tokenizer.add_special_tokens({"pad_token": spec.pad_token or "<PAD>"})
    if tokenizer.pad_token_id in taken:
        raise ValueError(f"{spec.backbone_id}: PAD {tokenizer.pad_token!r} is also EOS or BOS; set another pad_token")
    return added


def _add_image_tokens(spec: BackboneSpec, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Of a tokenizer that ships with this package; control tokens, so that no text can be taken for an image.

    A trained model that lacks one is not the model of its spec: `ImageTokens.of` says so.
    """
    if spec.vision is None or not spec.is_builtin:
        return 0
    before, behind = spec.vision.frame
    vocabulary = tokenizer.get_vocab()
    named = (spec.vision.placeholder, *before, *behind)
    missing = [name for name in named if name is not None and name not in vocabulary]
    return int(tokenizer.add_tokens(list(dict.fromkeys(missing)), special_tokens=True))


def _add_extra_tokens(spec: BackboneSpec, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Adds `<|extra_0|>` and so on, as the largest ids: from there upstream's forks count the tokens of their actions.

    They are ordinary tokens, none that decoding leaves out. A tokenizer that has just these already keeps them.
    """
    if spec.extra_tokens == 0:
        return 0
    names = [f"<|extra_{number}|>" for number in range(spec.extra_tokens)]
    added: int = tokenizer.add_tokens(names)
    end = end_of_ids(tokenizer)
    if tokenizer.convert_tokens_to_ids(names) != list(range(end - spec.extra_tokens, end)):
        raise ValueError(
            f"{spec.backbone_id}: the tokenizer has tokens called <|extra_...|> of its own, which are not its last "
            f"{spec.extra_tokens}; set extra_tokens to 0"
        )
    return added


def make_codec(spec: BackboneSpec, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Codec:
    """The codec of a spec's prompt format over a tokenizer that has its PAD.

    Raises ValueError for a prompt format that does not exist or that this tokenizer does not have.
    """
    try:
        builder = prompt_builder_class(spec.prompt_builder, spec.prompt_variant, tokenizer)
    except ValueError as error:
        raise ValueError(f"No PromptBuilder defined for LLM Backbone `{spec.backbone_id}`: {error}") from error
    codec = Codec(
        tokenizer,
        builder,
        variant=spec.prompt_variant,
        max_length=max_length,
        extra_tokens=spec.extra_tokens,
        image_tokens=None if spec.vision is None else ImageTokens.of(spec.vision, tokenizer),
    )
    if codec.pad_token_id == codec.eos_token_id:
        message = f"{spec.backbone_id}: PAD {tokenizer.pad_token!r} also ends an answer; set another pad_token"
        raise ValueError(message)
    return codec


def count_rows(tokenizer: "PreTrainedTokenizerBase", *, added: int, current: int, may_shrink: bool) -> TokenizerRows:
    """Embedding rows for a tokenizer of which `added` tokens are new, over a model with `current` rows.

    A multiple of 64. `may_shrink` is upstream's rule, which drops rows of a model that has more than its tokenizer
    needs.
    """
    needed = end_of_ids(tokenizer)
    rows = len(tokenizer) if may_shrink else max(needed, current)
    total = padded_rows(rows)
    return TokenizerRows(needed - added, added, total - needed, total)


def end_of_ids(tokenizer: "PreTrainedTokenizerBase") -> int:
    """One more than the largest id of a token."""
    return int(max(tokenizer.get_vocab().values())) + 1


def padded_rows(rows: int) -> int:
    """The next multiple of 64, as upstream pads an embedding."""
    return -(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE


def unused_ids(tokenizer: "PreTrainedTokenizerBase", rows: int) -> list[int]:
    """The rows of an embedding that no token has, whoever padded it: for generation's `suppress_tokens`.

    Nothing trains their logits down (Qwen ships 267 of them beside 151669 tokens), so sampling could draw one, which
    decodes to nothing.
    """
    return sorted(set(range(rows)) - set(tokenizer.get_vocab().values()))
