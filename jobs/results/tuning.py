"""Equal tuning: which trials come next, which learning rate each backbone gets, and what the report says of both.

Successive halving (Jamieson and Talwalkar 2016) for each backbone by itself: what one gets never depends on another.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import variance

from jobs.formats import listed, significant
from jobs.results.documents import Trial, TunedBackbone, TuningFacts
from jobs.results.judging.choice_noise import Choice
from orchestrator.planning.plan import Cell, Plan, narrow
from orchestrator.planning.tuning import spend
from orchestrator.results import CellResult, CellStatus
from orchestrator.spec_files.spec import Tuning

SCORE = "val_bits_per_byte"
FEWEST_STEPS = 10  # of a trial in the last rung, below which its score says little
ENDED = (CellStatus.SUCCEEDED, CellStatus.DIVERGED, CellStatus.OUT_OF_MEMORY, CellStatus.INFEASIBLE)


@dataclass(frozen=True)
class Trials:
    """What the trials of a plan came to so far."""

    plan: Plan
    tuning: Tuning
    results: dict[str, CellResult]  # by cell, of trials

    @property
    def is_cut_off(self) -> bool:
        """Whether one of them has yet to end."""
        return any(result.status not in ENDED for result in self.results.values())

    def next_rung(self) -> list[Cell]:
        """The trials that come next; none once every backbone is through, or where one of them was cut off.

        All backbones are in the same rung: none is trained with what a later one of another would need.
        """
        if self.is_cut_off:
            return []
        for rung in range(len(self.tuning.rung_sizes)):
            wanted = [cell for spec in self.plan.backbones for cell in self._of(spec.backbone_id, rung)]
            if waiting := [cell for cell in wanted if cell.cell_id not in self.results]:
                return waiting
        return []

    def best(self, backbone_id: str) -> float | None:
        """The learning rate of the best trial in the last rung; None until that is known, or where all diverged."""
        last = self._of(backbone_id, len(self.tuning.rung_sizes) - 1)
        if not last or any(cell.cell_id not in self.results for cell in last):
            return None
        ranked = self._ranked(last)
        return ranked[0].learning_rate if ranked else None

    def gap(self, backbone_id: str) -> float:
        """How much worse the second-best trial of the last rung is; infinite where there is none."""
        scores = [self.score(cell) for cell in self._ranked(self._of(backbone_id, len(self.tuning.rung_sizes) - 1))]
        known = [score for score in scores[:2] if score is not None]
        return known[1] - known[0] if len(known) > 1 else inf

    def score(self, cell: Cell) -> float | None:
        """Bits per byte on the tune split; None without."""
        result = self.results.get(cell.cell_id)
        if result is None or result.status is not CellStatus.SUCCEEDED or result.measurement is None:
            return None
        return result.measurement.metrics[SCORE]

    def trials(self, backbone_id: str) -> list[Cell]:
        """All that it may get, by rung and learning rate."""
        return [cell for cell in self.plan.cells if cell.is_trial and cell.backbone.backbone_id == backbone_id]

    def _of(self, backbone_id: str, rung: int) -> list[Cell]:
        """Its trials in a rung, as far as the one before says which; fewer where others diverged."""
        cells = [cell for cell in self.trials(backbone_id) if cell.rung == rung]
        if rung == 0:
            return cells
        before = self._ranked(self._of(backbone_id, rung - 1))[: self.tuning.rung_sizes[rung]]
        rates = {cell.learning_rate for cell in before}
        return [cell for cell in cells if cell.learning_rate in rates]

    def _ranked(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those that have a score, the best first; of equal ones the smaller learning rate."""
        scored = [(score, cell.learning_rate, cell) for cell in cells if (score := self.score(cell)) is not None]
        return [cell for _, _, cell in sorted(scored, key=lambda one: one[:2])]


def trials_of(plan: Plan, results: Sequence[CellResult]) -> Trials | None:
    """None where nothing is tuned."""
    if plan.job.tuned_by is None:
        return None
    ids = plan.trials
    return Trials(plan, plan.job.tuned_by, {one.cell_id: one for one in results if one.cell_id in ids})


def judged_plan(plan: Plan, results: Sequence[CellResult]) -> Plan:
    """The plan with the cells that are judged: those at the learning rates that were chosen."""
    trials = trials_of(plan, results)
    if trials is None:
        return plan
    best = {spec.backbone_id: trials.best(spec.backbone_id) for spec in plan.backbones}
    chosen = [
        cell.cell_id
        for cell in plan.cells
        if not cell.is_trial and cell.learning_rate == best[cell.backbone.backbone_id]
    ]
    return narrow(plan, chosen)


def next_trials(plan: Plan, results: Sequence[CellResult]) -> list[Cell]:
    """The trials that come before anything else; none once the learning rates are known."""
    trials = trials_of(plan, results)
    return [] if trials is None else trials.next_rung()


def is_cut_off(plan: Plan, results: Sequence[CellResult]) -> bool:
    """Whether a trial has yet to end: nothing is trained at a learning rate that might not be the best."""
    trials = trials_of(plan, results)
    return trials is not None and trials.is_cut_off


def is_excused(plan: Plan, results: Sequence[CellResult], result: CellResult) -> bool:
    """Whether a cell's failure is an answer: a trial that diverged, of a backbone whose others did not."""
    if result.status is not CellStatus.DIVERGED:
        return False
    trials = trials_of(plan, results)
    if trials is None or result.cell_id not in trials.results:
        return False
    return trials.best(_backbone_of(plan, result)) is not None


def choice_of(plan: Plan, results: Sequence[CellResult]) -> Choice | None:
    """What is known of the noise in the choice of learning rates; None where none were chosen.

    How much seeds change a trial's score is seen on the judged runs' curves, at the trials' share of the budget.
    """
    trials = trials_of(plan, results)
    if trials is None:
        return None
    scores: dict[str, list[float]] = {}
    for result in results:
        if result.cell_id not in trials.results and result.measurement is not None:
            points = result.measurement.evaluations
            share = trials.tuning.budget_fraction
            early = next((point for point in points if point.step and (point.progress or 0.0) >= share), None)
            if early is not None and early.val_bits_per_byte is not None:
                scores.setdefault(result.backbone_id, []).append(early.val_bits_per_byte)
    squares = sum((len(one) - 1) * variance(one) for one in scores.values() if len(one) > 1)
    df = sum(len(one) - 1 for one in scores.values())
    gaps = {spec.backbone_id: trials.gap(spec.backbone_id) for spec in plan.backbones}
    return Choice(gaps, squares / df if df else 0.0)


def describe_tuning(plan: Plan, results: Sequence[CellResult]) -> str:
    """What the trials have shown, in a sentence; empty where nothing is tuned or known."""
    trials = trials_of(plan, results)
    best = [] if trials is None else [(one, trials.best(one)) for one in (spec.backbone_id for spec in plan.backbones)]
    found = [f"{backbone_id} {rate:g}" for backbone_id, rate in best if rate is not None]
    facts = tuning_facts(plan, results) if found else None
    return " ".join([f"Best learning rates: {', '.join(found)}.", *doubts_of(facts)]) if facts is not None else ""


def tuning_facts(plan: Plan, results: Sequence[CellResult]) -> TuningFacts | None:
    """What the report shows of it; None where nothing was tuned."""
    trials = trials_of(plan, results)
    if trials is None or plan.tune is None:
        return None
    tuning, recipe = trials.tuning, plan.job.recipe
    tried = {spec.backbone_id: _tried(trials, spec.backbone_id) for spec in plan.backbones}
    tells_edges = _fewest_steps(tried.values(), len(tuning.rung_sizes)) >= FEWEST_STEPS
    return {
        "rates": list(tuning.rates),
        "rungs": [
            {"trials": size, "amount": tuning.budget(recipe.budget, rung).amount}
            for rung, size in enumerate(tuning.rung_sizes)
        ],
        "budget_kind": recipe.budget.kind,
        "spend": spend(recipe, tuning),
        "examples": len(plan.tune.examples),
        "learnable_bytes": plan.tune.learnable_bytes,
        "groups": plan.tune.groups,
        "backbones": {name: _tuned(trials, name, own, tells_edges) for name, own in tried.items()},
    }


def sentence_of(facts: TuningFacts) -> str:
    """For the verdict's own sentence: at which learning rates it holds."""
    rates = [f"{name} {one['best']:g}" for name, one in facts["backbones"].items() if one["best"] is not None]
    return f" Tuned: each at the best of {len(facts['rates'])} learning rates: {', '.join(rates)}."


def notes_of(facts: TuningFacts) -> list[str]:
    """What a reader has to know of it: the spend, and which best rates lie at an edge of the grid."""
    rungs = [f"{one['trials']} of {significant(one['amount'])} {facts['budget_kind']}" for one in facts["rungs"]]
    notes = [
        f"Each backbone had the same trials, {listed(rungs)} ({100 * facts['spend']:.0f} % of a run's budget), scored "
        f"on {facts['examples']} training examples that no trial learned from ({where_from(facts)}), not on what is "
        "judged here."
    ]
    return notes + doubts_of(facts)


def doubts_of(facts: TuningFacts) -> list[str]:
    """Why the best learning rates may not be the best: trials that were too short, and best ones at an edge."""
    fewest = _fewest_steps((one["trials"] for one in facts["backbones"].values()), len(facts["rungs"]))
    if fewest < FEWEST_STEPS:
        return [
            f"Trials of the last rung had as few as {fewest:g} optimizer steps, which tell little of a whole run and "
            "favour large learning rates: raise tuning.budget_fraction, or the budget."
        ]
    notes = []
    for side, rate in (("smallest", min(facts["rates"])), ("largest", max(facts["rates"]))):
        names = [name for name, one in facts["backbones"].items() if one["best"] == rate]
        if names:
            beyond = facts["backbones"][names[0]]["edge"]
            notes.append(
                f"The best learning rate of {listed(names)}, {rate:g}, is the {side} that was tried: add {beyond:g} to "
                "tuning.learning_rate; only what is new is trained, and the verdict after it is another look."
            )
    return notes


def where_from(facts: TuningFacts) -> str:
    """How the tune split was drawn, in words."""
    groups = facts["groups"]
    if not groups:
        return "drawn one by one: no whole source group is small enough"
    return "one whole source group" if groups == 1 else f"{groups} whole source groups"


def _tried(trials: Trials, backbone_id: str) -> list[Trial]:
    ran = [cell for cell in trials.trials(backbone_id) if cell.cell_id in trials.results]
    return [_trial(trials, cell) for cell in ran]


def _tuned(trials: Trials, backbone_id: str, tried: list[Trial], tells_edges: bool) -> TunedBackbone:
    best = trials.best(backbone_id)
    return {"best": best, "edge": _beyond(trials.tuning.rates, best) if tells_edges else None, "trials": tried}


def _fewest_steps(tried: Iterable[Sequence[Trial]], rungs: int) -> float:
    """Optimizer steps of the shortest trial in the last rung; infinite while none is over."""
    steps = (trial.get("steps") for trials in tried for trial in trials if trial["rung"] == rungs)
    return min((number for number in steps if number is not None), default=inf)


def _trial(trials: Trials, cell: Cell) -> Trial:
    result = trials.results[cell.cell_id]
    return {
        "cell_id": cell.cell_id,
        "rung": (cell.rung or 0) + 1,
        "learning_rate": cell.learning_rate,
        "status": str(result.status),
        "failure": result.failure,
        "score": trials.score(cell),
        "steps": None if result.measurement is None else result.measurement.metrics.get("steps"),
        "folder": result.folder,
    }


def _beyond(rates: Sequence[float], best: float | None) -> float | None:
    """Which learning rate to add where the best is the smallest or largest tried: as far beyond as its neighbour is."""
    if best is None or rates[0] < best < rates[-1]:
        return None
    factor = best / (rates[1] if best == rates[0] else rates[-2])
    return float(f"{best * factor:.2g}")


def _backbone_of(plan: Plan, result: CellResult) -> str:
    return next(cell.backbone.backbone_id for cell in plan.cells if cell.cell_id == result.cell_id)
