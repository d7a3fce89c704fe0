"""The sharded model of a cell as one that lm-evaluation-harness asks: every rank takes part in every forward pass."""

from collections.abc import Callable, Sequence
from typing import Any

from backbones.contract import TrainableBackbone
from orchestrator.parallel import Mesh
from orchestrator.tasks.model import AskedModel
from orchestrator.tasks.turns import Answer, kernel_that_generates, shared_answers

SHORTEST_WINDOW = 2048  # tokens; the library's own where a model does not say
LOGITS_BYTES = 1 << 30  # of the fp32 logits of a pass, which the library wants whole; a single row may take more


class ShardedModel(AskedModel):
    """Every rank gets every request and answers its share of the batches; all ranks return all answers.

    FSDP gathers parameters in each forward pass, so all ranks make the same number of them: those with fewer batches
    repeat one and throw the answers away. Batches are the same however many ranks there are. The library takes each
    rank for a process of its own.
    """

    def __init__(
        self, backbone: TrainableBackbone, mesh: Mesh, rows: int, max_length: int, obey: Callable[[], None]
    ) -> None:
        """`rows` requests at a time on each rank, in windows of at most `max_length` tokens.

        `obey` is called by all ranks between batches, and raises on all where they are to stop.
        """
        self._mesh, self._rows, self._obey = mesh, rows, obey
        super().__init__(
            pretrained=backbone.llm,
            tokenizer=backbone.tokenizer,
            backend="causal",
            max_length=max_length,
            batch_size=rows,
            logits_cache=False,  # it answers several requests with one pass, so nobody could count passes beforehand
            softmax_dtype="float32",
        )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """A batch for every rank at a time, as far as the library gives out windows."""
        self.batch_size_per_gpu = self._rows * self._mesh.dp_size
        try:
            nats: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self.batch_size_per_gpu = self._rows
        return nats

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Batches of like length, each one forward pass of one rank."""
        answer = super()._loglikelihood_tokens
        self.require_room((request[2] for request in requests), "an answer that a task offers has")  # on every rank
        lengths = [len(request[1]) + len(request[2]) for request in requests]
        order = sorted(range(len(requests)), key=lambda place: -lengths[place])
        batches: list[Sequence[int]] = []
        while order:
            row_bytes = 4 * self.model.config.get_text_config().vocab_size * min(lengths[order[0]], self.max_length)
            rows = max(min(self._rows, LOGITS_BYTES // row_bytes), 1)
            batches.append(order[:rows])
            order = order[rows:]

        def ask(places: Sequence[int]) -> list[tuple[float, bool]]:
            return list(answer([requests[place] for place in places], disable_tqdm=True, override_bs=len(places)))

        return self._shared(batches, ask)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Batches of one kind of generation each; a rank that is done goes on until all are."""
        kinds: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            kinds.setdefault(repr(request.args[1]), []).append(place)
        generate = super().generate_until
        written: dict[int, str] = {}
        with kernel_that_generates(self.model):
            for places in kinds.values():
                kind = [requests[place] for place in places]

                def ask(chosen: Sequence[int], kind: list[Any] = kind) -> list[str]:
                    return list(generate([kind[place] for place in chosen], disable_tqdm=True))

                numbers = range(len(kind))
                batches = [numbers[start : start + self._rows] for start in numbers[:: self._rows]]
                written |= dict(zip(places, self._shared(batches, ask), strict=True))
        return [written[place] for place in range(len(requests))]

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        synced = {"synced_gpus": True} if self._mesh.dims.world > 1 else {}
        return super()._model_generate(context, max_length, stop, **options, **synced)

    def _shared(self, batches: Sequence[Sequence[int]], ask: Callable[[Sequence[int]], list[Answer]]) -> list[Answer]:
        """The answers to 0, 1, ..., which are in the batches in any order, over all ranks. Collective."""
        return shared_answers(self._mesh, batches, ask, self._obey)
