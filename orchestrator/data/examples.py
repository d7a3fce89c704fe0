"""The unit of data: an example, which is a conversation, a text or an action. No torch, no transformers."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from json.encoder import encode_basestring
from pathlib import Path
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Image:
    """A picture as a file of it has it. Equal bytes are equal images, wherever they are."""

    sha256: str  # of those bytes, in hex digits
    source: Path | bytes = field(compare=False, repr=False)  # the file, or its content
    width: int = field(compare=False)  # pixels, as they are stored
    height: int = field(compare=False)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; `content` is stripped of surrounding white space.

    `images` are seen before it is read.
    """

    role: Role
    content: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Example:
    """A conversation (`turns`) or a text (`text`), never both; `group` names its source (a module, a file, an episode).

    With an `action`, one number a dimension as the robot takes it, the turns are the question that it answers, and in
    `ahead` stand the actions that follow it in a chunk: fewer than others have where its `episode` ends. Splits are
    made by group, and the verdict's item noise is clustered by it. `columns` are what else the row says in short
    texts and whole numbers, such as its language; they are no part of the content.
    """

    group: str
    turns: tuple[Turn, ...] = ()
    text: str = ""
    action: tuple[float, ...] = ()
    ahead: tuple[tuple[float, ...], ...] = ()
    episode: str = field(default="", compare=False)  # of a chunk
    columns: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # (name, value)

    @property
    def images(self) -> tuple[Image, ...]:
        """Those of all turns, in order."""
        images: tuple[Image, ...] = ()
        for turn in self.turns:
            images += turn.images
        return images

    @property
    def actions(self) -> tuple[tuple[float, ...], ...]:
        """Of a chunk, in order; the action alone where there is none."""
        return (self.action, *self.ahead)

    @cached_property
    def content_digest(self) -> bytes:
        """The first 16 bytes of the SHA-256 of the content alone; equal content in two files has equal digests."""
        return hashlib.sha256(self._as_json().encode()).digest()[:16]

    @property
    def content_hash(self) -> str:
        """The content's digest as 32 hex digits."""
        return self.content_digest.hex()

    @property
    def learnable_bytes(self) -> int:
        """UTF-8 bytes of what a model learns from this example: the assistant's turns, or the whole text.

        A dimension of an action counts as one: it is one of 256 bins.
        """
        if self.action:
            return len(self.action) * len(self.actions)
        if not self.turns:
            return _utf8_bytes(self.text)
        return sum(_utf8_bytes(turn.content) for turn in self.turns if turn.role == "assistant")

    def _as_json(self) -> str:
        """What `json.dumps` makes of the text, or of the turns as a list of pairs; planning does it for every row.

        A turn with images is a list of three, the last of which lists their digests.
        """
        if not self.turns:
            return encode_basestring(self.text)
        pairs = [f'["{turn.role}", {encode_basestring(turn.content)}{_digests(turn)}]' for turn in self.turns]
        turns = f"[{', '.join(pairs)}]"
        answer = self.actions if self.ahead else self.action
        return f"[{turns}, {json.dumps(answer)}]" if answer else turns


def _digests(turn: Turn) -> str:
    return f", {json.dumps([image.sha256 for image in turn.images])}" if turn.images else ""


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
