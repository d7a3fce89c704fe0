"""A prompt builder made from a tokenizer's own chat template."""

import secrets
from typing import TYPE_CHECKING, Any, ClassVar

from backbones.prompting.base import IMAGES, PromptBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for a message's content. Drawn per process, so that no data can contain it; no template looks for it.
_MARK = secrets.token_hex(8)

# A template that prints today's date would give another prompt, and another fingerprint, every day.
_PINNED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


class ChatTemplatePromptBuilder(PromptBuilder):
    """Turns rendered by a chat template; subclasses made by `chat_template_builder` carry the tokenizer.

    A human piece ends with the generation prompt: it is what the template adds to the conversation before it. A gpt
    piece is the rest, up to the next human turn, so it may begin with text of the template (`answer_lead`). Some
    templates rewrite earlier turns (Qwen3 drops their thinking blocks); here a turn keeps the text it was given, so
    that every turn of a training sequence continues exactly the prompt that inference would give. For the same reason
    an answer ends as it does before another question: an EOS that ends only whole conversations (Phi-3) is left out.
    A template that was made for images takes contents in parts; what it writes for an image is left out of the piece.
    """

    tokenizer: ClassVar[Any]
    template: ClassVar[str]
    needs_parts: ClassVar[bool] = False  # a content that is a string would be dropped
    image_text: ClassVar[str] = ""  # what the template writes for an image; "": it knows of none

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        super().__init__(model_family, system_prompt)
        self._messages = [] if system_prompt is None else [self._message("system", system_prompt)]
        self._closing = ""  # what the template puts after the last answer

    def clean(self, message: str) -> str:
        return message.strip()

    def wrap_human(self, message: str) -> str:
        user = self._message("user", message)
        if self.turn_count == 0:
            return self._render([*self._messages, user], prompt=True)
        history = [*self._messages[:-1], self._message("assistant", _MARK)]
        return self._render([*history, user], prompt=True).rpartition(_MARK)[2].removeprefix(self._closing)

    def wrap_gpt(self, message: str) -> str:
        lead, self._closing = self._frame()
        self.answer_lead = len(lead)
        return f"{lead}{message}{self._closing}"

    def add_turn(self, role: str, message: str) -> str:
        piece = super().add_turn(role, message)
        self._messages.append(self._message("user" if role == "human" else "assistant", message))
        return piece

    def add_turn_with_images(self, message: str) -> tuple[str, str]:
        before, behind = super().add_turn_with_images(message)
        return before.removesuffix(self.image_text), behind

    def get_potential_prompt(self, message: str) -> str:
        return self.prompt + self._wrap("human", message)

    def get_prompt(self) -> str:
        return self.prompt

    def _frame(self) -> tuple[str, str]:
        # The first question's piece is that very text.
        prompt = self.prompt if self.turn_count == 1 else self._render(self._messages, prompt=True)
        history = [*self._messages, self._message("assistant", _MARK)]
        answered, followed = self._render_all([history, [*history, self._message("user", "Q")]])
        before, mark, closing = answered.rpartition(_MARK)
        if not mark or not before.startswith(prompt):
            raise ValueError(
                "the chat template does not continue its own generation prompt, so no answer can be learned after the "
                f"prompt that inference gives: prompt ends {prompt[-40:]!r}, conversation has {before[-40:]!r}. "
                "Correct chat_template in the model's folder."
            )
        followed = followed.rpartition(_MARK)[2]
        for ending in (closing, closing.removesuffix(self.eos)):
            if followed.startswith(ending) and bool(ending) == bool(closing):
                return before.removeprefix(prompt), ending
        raise ValueError(
            f"the chat template ends an answer with {closing[:40]!r}, but goes on with {followed[:40]!r} when another "
            "question follows, so no training sequence can hold the prompts of inference. Correct chat_template in the "
            "model's folder."
        )

    @classmethod
    def _message(cls, role: str, text: str) -> dict[str, Any]:
        text = text.strip()
        images = int(cls.image_text != "" and IMAGES in text)
        if not (cls.needs_parts or images):
            return {"role": role, "content": text}
        return _in_parts(role, text, images)

    @classmethod
    def _render(cls, messages: list[dict[str, Any]], prompt: bool = False) -> str:
        (text,) = cls._render_all([messages], prompt)
        return text

    @classmethod
    def _render_all(cls, conversations: list[list[dict[str, Any]]], prompt: bool = False) -> list[str]:
        texts: list[str] = cls.tokenizer.apply_chat_template(
            conversations, chat_template=cls.template, tokenize=False, add_generation_prompt=prompt
        )
        return texts


def chat_template_builder(tokenizer: "PreTrainedTokenizerBase") -> type[ChatTemplatePromptBuilder]:
    """The builder class of a tokenizer that has a chat template. Raises ValueError where it has none."""
    template = str(tokenizer.get_chat_template())
    if "strftime_now" in template:
        template = _PINNED_DATE + template
    members = {
        "__module__": __name__,
        "tokenizer": tokenizer,
        "template": template,
        "bos": tokenizer.bos_token or "",
        "eos": tokenizer.eos_token or "",
    }
    builder: type[ChatTemplatePromptBuilder] = type("ChatTemplatePromptBuilder", (ChatTemplatePromptBuilder,), members)
    builder.needs_parts = _shows(builder, {"role": "user", "content": _MARK}) is None
    builder.image_text = _find_image_text(builder)
    builder.uses_system_prompt = _shows_system_prompt(builder)
    return builder


def _in_parts(role: str, text: str, images: int) -> dict[str, Any]:
    return {"role": role, "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}]}


def _find_image_text(builder: type[ChatTemplatePromptBuilder]) -> str:
    """What stands for an image in front of a text: what a second image adds."""
    none, one, two = (_shows(builder, _in_parts("user", _MARK, images)) for images in range(3))
    if none is None or one is None or two is None or "'type'" in one:  # the last: it prints the list itself
        return ""
    return one[len(one) - (len(two) - len(one)) :] if len(two) > len(one) else ""


def _shows(builder: type[ChatTemplatePromptBuilder], message: dict[str, Any]) -> str | None:
    """What a message is rendered to in front of its text; None where the text is not shown or the template fails."""
    from jinja2 import TemplateError

    try:
        before, mark, _ = builder._render([message]).partition(_MARK)
    except (TemplateError, TypeError):
        return None
    return before if mark else None


def _shows_system_prompt(builder: type[ChatTemplatePromptBuilder]) -> bool:
    """Whether a system message reaches the text: some templates raise on it (Gemma), some drop it (Phi-3)."""
    from jinja2 import TemplateError

    try:
        return _MARK in builder("prismatic", _MARK).add_turn("human", "Q")
    except TemplateError:
        return False
