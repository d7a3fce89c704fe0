"""How a rank gets on, for whoever watches it from another thread of its process."""

import time
from collections import deque
from dataclasses import dataclass, field

RECENT = 20  # steps whose times count


@dataclass
class Pulse:
    """What a rank does, and since when. A step costs two stores and a look at the clock."""

    doing: str = "starting"
    step: int | None = None  # the one that is made, or was made last; None before training
    beats: int = 0  # grows with all that is begun
    since: float = field(default_factory=time.monotonic)
    step_times_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def is_in_a_step(self) -> bool:
        """Whether it makes a step, other than the attempt's first, which may compile."""
        return self.doing == "step" and bool(self.step_times_s)

    def begin_step(self, step: int) -> None:
        """A step begins, and whatever was done before is over."""
        self._begin("step")
        self.step = step

    def rest(self, doing: str, step: int | None = None) -> None:
        """Something else than a step begins; `step`: how many are made."""
        self._begin(doing)
        self.step = self.step if step is None else step

    def _begin(self, doing: str) -> None:
        now = time.monotonic()
        if self.doing == "step":
            self.step_times_s.append(now - self.since)
        self.doing, self.since, self.beats = doing, now, self.beats + 1
