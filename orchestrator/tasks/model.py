"""The library's model of transformers with two corrections, for a folder and for a cell alike."""

from collections.abc import Iterable
from typing import Any

from lm_eval.models.huggingface import HFLM

from orchestrator.errors import InputError


class AskedModel(HFLM):
    """Says what does not fit the model, and asks long texts window by window.

    The library answers equal windows with one pass, also those that begin to count at different places, and then reads
    the wrong logits for all but one of them (lm_eval 0.4.13).
    """

    logits_cache: bool

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        reuses, self.logits_cache = self.logits_cache, False
        try:
            return list(super().loglikelihood_rolling(requests, disable_tqdm))
        finally:
            self.logits_cache = reuses

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self.require_room((request[2] for request in requests), "an answer that a task offers has")
        return list(super()._loglikelihood_tokens(requests, disable_tqdm, override_bs))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        lengths = {int(request.args[1].get("max_gen_toks", self.max_gen_toks)) for request in requests}
        self.require_room((range(length + 1) for length in lengths), "a prompt and what a task lets be written have")
        return list(super().generate_until(requests, disable_tqdm))

    def require_room(self, sequences: Iterable[Any], what: str) -> None:
        """Raises InputError where one of them is longer than a window."""
        longest = max((len(sequence) for sequence in sequences), default=0)
        if longest > self.max_length:
            raise InputError(
                f"{what} {longest} tokens, more than the {self.max_length} of the model's window; leave the task out, "
                "or ask a model with a longer context"
            )
