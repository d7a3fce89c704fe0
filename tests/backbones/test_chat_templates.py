"""Shapes of chat template that registered families ship, over tokenizers of the kit: the builder writes their bytes."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from backbones.prompting import Codec, chat_template_builder

MISTRAL_V2 = (  # roles must alternate, and none is called system
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('roles') }}{% endif %}{% endfor %}"
)
OLMO_2 = (  # a line break after EOS, but for the last answer
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
PHI_3 = (  # EOS after the whole conversation only
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MESSAGES = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "Five."},
]
TURNS = [(message["role"], message["content"]) for message in MESSAGES]

KitTokenizer = Callable[[str], PreTrainedTokenizerBase]


@pytest.mark.parametrize("kit_name", ["mistral-v1", "gpt2"])
@pytest.mark.parametrize("template", [MISTRAL_V2, OLMO_2], ids=["mistral-v0.2", "olmo-2"])
def test_several_turns_have_the_bytes_and_ids_of_the_template(
    kit_tokenizer: KitTokenizer, kit_name: str, template: str
) -> None:
    tokenizer = kit_tokenizer(kit_name)
    tokenizer.chat_template = template
    codec = Codec(tokenizer, chat_template_builder(tokenizer))
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    prompt = tokenizer.apply_chat_template(MESSAGES[:3], tokenize=False, add_generation_prompt=True)
    assert codec.encode_conversation(TURNS).input_ids == ids(text)
    assert codec.encode_prompt(TURNS[:3]) == ids(prompt)
    assert codec.prompt_builder.uses_system_prompt == (template == OLMO_2)


def test_an_eos_that_ends_only_whole_conversations_is_not_put_between_turns(kit_tokenizer: KitTokenizer) -> None:
    tokenizer = kit_tokenizer("phi3")
    tokenizer.chat_template = PHI_3
    codec = Codec(tokenizer, chat_template_builder(tokenizer))
    builder = codec.prompt_builder("prismatic", "Be brief.")
    pieces = [builder.add_turn({"user": "human"}.get(role, "gpt"), content) for role, content in TURNS]
    system = {"role": "system", "content": "Be brief."}
    assert "".join(pieces) + "<|endoftext|>" == tokenizer.apply_chat_template([system, *MESSAGES], tokenize=False)
    assert codec.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")


def test_a_template_that_ends_answers_in_two_ways_is_refused(kit_tokenizer: KitTokenizer) -> None:
    tokenizer = kit_tokenizer("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'user' or loop.last %}<|im_end|>{% else %}<|endoftext|>{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"ends an answer with '<.im_end.>', but goes on with '<.endoftext.>Q"):
        Codec(tokenizer, chat_template_builder(tokenizer))
