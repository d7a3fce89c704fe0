"""The unit of data: an example, which is a conversation or a text. No torch, no transformers."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; `content` is stripped of surrounding white space."""

    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation (`turns`) or a text (`text`), never both; `group` names its source (a module, a file).

    Splits are made by group, and the verdict's item noise is clustered by it.
    """

    group: str
    turns: tuple[Turn, ...] = ()
    text: str = ""

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the content alone, 32 hex digits; equal content in two files has equal hashes."""
        content = [[turn.role, turn.content] for turn in self.turns] or self.text
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:32]

    @cached_property
    def learnable_bytes(self) -> int:
        """UTF-8 bytes of what a model learns from this example: the assistant's turns, or the whole text."""
        learnable = [turn.content for turn in self.turns if turn.role == "assistant"] or [self.text]
        return sum(len(text.encode()) for text in learnable)
