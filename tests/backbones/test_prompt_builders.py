"""Golden strings: what OpenVLA's and Prismatic's checkpoints were trained on, byte for byte."""

import pytest

from backbones.prompting import (
    LLaMa2ChatFixedPromptBuilder,
    LLaMa2ChatPromptBuilder,
    MistralInstructPromptBuilder,
    PhiFixedPromptBuilder,
    PhiPromptBuilder,
    PromptBuilder,
    PurePromptBuilder,
    QwenPromptBuilder,
    VicunaV15ChatPromptBuilder,
    pure_prompt_builder,
)

SYS_L = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
SYS_V = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TURNS = [("human", "<image>\n Hello "), ("gpt", " Hi there "), ("human", "Bye"), ("gpt", "")]
GOLDEN = {
    PurePromptBuilder: ["In: Hello\nOut: ", "Hi there</s>", "In: Bye\nOut: ", " </s>", "In: Q\nOut:"],
    MistralInstructPromptBuilder: [
        "[INST] Hello [/INST] ",
        "Hi there</s>",
        "[INST] Bye [/INST] ",
        " </s>",
        "[INST] Q [/INST]",
    ],
    LLaMa2ChatPromptBuilder: [
        f"[INST] <<SYS>\n{SYS_L}\n<</SYS>>\n\nHello [/INST] ",
        "Hi there</s>",
        "[INST] Bye [/INST] ",
        " </s>",
        f"[INST] <<SYS>\n{SYS_L}\n<</SYS>>\n\nQ [/INST]",
    ],
    VicunaV15ChatPromptBuilder: [
        f"{SYS_V} USER: Hello ASSISTANT: ",
        "Hi there</s>",
        "USER: Bye ASSISTANT: ",
        " </s>",
        f"{SYS_V} USER: Q ASSISTANT:",
    ],
    PhiPromptBuilder: [
        "<|endoftext|>Input: Hello\nOutput: ",
        "Hi there\n<|endoftext|>",
        "Input: Bye\nOutput: ",
        " \n<|endoftext|>",
        "<|endoftext|>Input: Q\nOutput:",
    ],
}
WITH_SYSTEM = (LLaMa2ChatPromptBuilder, VicunaV15ChatPromptBuilder)


SYSTEMS = {"prismatic": None, "openvla": None, "its own system prompt": " You drive a robot arm. "}


def golden(builder_class: type[PromptBuilder], system_prompt: str | None) -> list[str]:
    """Four pieces of TURNS and the prompt of one turn "Q"; three of the builders ignore a system prompt."""
    own = (system_prompt or "").strip()
    return [text.replace(SYS_L, own).replace(SYS_V, own) if own else text for text in GOLDEN[builder_class]]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("builder_class", GOLDEN)
def test_pieces_and_prompts_have_the_bytes_of_upstream(builder_class: type[PromptBuilder], system: str) -> None:
    family, own = ("other", SYSTEMS[system]) if SYSTEMS[system] else (system, None)
    *pieces, one_turn_prompt = golden(builder_class, own)
    builder = builder_class(family, own)
    assert [builder.add_turn(role, message) for role, message in TURNS] == pieces
    assert builder.get_prompt() == "".join(pieces).rstrip()
    asked = builder_class(family, own)
    asked.add_turn("human", "Q")
    assert asked.get_prompt() == one_turn_prompt


@pytest.mark.parametrize("builder_class", GOLDEN)
def test_a_potential_prompt_changes_nothing_and_cleans_nothing(builder_class: type[PromptBuilder]) -> None:
    builder = builder_class("prismatic")
    expected = GOLDEN[builder_class][4].replace("Q", " <image>Q").removeprefix("<|endoftext|>")
    assert builder.get_potential_prompt(" <image>Q") == expected
    assert (builder.prompt, builder.turn_count) == ("", 0)


@pytest.mark.parametrize("builder_class", GOLDEN)
def test_turns_alternate_and_a_human_begins(builder_class: type[PromptBuilder]) -> None:
    with pytest.raises(AssertionError, match=r"^$"):
        builder_class("prismatic").add_turn("gpt", "Hi")


@pytest.mark.parametrize("builder_class", GOLDEN)
def test_a_builder_says_whether_it_uses_a_system_prompt(builder_class: type[PromptBuilder]) -> None:
    text = builder_class("prismatic", " Be brief. ").add_turn("human", "Q")
    assert builder_class.uses_system_prompt == ("Be brief." in text)
    assert builder_class.uses_system_prompt == (builder_class in WITH_SYSTEM)


@pytest.mark.parametrize("builder_class", WITH_SYSTEM)
def test_a_family_without_a_default_system_prompt_needs_one(builder_class: type[PromptBuilder]) -> None:
    with pytest.raises(KeyError):
        builder_class("other")
    assert "Be brief." in builder_class("other", "Be brief.").add_turn("human", "Q")


def test_the_fixed_variants_repair_the_tag_and_the_potential_prompt() -> None:
    assert LLaMa2ChatFixedPromptBuilder("prismatic", "S").add_turn("human", "Q") == (
        "[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] "
    )
    assert PhiFixedPromptBuilder("prismatic").get_potential_prompt("Q") == "<|endoftext|>Input: Q\nOutput:"


def test_pure_takes_another_tokenizers_bos_and_eos() -> None:
    builder = pure_prompt_builder("", "<|im_end|>")("prismatic")
    assert builder.add_turn("human", "Q") + builder.add_turn("gpt", "A") == "In: Q\nOut: A<|im_end|>"


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_forks_chatml_has_its_system_prompt_in_the_prompt_alone(system: str) -> None:
    own = SYSTEMS[system]
    text = (own or "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.").strip()
    opening = f"<|im_start|>system\n{text}<|im_end|>\n"
    pieces = [
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
        "Hi there<|im_end|>\n",
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        " <|im_end|>\n",
    ]
    builder = QwenPromptBuilder("other" if own else system, own)
    assert builder.get_potential_prompt("Hello") == pieces[0]
    prompts = []
    for role, message in TURNS:
        prompts.append((builder.add_turn(role, message), builder.get_prompt()))
    assert [piece for piece, _ in prompts] == pieces
    assert [prompt for _, prompt in prompts] == [
        opening + pieces[0],
        opening + pieces[0] + "Hi there<|im_end|><|endoftext|>",
        opening + "".join(pieces[:3]),
        opening + "".join(pieces[:3]) + " <|im_end|><|endoftext|>",
    ]
    assert builder.get_potential_prompt(" Q") == opening + "".join(pieces) + pieces[0].replace("Hello", " Q")


def test_the_forks_chatml_refuses_a_turn_out_of_order_and_an_unknown_family() -> None:
    builder = QwenPromptBuilder("prismatic")
    with pytest.raises(AssertionError):
        builder.add_turn("gpt", "Hi")
    assert builder.get_prompt() == ""
    with pytest.raises(KeyError):
        QwenPromptBuilder("other")
