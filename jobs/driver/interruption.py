"""SIGINT and SIGTERM: the first asks for an orderly end, the second ends the process at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """The first signal that arrived, and what is to be done about it at this point of a launch."""

    def __init__(self, console: Console):
        self._console = console
        self._answer: Callable[[], None] | None = None
        self.number: int | None = None

    @contextmanager
    def answered_by(self, answer: Callable[[], None], sentence: str, *, also_earlier: bool = True) -> Iterator[None]:
        """Inside, a signal prints the sentence and calls `answer`; so does one that arrived earlier, if asked for."""

        def say_and_answer() -> None:
            self._console.print(sentence, highlight=False)
            answer()

        self._answer = say_and_answer
        self.install()
        try:
            if also_earlier and self.number is not None:
                say_and_answer()
            yield
        finally:
            self._answer = None

    def install(self) -> None:
        """Makes this object the handler; `ray.init` puts its own in the place of what it finds."""
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        if self._answer is not None:
            self._answer()


@contextmanager
def interruption(console: Console) -> Iterator[Interruption]:
    """Handles SIGINT and SIGTERM while it is open."""
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    received = Interruption(console)
    received.install()
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupt() -> None:
    """The answer while nothing is at work that would have to stop first."""
    raise KeyboardInterrupt
