"""The built-in data and the tokenizers that were trained on it."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from orchestrator.data import stdlib
from orchestrator.data.examples import Example
from orchestrator.data.stdlib import ANSWER_CHARACTERS, SHORTEST_ANSWER, chunks, stdlib_examples
from orchestrator.errors import InputError

ROOT = Path(__file__).parents[3]
TOKENIZERS = ROOT / "backbones" / "families" / "tiny_tokenizers"
NAMES = ("tiny-llama2", "tiny-mistral", "tiny-qwen")
Tokenizers = dict[str, PreTrainedTokenizerFast]
SIZES = {"tiny-llama2": 1024, "tiny-mistral": 259, "tiny-qwen": 2048}


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return {name: PreTrainedTokenizerFast.from_pretrained(TOKENIZERS / name) for name in NAMES}


def python(*arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints, run in the repository's root."""
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_splits_are_large_enough_to_train_and_to_measure() -> None:
    train, validation = stdlib_examples("train"), stdlib_examples("validation")
    assert 1500 <= len(train) <= 3000
    assert 150 <= len(validation) <= 400
    assert len({example.group for example in validation}) >= 20


def test_no_package_topic_or_paragraph_stands_in_both_splits() -> None:
    train, validation = stdlib_examples("train"), stdlib_examples("validation")
    for facet in (lambda e: {e.group.partition(".")[0]}, lambda e: {e.content_hash}, passages):
        assert not set().union(*map(facet, train)) & set().union(*map(facet, validation))


def passages(example: Example) -> set[str]:
    paragraphs = [" ".join(paragraph.split()) for paragraph in example.turns[-1].content.split("\n\n")]
    return {paragraph for paragraph in paragraphs if len(paragraph) >= SHORTEST_ANSWER}


def test_no_answer_is_given_twice() -> None:
    answers = [e.turns[-1].content for split in ("train", "validation") for e in stdlib_examples(split)]
    assert len(set(answers)) == len(answers)


def test_every_pair_is_a_question_and_a_short_answer() -> None:
    for example in [*stdlib_examples("train"), *stdlib_examples("validation")]:
        question, answer = example.turns
        assert (question.role, answer.role) == ("user", "assistant")
        assert SHORTEST_ANSWER <= len(answer.content) <= ANSWER_CHARACTERS + 100
        assert question.content == question.content.strip() and answer.content == answer.content.strip()


def test_questions_show_signatures_without_self() -> None:
    questions = {example.turns[0].content for example in stdlib_examples("train")}
    assert "What does `textwrap.fill(text, width=70, **kwargs)` do?" in questions
    assert "What does `threading.Thread.start()` do?" in questions
    assert "What is the class `textwrap.TextWrapper` for?" in questions
    assert "Explain the Python help topic `while` (part 1)." in questions


def test_two_interpreters_make_the_same_examples_in_the_same_order() -> None:
    program = (
        "from orchestrator.data.stdlib import stdlib_examples\n"
        "print(*(e.content_hash for s in ('train', 'validation') for e in stdlib_examples(s)))"
    )
    assert python("-c", program, PYTHONHASHSEED="1") == python("-c", program, PYTHONHASHSEED="2")


def test_reading_the_library_imports_none_of_it_and_no_torch() -> None:
    program = (
        "import sys; from orchestrator.data.stdlib import stdlib_examples; stdlib_examples('train')\n"
        "print(*sorted({'torch', 'transformers', 'asyncio', 'imaplib', 'smtplib', 'unittest'} & set(sys.modules)))"
    )
    assert python("-c", program).strip() == ""


def test_a_python_without_sources_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdlib._all_examples.cache_clear()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=r"recipe\.data"):
        stdlib_examples("train")


@given(st.lists(st.text(alphabet="ab \n", max_size=900), max_size=8))
def test_chunks_keep_every_line_in_order_and_cut_only_between_lines(paragraphs: list[str]) -> None:
    pieces = list(chunks(paragraphs))
    lines = [line for piece in pieces for line in piece.split("\n") if line]
    assert lines == [line for paragraph in paragraphs for line in paragraph.split("\n") if line]
    for piece in pieces:
        assert len(piece) <= max(ANSWER_CHARACTERS, *(len(line) for line in piece.split("\n")))


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_tokenizer_has_its_size_and_no_pad_token(name: str, tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers[name]
    assert len(tokenizer) == SIZES[name]
    assert tokenizer.pad_token is None
    assert set(tokenizer.get_vocab().values()) == set(range(SIZES[name]))


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text())
def test_decoding_gives_back_any_text(name: str, tokenizers: Tokenizers, text: str) -> None:
    tokenizer = tokenizers[name]
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("name", NAMES)
def test_decoding_gives_back_the_data_and_awkward_spacing(name: str, tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers[name]
    texts = [turn.content for example in stdlib_examples("validation") for turn in example.turns]
    for text in [*texts, "", " ", "  x", "do n't , .", "e\u0301 \u00e9 \ufb01", "日本語 🙂\r\n\t\x00", "<s>x</s>"]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@given(text=st.text(max_size=50))
def test_the_tiny_mistral_tokenizer_has_one_token_per_byte(tokenizers: Tokenizers, text: str) -> None:
    ids = tokenizers["tiny-mistral"].encode(text, add_special_tokens=False)
    specials = ("<unk>", "<s>", "</s>")
    assert any(special in text for special in specials) or len(ids) == len(text.encode())


@pytest.mark.parametrize("name", ["tiny-llama2", "tiny-mistral"])
def test_llama_like_tokenizers_put_bos_in_front_and_nothing_behind(name: str, tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers[name]
    assert (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token) == ("<unk>", "<s>", "</s>")
    assert tokenizer.encode("a b") == [tokenizer.bos_token_id, *tokenizer.encode("a b", add_special_tokens=False)]


def test_the_qwen_like_tokenizer_has_chatml_turns_and_single_digits_and_no_bos(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["tiny-qwen"]
    conversation = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.bos_token is None and tokenizer.eos_token == "<|im_end|>"
    assert {"<|endoftext|>", "<|im_start|>", "<|im_end|>"} <= set(tokenizer.all_special_tokens)
    assert len(tokenizer.encode("2024")) == 4
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(prompt))[0] == "<|im_start|>"


def test_a_larger_vocabulary_needs_fewer_tokens_for_held_out_text(tokenizers: Tokenizers) -> None:
    text = "\n".join(example.turns[-1].content for example in stdlib_examples("validation"))
    counts = [len(tokenizers[name].encode(text)) for name in ("tiny-qwen", "tiny-llama2", "tiny-mistral")]
    assert counts[0] < counts[1] < counts[2] / 2


def test_training_the_tokenizers_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        python("-m", "tools.train_tiny_tokenizers", "--folder", str(tmp_path / seed), PYTHONHASHSEED=seed)
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.json"))
    assert len(files) == 2 * len(NAMES)
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()
