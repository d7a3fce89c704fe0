"""Tokens that a spec adds behind PAD, and the ids of Prismatic's forks, which have them for actions."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import make_small_folder, small_spec
from transformers import AutoModelForCausalLM, AutoTokenizer

from backbones import Qwen25LLMBackbone, backbone_ids, build, get_spec, load_codec, prismatic, register
from backbones.laid_out import lay_out
from backbones.prompting import QwenPromptBuilder
from backbones.spec import BackboneSpec
from backbones.tokenizer import add_tokens, load_tokenizer

FORKS = {
    "qwen25-0_5b-pure": ("Qwen/Qwen2.5-0.5B", 0),
    "qwen25-0_5b-extra": ("Qwen/Qwen2.5-0.5B", 256),
    "qwen25-1_5b-pure": ("Qwen/Qwen2.5-1.5B", 0),
    "qwen25-3b-pure": ("Qwen/Qwen2.5-3B", 0),
    "qwen25-7b-pure": ("Qwen/Qwen2.5-7B", 0),
}
NAMES = [f"<|extra_{number}|>" for number in range(256)]
QWEN_ROWS = 151936  # of the published model, which has rows to spare
TINY_ROWS = 1088, 1344  # of tiny-llama2, and with 256 more tokens
TEXT = "Once upon a time<|extra_0|><|extra_255|> there was a<|extra_17|>"


def _tiny(extra_tokens: int = 256, **changes: Any) -> BackboneSpec:
    return replace(get_spec("tiny-llama2"), backbone_id="tiny-extra", extra_tokens=extra_tokens, **changes)


def test_extra_tokens_are_the_last_ids_behind_pad_and_each_is_one_token() -> None:
    spec = _tiny()
    plain, tokenizer = (load_tokenizer(each, max_length=128) for each in (replace(spec, extra_tokens=0), spec))
    assert tokenizer.pad_token_id == plain.pad_token_id == len(plain) - 1
    assert tokenizer.convert_tokens_to_ids(NAMES) == list(range(len(plain), len(plain) + 256))
    assert len(tokenizer) == len(plain) + 256
    assert tokenizer.vocab_size == plain.vocab_size
    ids = tokenizer.convert_tokens_to_ids(NAMES)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text == "".join(NAMES)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    assert tokenizer("In: Q\nOut: A")["input_ids"] == plain("In: Q\nOut: A")["input_ids"]


def test_rows_that_are_not_there_are_added_and_counted_and_the_others_stay() -> None:
    plain, backbone = build("tiny-llama2", seed=3), build(_tiny(), seed=3)
    tokens = len(plain.tokenizer) + 256
    rows = backbone.tokenizer_rows
    assert (rows.base, rows.added, rows.total) == (len(plain.tokenizer) - 1, 257, TINY_ROWS[1])
    assert backbone.effective_vocab_size == tokens
    before, after = (each.llm.state_dict() for each in (plain, backbone))
    resized = {name for name in before if before[name].shape != after[name].shape}
    assert resized == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(torch.equal(before[name], after[name][: len(before[name])]) for name in before)
    assert backbone.llm.config.vocab_size == TINY_ROWS[1]
    count, before_count = (sum(one.numel() for one in each.parameters()) for each in (backbone, plain))
    assert count - before_count == (TINY_ROWS[1] - TINY_ROWS[0]) * backbone.embed_dim
    fresh = after["model.embed_tokens.weight"][TINY_ROWS[0] :]
    assert fresh.std() == pytest.approx(0.02, rel=0.1)
    assert backbone.llm.generation_config.suppress_tokens == list(range(tokens, rows.total))


def test_rows_that_fit_are_neither_resized_nor_drawn_anew() -> None:
    roomy = replace(_tiny(0).architecture, vocab_size=TINY_ROWS[1])
    plain, backbone = (build(_tiny(extra, architecture=roomy), seed=3) for extra in (0, 256))
    before, after = (each.llm.state_dict() for each in (plain, backbone))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (plain.tokenizer_rows.total, backbone.tokenizer_rows.total) == (TINY_ROWS[1], TINY_ROWS[1])
    suppressed = [set(each.llm.generation_config.suppress_tokens) for each in (plain, backbone)]
    assert suppressed[0] - suppressed[1] == set(backbone.tokenizer.convert_tokens_to_ids(NAMES))


def test_the_codec_and_the_layout_without_weights_have_them_too() -> None:
    spec = _tiny()
    backbone = build(spec, max_length=128)
    assert load_codec(spec, max_length=128).fingerprint == backbone.codec.fingerprint
    assert backbone.codec.fingerprint != build("tiny-llama2", max_length=128).codec.fingerprint
    laid_out = lay_out(spec)
    assert laid_out.llm.get_input_embeddings().weight.shape[0] == TINY_ROWS[1]
    of_the_hub = replace(get_spec("llama2-7b-pure"), backbone_id="llama2-7b-extra", extra_tokens=256)
    assert lay_out(of_the_hub).llm.get_input_embeddings().weight.shape[0] == 32320  # 32000, PAD, 256; a multiple of 64


def test_an_answer_of_extra_tokens_is_learned_token_by_token() -> None:
    codec = build(_tiny(), max_length=128).codec
    encoded = codec.encode_conversation([("user", "What should the robot do?"), ("assistant", "".join(NAMES[:7]))])
    scored = [token for token, flag in zip(encoded.input_ids, encoded.is_scored, strict=True) if flag]
    assert scored == codec.tokenizer.convert_tokens_to_ids(NAMES[:7])


def test_an_export_loads_in_plain_transformers_and_as_a_reference(tmp_path: Path) -> None:
    backbone = build(_tiny()).eval()
    backbone.llm.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True).eval()
    again = build(f"hf:{tmp_path}").eval()
    ids = backbone.tokenizer(TEXT)["input_ids"]
    assert tokenizer(TEXT)["input_ids"] == again.tokenizer(TEXT)["input_ids"] == ids
    assert {tokenizer.convert_tokens_to_ids(name) for name in ("<|extra_0|>", "<|extra_255|>", "<|extra_17|>")} < set(
        ids
    )
    assert again.tokenizer_rows.total == TINY_ROWS[1]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids])).logits for model in (backbone, stock, again)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(logits[0], logits[2], rtol=0, atol=1e-6)


def test_a_tokenizer_that_has_just_these_keeps_them_and_one_with_such_names_elsewhere_is_refused() -> None:
    spec = _tiny()
    tokenizer = load_tokenizer(spec, max_length=128)
    assert add_tokens(spec, tokenizer) == 0
    with pytest.raises(ValueError, match=r"tiny-extra: the tokenizer has tokens called <\|extra_...\|> of its own"):
        add_tokens(replace(spec, extra_tokens=255), tokenizer)
    plain = load_tokenizer(replace(spec, extra_tokens=0), max_length=128)
    plain.add_tokens(["<|extra_3|>"])
    with pytest.raises(ValueError, match="not its last 256; set extra_tokens to 0"):
        add_tokens(spec, plain)


# --- the ids of Prismatic's forks ---


@pytest.mark.parametrize("backbone_id", FORKS)
def test_an_id_of_the_forks_has_their_class_hub_path_prompt_and_tokens(backbone_id: str) -> None:
    hub_path, extra_tokens = FORKS[backbone_id]
    spec = get_spec(backbone_id)
    assert (spec.hf_hub_path, spec.extra_tokens, spec.prompt_variant) == (hub_path, extra_tokens, "legacy")
    assert spec.is_pinned
    assert prismatic.QWEN25_MODELS[backbone_id]["hf_hub_path"] == hub_path
    assert prismatic.LLM_BACKBONES[backbone_id] == {"cls": Qwen25LLMBackbone, "kwargs": {}}
    assert prismatic.LLM_BACKBONE_TO_HF_METACLASS[backbone_id] == "qwen2"
    ours = get_spec(f"{hub_path.removeprefix('Qwen/Qwen').lower().replace('2.5-', 'qwen2.5-')}")
    assert (spec.architecture, spec.parameters, spec.revision) == (ours.architecture, ours.parameters, ours.revision)


def test_no_other_id_is_of_that_class_and_its_constructor_takes_the_forks_argument() -> None:
    assert set(prismatic.QWEN25_MODELS) == set(FORKS)
    assert {each for each in backbone_ids() if get_spec(each).extra_tokens} == {"qwen25-0_5b-extra"}
    assert list(inspect.signature(Qwen25LLMBackbone).parameters)[-1] == "num_extra_tokens"
    assert list(inspect.signature(Qwen25LLMBackbone).parameters)[:-1] == list(
        inspect.signature(prismatic.LLaMa2LLMBackbone).parameters
    )


@pytest.fixture(scope="module")
def qwen_folder(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2.5 with the rows of the published ones; Qwen3's tokenizer is Qwen2.5's with four tokens more."""
    folder = tmp_path_factory.mktemp("qwen")
    return make_small_folder(get_spec("qwen2.5-0.5b"), folder, kit / "tokenizers" / "qwen3", rows=QWEN_ROWS)


def _registered(backbone_id: str, folder: Path, name: str) -> str:
    return register(small_spec(get_spec(backbone_id), name, folder)).backbone_id


def test_the_forks_plain_id_keeps_its_ids_and_shrinks_its_rows(qwen_folder: Path) -> None:
    backbone = Qwen25LLMBackbone(_registered("qwen25-0_5b-pure", qwen_folder, "small-qwen25-pure"), llm_max_length=64)
    assert len(backbone.tokenizer) == 151669
    assert backbone.llm.get_input_embeddings().weight.shape[0] == 151680
    assert backbone.prompt_builder_fn is QwenPromptBuilder
    assert backbone.pad_token_id not in (backbone.tokenizer.eos_token_id, backbone.codec.eos_token_id)
    assert (backbone.tokenizer.pad_token, backbone.tokenizer_rows.added) == ("<|vision_pad|>", 0)
    assert backbone.transformer_layer_cls.__name__ == "Qwen2DecoderLayer"


def test_the_forks_extra_id_has_256_tokens_in_the_published_rows(qwen_folder: Path) -> None:
    backbone = build(_registered("qwen25-0_5b-extra", qwen_folder, "small-qwen25-extra"), max_length=64).eval()
    tokenizer = backbone.tokenizer
    assert tokenizer.convert_tokens_to_ids(NAMES) == list(range(151669, 151925))
    assert len(tokenizer) == 151925  # from where the forks count the tokens of actions down
    assert (backbone.tokenizer_rows.added, backbone.tokenizer_rows.total) == (256, QWEN_ROWS)
    stock = AutoModelForCausalLM.from_pretrained(qwen_folder, dtype=torch.float32, local_files_only=True).eval()
    assert torch.equal(stock.get_input_embeddings().weight, backbone.llm.get_input_embeddings().weight)
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    with torch.no_grad():
        ours, theirs = backbone(input_ids=torch.tensor([ids])).logits, stock(torch.tensor([ids])).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_forks_argument_decides_where_it_is_given(qwen_folder: Path) -> None:
    backbone_id = _registered("qwen25-1_5b-pure", qwen_folder, "small-qwen25-argument")
    with torch.device("meta"):
        backbone = Qwen25LLMBackbone(backbone_id, inference_mode=True, num_extra_tokens=300)
    assert (backbone.spec.extra_tokens, len(backbone.tokenizer)) == (300, 151969)
    assert backbone.llm.get_input_embeddings().weight.shape[0] == 152000
    with torch.device("meta"):
        assert len(Qwen25LLMBackbone(backbone_id, inference_mode=True).tokenizer) == 151669


def test_training_and_inference_see_the_forks_prompt(qwen_folder: Path) -> None:
    spec = small_spec(get_spec("qwen25-0_5b-extra"), "small-qwen25-prompt", qwen_folder)
    codec = load_codec(spec, max_length=128)
    turns = [("user", "What should the robot do?"), ("assistant", "".join(NAMES[:7]))]
    whole, prompt = codec.encode_conversation(turns), codec.encode_prompt(turns[:1])
    assert whole.input_ids[: len(prompt)] == prompt
    assert codec.tokenizer.decode(prompt) == (
        "<|im_start|>user\nWhat should the robot do?<|im_end|>\n<|im_start|>assistant\n"
    )
    learned = [token for token, flag in zip(whole.input_ids, whole.is_target, strict=True) if flag]
    assert learned == [*codec.tokenizer.convert_tokens_to_ids(NAMES[:7]), codec.eos_token_id]
    assert codec.tokenizer.convert_ids_to_tokens(codec.eos_token_id) == "<|im_end|>"
