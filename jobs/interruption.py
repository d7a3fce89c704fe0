"""SIGINT and SIGTERM: the first asks for an orderly end, the second ends the process at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console


class Interruption:
    """The first signal that arrived, and what is to be done about it at this point of a launch."""

    def __init__(self, console: Console):
        self._console = console
        self._stop: Callable[[], None] | None = None
        self.number: int | None = None

    @contextmanager
    def handled_by(self, stop: Callable[[], None], sentence: str) -> Iterator[None]:
        """Inside, a signal calls `stop` and says so; outside, it raises KeyboardInterrupt, since nothing is at work."""

        def say_and_stop() -> None:
            self._console.print(sentence, highlight=False)
            stop()

        self._stop = say_and_stop
        try:
            yield
        finally:
            self._stop = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        if self._stop is None:
            raise KeyboardInterrupt
        self._stop()


@contextmanager
def interruption(console: Console) -> Iterator[Interruption]:
    """Handles SIGINT and SIGTERM while it is open."""
    received = Interruption(console)
    previous = {number: signal.signal(number, received.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
