"""Keeps what people wrote from becoming control tokens: `</s>` in a message is four characters, not the end of it."""

import json
import re
import secrets
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class ControlTokens:
    """The control tokens of one tokenizer, and a way to encode text in which only the prompt format may use them.

    For text that quotes a control token, a second tokenizer is made in which control tokens are spelled by a random
    name and everything else is equal: pieces, merges, ids, prefix spaces. The prompt format's control tokens are
    rewritten to those names; what a person wrote stays as it is and falls into ordinary pieces. Text without such a
    quote never gets there, so its ids are the tokenizer's own.
    """

    def __init__(self, backend: "Tokenizer", ids: dict[str, int]):
        self._backend = backend
        self.ids = ids
        self._nonce = secrets.token_hex(8)  # drawn per process, so that no data can spell a control token
        quoted = "|".join(re.escape(text) for text in sorted(ids, key=len, reverse=True))
        self._control = re.compile(quoted)
        self._rewritten = re.compile(rf"(?P<control>{quoted})|<{self._nonce}-(?P<hidden>\d+)>")
        self._text = {token_id: text for text, token_id in ids.items()}

    def occur_in(self, text: str) -> bool:
        """Whether the text spells a control token."""
        return self._control.search(text) is not None

    def hide(self, content: str) -> str:
        """The content with each quoted control token replaced by a placeholder, to be put through a prompt format."""
        return self._control.sub(lambda match: f"<{self._nonce}-{self.ids[match[0]]}>", content)

    def rewrite(self, rendered: str) -> str:
        """Text for `renamed`: control tokens by their random names, placeholders as what was quoted."""
        return self._rewritten.sub(self._replacement, rendered)

    @cached_property
    def renamed(self) -> "Tokenizer":
        """The second tokenizer. Raises ValueError if its control tokens did not keep their ids."""
        from tokenizers import Tokenizer

        state = json.loads(self._backend.to_str())
        names = {text: self._name(token_id) for text, token_id in self.ids.items()}
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        state["model"]["vocab"] = _rename(state["model"]["vocab"], names)
        state["post_processor"] = state["truncation"] = state["padding"] = None
        tokenizer = Tokenizer.from_str(json.dumps(state))
        moved = [text for text, token_id in self.ids.items() if tokenizer.token_to_id(names[text]) != token_id]
        if moved:
            raise ValueError(f"text quotes control tokens, and this tokenizer cannot tell them apart: {moved}")
        return tokenizer

    def _name(self, token_id: int) -> str:
        return f"<{self._nonce}+{token_id}>"

    def _replacement(self, match: re.Match[str]) -> str:
        control = match["control"]
        return self._text[int(match["hidden"])] if control is None else self._name(self.ids[control])


def _rename(vocabulary: dict[str, int] | list[list[object]], names: dict[str, str]) -> object:
    """BPE and WordPiece store {piece: id}, Unigram [[piece, score], ...]."""
    if isinstance(vocabulary, dict):
        return {names.get(piece, piece): token_id for piece, token_id in vocabulary.items()}
    return [[names.get(str(piece), piece), score] for piece, score in vocabulary]
