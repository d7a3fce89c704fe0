"""Image tokens in prompts: as many as there are images, where the spec says, and all else as it is without them."""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones import load_codec
from backbones.prompting import Codec, CodecError, chat_template_builder
from backbones.registry import get_spec
from backbones.spec import Vision, VisionTower

TOWER = VisionTower(16, 32, 2, 2, 4, 1000, "ViTLayer")
FRAMED = Vision((TOWER,), 8, 4, 10, (0.5,) * 3, (0.5,) * 3, frame=(("<fake>", "<global>"), ("<fake>",)))
TEXT = st.text(max_size=30)
CHAT = [("tiny-qwen", "turn"), ("tiny-llama2", "bos"), ("tiny-mistral", "start"), ("tiny-llama2", "turn")]
PARTS = (  # SmolVLM's: a content that is a string is dropped, and a space follows the colon where no image stands
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@cache
def codec_of(backbone_id: str, place: str) -> Codec:
    spec = replace(get_spec(backbone_id), vision=replace(FRAMED, place=place))
    return load_codec(spec, max_length=512)


@pytest.mark.parametrize(("backbone_id", "place"), CHAT)
@settings(max_examples=40, deadline=None)
@given(questions=st.lists(TEXT, min_size=1, max_size=3), images=st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_images_add_their_tokens_and_nothing_else_is_learned_or_scored(
    backbone_id: str, place: str, questions: list[str], images: list[int]
) -> None:
    codec, plain = codec_of(backbone_id, place), load_codec(get_spec(backbone_id), max_length=512)
    assert codec.image_tokens is not None
    turns = [turn for question in questions for turn in (("user", question), ("assistant", "It is 4."))]
    counts = [count for number in images[: len(questions)] for count in (number, 0)]

    found, without = codec.encode_conversation(turns, counts), plain.encode_conversation(turns)

    of_images = set(codec.image_tokens.ids)
    assert found.input_ids.count(codec.image_tokens.placeholder) == 4 * sum(counts)
    assert not any(
        learned for token, learned in zip(found.input_ids, found.is_target, strict=True) if token in of_images
    )
    kept = [place for place, token in enumerate(found.input_ids) if token not in of_images]
    text = codec.tokenizer.decode([found.input_ids[place] for place in kept])
    assert text.replace(" ", "") == plain.tokenizer.decode(without.input_ids).replace(" ", "")
    assert [found.input_ids[place] for place in kept if found.is_target[place]] == [
        token for token, learned in zip(without.input_ids, without.is_target, strict=True) if learned
    ]
    assert sum(found.is_scored) == sum(without.is_scored)


def test_an_image_stands_where_the_spec_says() -> None:
    turns = [("user", "What?"), ("assistant", "A cat.")]
    for backbone_id, place in CHAT:
        codec = codec_of(backbone_id, place)
        assert codec.image_tokens is not None
        image = list(codec.image_tokens.ids)
        assert len(image) == 7
        ids = codec.encode_conversation(turns, [1, 0]).input_ids
        at = next(at for at in range(len(ids)) if ids[at : at + 7] == image)
        match place:
            case "start":
                assert at == 0 and ids[7] == codec.bos_token_id
            case "bos":
                assert at == 1 and ids[0] == codec.bos_token_id
            case _:
                header = "<|im_start|>user\n" if backbone_id == "tiny-qwen" else "<s>In:"
                assert codec.tokenizer.decode(ids[:at]).strip(" ") == header
        prompt = codec.encode_prompt(turns[:1], [1])
        assert ids[: len(prompt)] == prompt
        action = codec.encode_action("What?", [7, 8, 9], images=1)
        assert action.input_ids[: len(prompt)] == prompt
        assert [i for i, scored in zip(action.input_ids, action.is_scored, strict=True) if scored] == [7, 8, 9]


def test_the_text_around_an_image_is_tokenized_with_what_stands_beside_it() -> None:
    spec = replace(get_spec("tiny-qwen"), vision=replace(FRAMED, frame=((), ()), around=("\n\n", "\n\n")))
    codec = load_codec(spec, max_length=512)
    ids = codec.encode_prompt([("user", "What?")], [2])
    expected = "<|im_start|>user\n\n\n<image><image><image><image>\n\n\n\n<image><image><image><image>\n\nWhat?"
    whole = codec.tokenizer(expected + "<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert ids == whole


def test_a_template_that_takes_parts_gets_them_and_places_its_images() -> None:
    spec = replace(get_spec("tiny-qwen"), vision=FRAMED)
    tokenizer = load_codec(spec, max_length=512).tokenizer
    tokenizer.chat_template = PARTS
    codec = Codec(tokenizer, chat_template_builder(tokenizer), image_tokens=codec_of("tiny-qwen", "turn").image_tokens)
    turns = [("system", "Be kind."), ("user", "What?"), ("assistant", "A cat."), ("user", "Why?"), ("assistant", "So.")]
    messages = [
        {"role": role, "content": [*[{"type": "image"}] * (said == "What?"), {"type": "text", "text": said}]}
        for role, said in turns
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    text = text.replace("<image>", "<fake><global>" + "<image>" * 4 + "<fake>")

    found = codec.encode_conversation(turns, [0, 1, 0, 0, 0])

    assert "User:<fake>" in text and "User: Why?" in text
    assert found.input_ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_what_quotes_an_image_token_stays_text() -> None:
    codec = codec_of("tiny-qwen", "turn")
    assert codec.image_tokens is not None
    for said in ("<image>", "<fake> <image><image>", f"{random.random()}<image>"):
        ids = codec.encode_conversation([("user", said), ("assistant", said)], [1, 0]).input_ids
        assert ids.count(codec.image_tokens.placeholder) == 4
        assert said in codec.tokenizer.decode(ids)


def test_images_where_none_can_be_are_refused() -> None:
    plain, seeing = load_codec(get_spec("tiny-qwen"), max_length=512), codec_of("tiny-qwen", "turn")
    turns = [("user", "What?"), ("assistant", "A cat.")]
    with pytest.raises(CodecError, match="reads text alone, and a conversation has images"):
        plain.encode_conversation(turns, [1, 0])
    with pytest.raises(CodecError, match="reads text alone"):
        plain.encode_action("What?", [5], images=1)
    with pytest.raises(CodecError, match="a turn of the assistant has 1 images"):
        seeing.encode_conversation(turns, [0, 1])
    with pytest.raises(CodecError, match="2 turns have 1 counts of images"):
        seeing.encode_conversation(turns, [1])


def test_the_fingerprint_is_that_of_the_text_and_of_the_images() -> None:
    plain = load_codec(get_spec("tiny-qwen"), max_length=512)
    prints = {plain.fingerprint}
    for vision in (
        FRAMED,
        replace(FRAMED, tokens_per_image=5),
        replace(FRAMED, place="start"),
        replace(FRAMED, frame=((), ())),
    ):
        prints.add(load_codec(replace(get_spec("tiny-qwen"), vision=vision), max_length=512).fingerprint)
    assert len(prints) == 5


def test_a_trained_model_that_lacks_a_token_of_its_images_is_refused(tmp_path: Path) -> None:
    load_codec(get_spec("tiny-qwen"), max_length=512).tokenizer.save_pretrained(tmp_path)
    spec = replace(get_spec("tiny-qwen"), hf_hub_path=str(tmp_path), vision=FRAMED)
    with pytest.raises(CodecError, match="the tokenizer has no token '<fake>', which stands around or for an image"):
        load_codec(spec, max_length=512)
