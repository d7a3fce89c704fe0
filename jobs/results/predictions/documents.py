"""What `report.json` says of a ladder of budgets, key for key."""

from typing_extensions import TypedDict


class LadderBudget(TypedDict):
    """The comparison at one budget, which has a report of its own."""

    amount: float
    id: str  # of its job
    sentence: str  # its verdict
    winner: str | None
    cells: int
    finished: int
    scores: dict[str, dict[str, float]]  # backbone -> seed -> score


class LadderPoint(TypedDict):
    """What a backbone is predicted to score at a budget beyond the ladder."""

    amount: float
    score: float  # median
    interval: tuple[float, float]


class LadderFacts(TypedDict):
    """Score against budget."""

    kind: str  # of the budgets
    budgets: list[LadderBudget]  # rising
    level: float | None  # of the intervals; None where nothing can be predicted
    predicted: dict[str, list[LadderPoint]]  # by backbone, rising; those that can be predicted
    reasons: dict[str, str]  # by backbone: why it cannot
    sentence: str  # who would lead farther on, or why nobody can say
