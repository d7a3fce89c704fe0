"""The steps of a run with their rows on the device: the next is prepared while one computes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from backbones.inputs import PlacedInputs
from orchestrator.data.feed import StepWork
from orchestrator.training.step import micro_batches
from orchestrator.training.trainee import Trainee


@dataclass
class PreparedSteps:
    """An iterator over steps from one on, with this rank's micro-batches; `prepare` makes the next one early.

    No thread: a CPU has no core to spare for one, and a device computes while the host works here.
    """

    trainee: Trainee
    first: int
    micro_batch_size: int
    _works: Iterator[StepWork] = field(init=False)
    _next: tuple[StepWork, list[PlacedInputs]] | None = None

    def __post_init__(self) -> None:
        self._works = self.trainee.feed.steps(self.first)

    def __iter__(self) -> "PreparedSteps":
        return self

    def __next__(self) -> tuple[StepWork, list[PlacedInputs]]:
        self.prepare()
        assert self._next is not None
        found, self._next = self._next, None
        return found

    @property
    def following(self) -> StepWork:
        """The step that comes next."""
        self.prepare()
        assert self._next is not None
        return self._next[0]

    def prepare(self) -> None:
        """Collates and moves the next step's rows, unless that was done."""
        if self._next is None:
            work = next(self._works)
            self._next = work, list(micro_batches(self.trainee, work, self.micro_batch_size))
