"""Several real processes as the ranks of one gloo process group: what Ray Train gives, without a cluster."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

DEADLINE_S = 300.0

# The fork server has these loaded, so a rank starts in a moment; it never computes, so its forks are safe.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["orchestrator.attempt.stages", "transformers.models.llama.modeling_llama"])


class RankError(AssertionError):
    """A rank raised; carries its traceback."""


def run_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Calls `function(*arguments)` on every rank; returns the results by rank. Raises RankError if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(world)]
        ranks = [
            _CONTEXT.Process(target=_rank, args=(rank, world, folder, sender, function, arguments))
            for rank, (_, sender) in enumerate(pipes)
        ]
        for rank, (_, sender) in zip(ranks, pipes, strict=True):
            rank.start()
            sender.close()
        try:
            return _collect([receiver for receiver, _ in pipes])
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()


@contextmanager
def standing_ranks(
    world: int, prepare: Callable[..., Callable[..., Any]], *arguments: Any
) -> Iterator[Callable[..., list[Any]]]:
    """Ranks that stay: each calls `prepare(*arguments)` once, and what that returns with the arguments of every call.

    Gives a function that makes such a call on all ranks and returns the results by rank. Raises RankError like
    `run_ranks`.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_CONTEXT.Pipe() for _ in range(world)]
        ranks = [
            _CONTEXT.Process(target=_rank, args=(rank, world, folder, theirs, _serve, (theirs, prepare, arguments)))
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for rank, (_, theirs) in zip(ranks, pipes, strict=True):
            rank.start()
            theirs.close()
        ours = [end for end, _ in pipes]

        def call(*call_arguments: Any) -> list[Any]:
            for end in ours:
                end.send(call_arguments)
            return _collect(ours)

        try:
            yield call
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()


def _serve(pipe: Connection, prepare: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]) -> None:
    function = prepare(*arguments)
    while True:
        pipe.send((None, function(*pipe.recv())))


def _collect(receivers: list[Connection]) -> list[Any]:
    results: dict[Connection, Any] = {}
    while len(results) < len(receivers):
        ready = wait([receiver for receiver in receivers if receiver not in results], DEADLINE_S)
        if not ready:
            raise RankError(f"no rank has finished in {DEADLINE_S:.0f} s")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            try:
                error, results[receiver] = receiver.recv()
            except EOFError:
                error = "a rank died without a word"
            if error is not None:
                raise RankError(error)
    return [results[receiver] for receiver in receivers]


def _rank(
    rank: int, world: int, folder: str, sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(Path(folder) / "store"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
        sender.send((None, function(*arguments)))
    except BaseException:
        sender.send((traceback.format_exc(), None))
