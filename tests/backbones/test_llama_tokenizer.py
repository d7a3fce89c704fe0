"""Tokenizers of Llama-2, Vicuna and Mistral pass for Llama's, which upstream asks for, and change in nothing else."""

import copy
import json
import pickle
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import make_small_folder, small_spec
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from backbones import backbone_ids, get_spec, load_codec, register
from backbones.prismatic import LLM_BACKBONES, get_llm_backbone_and_tokenizer
from backbones.tokenizer import load_tokenizer, read_tokenizer

KIT = Path(__file__).parents[2].parent / "shared" / "kit"
UDHR = KIT / "data" / "text" / "udhr.jsonl"  # 23 languages
REAL = {"llama2": "llama2-7b-pure", "mistral-v1": "mistral-v0.1-7b-instruct"}
IDS = [
    *("llama2-7b-pure", "llama2-13b-pure", "llama2-7b-chat", "llama2-13b-chat", "vicuna-v15-7b", "vicuna-v15-13b"),
    *("mistral-v0.1-7b-pure", "mistral-v0.1-7b-instruct", "mistral-v0.2-7b-instruct", "mistral-v0.3-7b"),
]
TEXTS = [" a", "a ", "  In: Q\nOut: ", "", "</s><s>", "naïve 你好 😀\t{done}", "\u2581", "What?\nOut:"]


def _save_sentencepiece(folder: Path, declared: str = "PreTrainedTokenizerFast") -> Path:
    """A tokenizer.json of Llama-2's kind: bytes, letters, pieces that begin with a space, BOS in front."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = [("▁", letter) for letter in letters]
    vocabulary = {piece: place for place, piece in enumerate([*pieces, *map("".join, merges)])}
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": declared, **special}))
    return folder


def _read(folder: Path, family: str) -> PreTrainedTokenizerBase:
    return read_tokenizer(str(folder), family=family, max_length=4096).tokenizer


@cache
def _before_and_after(name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    if not KIT.is_dir():
        pytest.skip(f"the kit of real tokenizers is not at {KIT}")
    folder = KIT / "tokenizers" / name
    plain = PreTrainedTokenizerFast.from_pretrained(folder, model_max_length=4096, local_files_only=True)
    return plain, _read(folder, get_spec(REAL[name]).family)


def _assert_equal_in(text: str, before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase) -> None:
    ids = before(text)["input_ids"]
    assert after(text)["input_ids"] == ids
    assert after(text, add_special_tokens=False)["input_ids"] == before(text, add_special_tokens=False)["input_ids"]
    assert after(text, return_offsets_mapping=True) == before(text, return_offsets_mapping=True)
    assert after.decode(ids) == before.decode(ids)
    assert after.decode(ids, skip_special_tokens=True) == before.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("backbone_id", IDS)
def test_the_tokenizers_of_llama_2_vicuna_and_mistral_pass_for_llamas(backbone_id: str, tmp_path: Path) -> None:
    spec = replace(get_spec(backbone_id), hf_hub_path=str(_save_sentencepiece(tmp_path)))
    tokenizer = load_tokenizer(spec, max_length=128)
    assert isinstance(tokenizer, LlamaTokenizerFast)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<PAD>", len(tokenizer) - 1)


@pytest.mark.parametrize("name", REAL)
def test_a_backbone_hands_out_a_real_tokenizer_that_passes(
    kit: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = get_spec(REAL[name])
    folder = make_small_folder(spec, tmp_path / "model", kit / "tokenizers" / name)
    register(small_spec(spec, f"passes-{name}", folder))
    monkeypatch.setitem(LLM_BACKBONES, f"passes-{name}", LLM_BACKBONES[spec.backbone_id])
    backbone, tokenizer = get_llm_backbone_and_tokenizer(f"passes-{name}", inference_mode=True)
    assert tokenizer is backbone.tokenizer
    assert isinstance(tokenizer, LlamaTokenizerFast)
    assert isinstance(copy.deepcopy(tokenizer), LlamaTokenizerFast)
    assert (tokenizer.vocab_size, len(tokenizer), tokenizer.pad_token_id) == (32000, 32001, 32000)
    assert backbone.codec.fingerprint == load_codec(backbone.spec, max_length=2048).fingerprint


@pytest.mark.parametrize("name", REAL)
def test_real_text_in_23_languages_keeps_its_ids(name: str) -> None:
    before, after = _before_and_after(name)
    lines = [json.loads(line)["text"] for line in UDHR.read_text(encoding="utf-8").splitlines()]
    assert len(lines) >= 23
    assert after(lines)["input_ids"] == before(lines)["input_ids"]
    for text in TEXTS:
        _assert_equal_in(text, before, after)


@pytest.mark.parametrize("name", REAL)
@given(text=st.text(max_size=60))
def test_any_text_keeps_its_ids(name: str, text: str) -> None:
    _assert_equal_in(text, *_before_and_after(name))


@given(text=st.text(max_size=60))
def test_any_text_keeps_its_ids_without_the_kit(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    _assert_equal_in(text, *_synthetic(tmp_path_factory.getbasetemp() / "sentencepiece"))


@cache
def _synthetic(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    _save_sentencepiece(folder)
    return _read(folder, "another family"), _read(folder, "llama2")


@pytest.mark.parametrize("declared", ["PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_what_is_saved_is_to_the_byte_what_it_was_and_loads_with_the_same_ids(tmp_path: Path, declared: str) -> None:
    source = _save_sentencepiece(tmp_path / "source", declared)
    before, after = _read(source, "another family"), _read(source, "mistral")
    assert not isinstance(before, LlamaTokenizerFast)
    for tokenizer, name in ((before, "before"), (after, "after")):
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
        tokenizer.save_pretrained(tmp_path / name)
    names = {path.name for path in (tmp_path / "before").iterdir()}
    assert names == {path.name for path in (tmp_path / "after").iterdir()}
    assert all((tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes() for name in names)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "after", local_files_only=True)
    assert [loaded(text)["input_ids"] for text in TEXTS] == [before(text)["input_ids"] for text in TEXTS]
    assert isinstance(after, LlamaTokenizerFast)


def test_the_ids_outlive_pickling_and_loading_by_the_tokenizers_own_class(tmp_path: Path) -> None:
    tokenizer = _read(_save_sentencepiece(tmp_path), "llama2")
    for other in (pickle.loads(pickle.dumps(tokenizer)), type(tokenizer).from_pretrained(tmp_path)):  # noqa: S301
        assert isinstance(other, LlamaTokenizerFast)
        assert [other(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_a_tokenizer_trained_anew_is_what_it_was(tmp_path: Path) -> None:
    source = _save_sentencepiece(tmp_path)
    before, after = (_read(source, family).train_new_from_iterator([["ab ab"]], 300) for family in ("none", "llama2"))
    assert type(before) is type(after)
    assert before.backend_tokenizer.to_str() == after.backend_tokenizer.to_str()


def test_a_tokenizer_of_another_kind_does_not_pass(tmp_path: Path) -> None:
    spec = get_spec("tiny-llama2")  # bytes, no SentencePiece
    assert not isinstance(load_tokenizer(spec, max_length=128), LlamaTokenizerFast)
    shutil.copytree(spec.source, tmp_path / "byte-level")
    before, after = (_read(tmp_path / "byte-level", family) for family in ("tiny", "mistral"))  # as Mistral Nemo's is
    assert type(before) is type(after)
    assert not isinstance(after, LlamaTokenizerFast)
    for text in TEXTS:
        _assert_equal_in(text, before, after)


@pytest.mark.parametrize("name", ["llama3", "qwen3", "phi3", "gpt2", "smollm2", "stories512"])
def test_no_other_family_passes_for_llama(kit: Path, name: str) -> None:
    families = {get_spec(backbone_id).family for backbone_id in backbone_ids()} - {"llama2", "mistral"}
    tokenizers = [_read(kit / "tokenizers" / name, family) for family in sorted(families)]
    assert tokenizers and not any(isinstance(tokenizer, LlamaTokenizerFast) for tokenizer in tokenizers)
