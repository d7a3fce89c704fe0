"""Tokenizer truth: PAD, rows, BOS and EOS of every tokenizer in the kit, under the specs that use it."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from small_models import make_small_folder
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from backbones import Codec, build, get_spec, load_codec
from backbones.spec import BackboneSpec
from backbones.tokenizer import count_rows, ensure_pad, make_codec, unused_ids

KIT = Path(__file__).parents[2].parent / "shared" / "kit"
CONVERSATION = [
    ("user", "What is 2 + 2?"),
    ("assistant", "It is 4."),
    ("user", "And 你好?"),
    ("assistant", "naïve 😀"),
]


@dataclass(frozen=True)
class Truth:
    """What is true of a tokenizer of the kit under a spec: PAD, embedding rows over a model that has `length`."""

    tokenizer: str
    backbone_id: str
    length: int
    pad_token: str
    pad_id: int
    added: int
    rows: int
    adds_bos: bool


TRUTHS = [
    Truth("llama2", "llama2-7b-pure", 32000, "<PAD>", 32000, 1, 32064, True),
    Truth("llama2", "llama2-7b-chat-fixed", 32000, "<PAD>", 32000, 1, 32064, True),
    Truth("llama2", "vicuna-v15-7b", 32000, "<PAD>", 32000, 1, 32064, True),
    Truth("mistral-v1", "mistral-v0.1-7b-pure", 32000, "<PAD>", 32000, 1, 32064, True),
    Truth("mistral-v1", "mistral-v0.1-7b-instruct", 32000, "<PAD>", 32000, 1, 32064, True),
    Truth("llama3", "llama3.1-8b", 128256, "<PAD>", 128256, 1, 128320, True),
    Truth("llama3", "llama3.2-1b-instruct", 128256, "<PAD>", 128256, 1, 128320, True),
    Truth("qwen3", "qwen3-0.6b", 151669, "<|endoftext|>", 151643, 0, 151680, False),
    Truth("phi3", "phi-3-mini-4k-instruct", 32011, "<PAD>", 32011, 1, 32064, True),
    Truth("gpt2", "gpt2", 50257, "<PAD>", 50257, 1, 50304, False),
    Truth("gpt2", "pythia-160m", 50257, "<PAD>", 50257, 1, 50304, False),
    Truth("gpt2", "phi-2-3b", 50257, "<|pad|>", 50257, 1, 50304, False),
    Truth("smollm2", "smollm2-135m-instruct", 49152, "<PAD>", 49152, 1, 49216, False),
    Truth("stories512", "gemma-2-2b", 512, "<PAD>", 512, 1, 576, True),
]
each_truth = pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: f"{truth.tokenizer}:{truth.backbone_id}")


def _spec(truth: Truth) -> BackboneSpec:
    if not KIT.is_dir():
        pytest.skip(f"the kit of real tokenizers is not at {KIT}")
    return replace(get_spec(truth.backbone_id), hf_hub_path=str(KIT / "tokenizers" / truth.tokenizer))


@cache
def _codec(truth: Truth) -> Codec:
    return load_codec(_spec(truth), max_length=512)


def test_every_tokenizer_of_the_kit_is_covered(kit: Path) -> None:
    folders = {path.name for path in (kit / "tokenizers").iterdir()}
    assert folders - {"_vectors"} == {truth.tokenizer for truth in TRUTHS}


@each_truth
def test_pad_is_a_token_of_its_own_and_the_rows_fit(truth: Truth) -> None:
    tokenizer = _codec(truth).tokenizer
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (truth.pad_token, truth.pad_id)
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert len(tokenizer) == truth.length + truth.added
    for may_shrink in (False, True):
        rows = count_rows(tokenizer, added=truth.added, current=truth.length, may_shrink=may_shrink)
        assert (rows.base, rows.added, rows.total) == (truth.length, truth.added, truth.rows)
        assert rows.base + rows.added + rows.padded == rows.total
        assert rows.effective_vocab_size == len(tokenizer)
    assert unused_ids(tokenizer, truth.rows) == list(range(len(tokenizer), truth.rows))


@each_truth
def test_a_model_with_more_rows_keeps_them_but_for_upstreams_rule(truth: Truth) -> None:
    tokenizer = _codec(truth).tokenizer
    kept = count_rows(tokenizer, added=truth.added, current=truth.rows + 65, may_shrink=False)
    assert (kept.total, kept.effective_vocab_size) == (truth.rows + 128, len(tokenizer))
    assert count_rows(tokenizer, added=truth.added, current=truth.rows + 65, may_shrink=True).total == truth.rows


@each_truth
def test_a_conversation_has_one_bos_where_the_tokenizer_adds_one_and_learns_its_eos(truth: Truth) -> None:
    codec = _codec(truth)
    encoded = codec.encode_conversation(CONVERSATION)
    if truth.adds_bos:
        assert encoded.input_ids[0] == codec.bos_token_id
        assert encoded.input_ids.count(codec.bos_token_id) == 1
    learned = [token for token, target in zip(encoded.input_ids, encoded.is_target, strict=True) if target]
    assert learned.count(codec.eos_token_id) == 2
    assert learned[-1] == codec.eos_token_id
    assert truth.pad_id not in encoded.input_ids
    assert not get_spec(truth.backbone_id).requires_bos or truth.adds_bos


@each_truth
def test_the_tokens_before_each_answer_are_those_of_the_inference_prompt(truth: Truth) -> None:
    codec = _codec(truth)
    whole = codec.encode_conversation(CONVERSATION)
    for length in (1, 3):
        prompt = codec.encode_prompt(CONVERSATION[:length])
        assert whole.input_ids[: len(prompt)] == prompt
        assert (whole.is_target[len(prompt) - 1], whole.is_target[len(prompt)]) == (False, True)


def test_the_builder_of_a_chat_tokenizer_writes_its_template() -> None:
    chats = [truth for truth in TRUTHS if get_spec(truth.backbone_id).prompt_builder == "ChatTemplatePromptBuilder"]
    assert {truth.tokenizer for truth in chats} == {"llama3", "qwen3", "phi3", "smollm2"}
    for truth in chats:
        codec = _codec(truth)
        builder = codec.prompt_builder("prismatic")
        question = [{"role": "user", "content": "Q?"}]
        assert builder.add_turn("human", "Q?") == codec.tokenizer.apply_chat_template(
            question, tokenize=False, add_generation_prompt=True
        )
        builder.add_turn("gpt", "A.")
        answered = [*question, {"role": "assistant", "content": "A."}]
        assert builder.get_prompt() == codec.tokenizer.apply_chat_template(answered, tokenize=False)


def test_a_pad_that_is_eos_or_ends_an_answer_is_refused(kit: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(kit / "tokenizers" / "smollm2", local_files_only=True)
    spec = get_spec("smollm2-135m-instruct")
    with pytest.raises(ValueError, match=r"PAD '<\|im_end\|>' is also EOS or BOS; set another pad_token"):
        ensure_pad(replace(spec, pad_token="<|im_end|>"), tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    assert ensure_pad(spec, tokenizer) == 0
    with pytest.raises(ValueError, match=r"PAD '<\|im_end\|>' also ends an answer; set another pad_token"):
        make_codec(spec, tokenizer, 128)


def test_ids_that_no_token_has_are_found_between_tokens_too() -> None:
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "a": 5}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    assert unused_ids(tokenizer, 8) == [2, 3, 4, 6, 7]
    rows = count_rows(tokenizer, added=0, current=8, may_shrink=False)
    assert (rows.base, rows.effective_vocab_size, rows.padded, rows.total) == (6, 6, 58, 64)


def test_a_row_that_only_pads_is_never_sampled(kit: Path, tmp_path: Path) -> None:
    folder = make_small_folder(get_spec("llama3.2-1b"), tmp_path / "model", kit / "tokenizers" / "stories512")
    backbone = build(f"hf:{folder}").eval()
    spare = unused_ids(backbone.tokenizer, backbone.tokenizer_rows.total)
    assert spare == list(range(513, 576))
    prompt = torch.tensor([backbone.codec.encode_prompt([("user", "Q")])])
    with torch.no_grad():
        towards = backbone.llm.model(prompt).last_hidden_state[0, -1]
        backbone.llm.lm_head.weight[spare] = 10 * towards
    sample = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 8}
    kept = backbone.llm.generate(prompt, **sample)[:, prompt.shape[1] :]
    assert not set(kept.flatten().tolist()) & set(spare)
    backbone.llm.save_pretrained(tmp_path / "export")
    assert GenerationConfig.from_pretrained(tmp_path / "export").suppress_tokens == spare
    backbone.llm.generation_config.suppress_tokens = None
    free = backbone.llm.generate(prompt, **sample)[:, prompt.shape[1] :]
    assert set(free.flatten().tolist()) & set(spare)
