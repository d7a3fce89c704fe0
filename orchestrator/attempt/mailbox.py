"""How cells reach a gang that runs, and how it says what became of them: two files that driver and workers share.

No torch, no Ray. Each file has one writer. Both are there before anybody looks, and are replaced, never made: a network
file system may remember for seconds that a name does not exist.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.attempt.failure import Failure
from orchestrator.cell_job import CellJob
from orchestrator.layout import MailboxFolder
from orchestrator.results import write_json


@dataclass(frozen=True)
class Call:
    """What a gang is to do next: an attempt at a cell, or, without a job, to end. Numbers count from 1."""

    number: int
    job: CellJob | None = None


@dataclass(frozen=True)
class Answer:
    """What became of the call of that number. A failure here is one that all ranks met alike: the gang outlived it."""

    number: int
    failure: Failure | None = None


_CALL, _ANSWER = TypeAdapter(Call), TypeAdapter(Answer)


class Mailbox:
    """Calls go in, answers come out; the newest of each is kept."""

    def __init__(self, folder: Path):
        self._files = MailboxFolder(folder)

    def create(self) -> None:
        """The driver does this before there are workers."""
        for file in (self._files.call, self._files.answer):
            write_json(file, {"number": 0})

    def put(self, call: Call) -> None:
        """The driver's next wish."""
        write_json(self._files.call, _CALL.dump_python(call, mode="json"))

    def find_call(self, number: int) -> Call | None:
        """The call of that number once it is there."""
        call = _CALL.validate_json(self._files.call.read_bytes())
        return call if call.number == number else None

    def answer(self, answer: Answer) -> None:
        """The main rank's word for all of them."""
        write_json(self._files.answer, _ANSWER.dump_python(answer, mode="json"))

    def find_answer(self, number: int) -> Answer | None:
        """The answer to that call once it is there."""
        answer = _ANSWER.validate_json(self._files.answer.read_bytes())
        return answer if answer.number == number else None
