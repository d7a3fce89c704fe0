"""The budget and the learning rate: pure functions of progress. No torch, ray, mlflow."""

import math
from dataclasses import dataclass

from orchestrator.data.feed import StepWork
from orchestrator.spec_files.spec import Budget, Optimizer


@dataclass(frozen=True)
class Seen:
    """What a run has consumed so far."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    bytes: int = 0
    device_seconds: float = 0.0  # in steps, times workers; counted where the budget is of time

    def plus(self, work: StepWork) -> "Seen":
        return Seen(
            self.steps + 1,
            self.examples + work.examples,
            self.tokens + work.tokens,
            self.bytes + work.learnable_bytes,
            self.device_seconds,
        )


def progress(seen: Seen, budget: Budget, flops_per_token: float) -> float:
    """Share of the budget that is used up, 0..1."""
    spent = {
        "bytes": seen.bytes,
        "tokens": seen.tokens,
        "steps": seen.steps,
        "flops": seen.tokens * flops_per_token,
        "gpu_hours": seen.device_seconds / 3600,
    }[budget.kind]
    return min(spent / budget.amount, 1.0)


def learning_rate(optimizer: Optimizer, share: float) -> float:
    """Linear warm-up from 0, then the schedule down to 0 at the end of the budget; `share` is progress, 0..1.

    A step asks with the middle of its own progress, so that neither the first nor the last step has rate 0.
    """
    if share < optimizer.warmup:
        return optimizer.learning_rate * share / optimizer.warmup
    rest = (share - optimizer.warmup) / (1 - optimizer.warmup)
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    if optimizer.schedule == "linear":
        return optimizer.learning_rate * (1 - rest)
    return optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * rest))


def passed_a_mark(before: float, after: float, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, after]: the moment to evaluate or to checkpoint."""
    return marks_passed(after, every) > marks_passed(before, every)


def marks_passed(share: float, every: float) -> int:
    """How many multiples of `every` lie in (0, share]."""
    slack = 1e-9  # 0.1 + 0.2 must reach the mark 0.3
    return math.floor(share / every + slack)
