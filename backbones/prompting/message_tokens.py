"""Which tokens of an encoded text are made of a message's characters, found by their two ends where that is safe."""

import json
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

NO, YES = b"\0", b"\1"


@dataclass(frozen=True)
class EncodedText:
    """An encoded text, of which a piece's tokens begin at `first`, and its characters `shift` behind the piece's."""

    encoding: Any  # of tokenizers
    text: str
    first: int
    shift: int

    @cached_property
    def ids(self) -> list[int]:
        """The piece's."""
        found: list[int] = self.encoding.ids[self.first :]
        return found


class MessageTokens:
    """Masks for the texts of one tokenizer; control tokens are never a message's."""

    def __init__(self, backend: Any, special_ids: Set[int]):
        self._backend = backend
        self._special_ids = special_ids

    def mask(self, tokens: EncodedText, start: int, end: int, alters_text: bool) -> bytes:
        """A 1 for each of the piece's tokens that has characters from `start` to `end` of the text, else a 0.

        `alters_text`: another tokenizer made these tokens, of which nothing is known.
        """
        if start >= end:
            return NO * len(tokens.ids)
        run = None if alters_text else self._by_its_ends(tokens, start, end)
        return self._one_by_one(tokens, start, end) if run is None else run

    def _one_by_one(self, tokens: EncodedText, start: int, end: int) -> bytes:
        return bytes(
            first < end and start < last and first < last and token_id not in self._special_ids
            for token_id, (first, last) in zip(tokens.ids, tokens.encoding.offsets[tokens.first :], strict=True)
        )

    def _by_its_ends(self, tokens: EncodedText, start: int, end: int) -> bytes | None:
        """The same, much faster; None where each token has to be looked at."""
        if not self._covers(tokens.text):
            return None
        encoding, ids = tokens.encoding, tokens.ids
        begin = _place(encoding.char_to_token(start))
        behind = _place(encoding.char_to_token(end)) if end < len(tokens.text) else tokens.first + len(ids)
        if begin < tokens.first or behind < begin:
            return None
        if end < len(tokens.text) and encoding.token_to_chars(behind)[0] < end:
            return None
        begin, behind = begin - tokens.first, behind - tokens.first
        if not self._special_ids.isdisjoint(ids[begin:behind]):
            return None
        return NO * begin + YES * (behind - begin) + NO * (len(ids) - behind)

    def _covers(self, text: str) -> bool:
        """Whether every token is known to have characters of this text, in its order: bytes, which nobody rewrote."""
        return self.is_byte_level and (self._backend.normalizer is None or text.isascii())

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether pieces are of bytes, none of which is put in front, and offsets are those of the pieces."""
        state = json.loads(self._backend.to_str())
        parts = state["pre_tokenizer"] or {}
        level = [one for one in parts.get("pretokenizers", [parts]) if one.get("type") == "ByteLevel"]
        trims = '"trim_offsets": true' in json.dumps(state["post_processor"])
        return bool(level) and not trims and not any(one["add_prefix_space"] for one in level)


def _place(found: int | None) -> int:
    """A token's place, -1 where there is none."""
    return -1 if found is None else found
