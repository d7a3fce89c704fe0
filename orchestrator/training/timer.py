"""The clock of a budget of GPU hours: every rank reads the main rank's, and a step made again takes its old time."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.spec_files.spec import Recipe
from orchestrator.training.rate import Seen, learning_rate

UP = 1 + 1e-14  # what is read back from a rounded share must not fall short of the end


@dataclass
class StepTimer:
    """What the steps of an attempt take, in steps alone. `recorded`: what an earlier attempt told of steps, by number.

    The learning rate follows the clock. So a step that is made again gets the rate and the end that were recorded of
    it, and comes to the same bits; it costs nothing of the budget a second time.
    """

    recipe: Recipe
    recorded: Mapping[int, Mapping[str, Any]]
    workers: int
    _again: Mapping[str, Any] | None = None
    _before: float = 0.0
    _last: float | None = None  # share of the budget that the step before took
    _untold: float = 0.0  # seconds behind the reading of the step before: its update
    _began: float = 0.0

    def begin(self, step: int, before: float) -> float:
        """A step begins at a share of the budget; returns its learning rate.

        It asks with the middle of its progress, as under any budget. How long it takes is not known: as long as the
        step before, and the first one lasts all the warm-up.
        """
        self._again, self._before, self._began = self.recorded.get(step), before, time.perf_counter()
        if self._again is not None:
            return float(self._again["learning_rate"])
        optimizer = self.recipe.optimizer
        lasts = optimizer.warmup if self._last is None else self._last
        return learning_rate(optimizer, (before + min(before + lasts, 1.0)) / 2)

    def read(self) -> float:
        """Seconds since it was read in the step before, without what lay between the steps."""
        return self._untold + time.perf_counter() - self._began

    def end(self, seen: Seen, told_s: float) -> Seen:
        """The step is over; `told_s` is what the main rank read in it. Returns what is used up of the budget."""
        whole = 3600 * self.recipe.budget.amount
        if self._again is not None:
            self._untold, spent = 0.0, self._again["progress"] * whole * UP
        else:
            self._untold += time.perf_counter() - self._began - told_s
            spent = seen.device_seconds + told_s * self.workers
        self._last = min(spent / whole, 1.0) - self._before
        return replace(seen, device_seconds=spent)
