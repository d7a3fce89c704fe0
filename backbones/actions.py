"""Actions of a robot as token ids: OpenVLA's 256 bins, on the last ids of a vocabulary. NumPy only."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backbones.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BINS = 256
_EDGES = np.linspace(-1.0, 1.0, BINS)
_CENTRES = (_EDGES[:-1] + _EDGES[1:]) / 2  # one fewer than bins


class ActionTokensError(BackboneError, ValueError):
    """A tokenizer has no ids to spare for actions."""


@dataclass(frozen=True)
class ActionTokens:
    """The ids `end - 256` to `end - 1`: the smaller an action, the larger its id.

    Bins are numbered from 1; the last one has no centre of its own and holds 1.0 alone. Source: openvla/openvla,
    prismatic/vla/action_tokenizer.py; forks count from behind the tokens that they add.
    """

    end: int

    @property
    def begin(self) -> int:
        """The smallest id."""
        return self.end - BINS

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Ids of actions, int64 in the same shape; what is outside [-1, 1] counts as its bound."""
        return np.asarray(self.end - np.digitize(np.clip(actions, -1.0, 1.0), _EDGES), np.int64)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """The centres of the ids' bins, in [-1, 1]; an id that is no action's gives the nearest of them."""
        centres: np.ndarray = _CENTRES[np.clip(self.end - ids - 1, 0, len(_CENTRES) - 1)]
        return centres


def action_tokens(tokenizer: "PreTrainedTokenizerBase", extra_tokens: int) -> ActionTokens:
    """The extra tokens of a tokenizer that has some, else the last tokens of its own vocabulary.

    Raises ActionTokensError where they are too few, or control tokens are among them.
    """
    if extra_tokens:
        if extra_tokens < BINS:
            raise ActionTokensError(f"{extra_tokens} extra tokens are fewer than {BINS} bins; set extra_tokens: {BINS}")
        return ActionTokens(int(max(tokenizer.get_vocab().values())) + 1)
    tokens = ActionTokens(tokenizer.vocab_size)
    remedy = f"use a backbone whose spec has extra_tokens={BINS}"
    if tokens.begin < 0:
        raise ActionTokensError(f"its vocabulary of {tokens.end} tokens is smaller than {BINS} bins; {remedy}")
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    if taken := sorted(special & set(range(tokens.begin, tokens.end))):
        names = ", ".join(tokenizer.convert_ids_to_tokens(taken[:5]))
        raise ActionTokensError(
            f"actions take the last {BINS} tokens of a vocabulary, among which this tokenizer has {names}; {remedy}"
        )
    return tokens
