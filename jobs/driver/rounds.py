"""The rounds of a launch: which cells run next, of those that the plan holds. Only `decide` has more than one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.driver.cell_jobs import find_finished
from jobs.driver.kinds.table import KINDS
from orchestrator.planning.plan import Cell, Plan
from orchestrator.results import CellResult


@dataclass
class Rounds:
    """What ran so far; `results` holds also what was finished before, as soon as its round has come."""

    plan: Plan
    infeasible: Mapping[str, CellResult]
    results: dict[str, CellResult] = field(default_factory=dict)

    @property
    def ordered(self) -> list[CellResult]:
        """In the order of the plan."""
        return [self.results[cell.cell_id] for cell in self.plan.cells if cell.cell_id in self.results]

    def take(self, results: Iterable[CellResult]) -> None:
        """What cells of this round came to."""
        self.results |= {result.cell_id: result for result in results}

    def advance(self) -> list[Cell]:
        """The cells that have to run next; none when the job is done. Rounds that are finished are passed over."""
        while cells := KINDS[self.plan.kind].next_cells(self.plan, self.ordered):
            known = {cell.cell_id: self._find(cell) for cell in cells}
            self.take(result for result in known.values() if result is not None)
            if to_run := [cell for cell in cells if known[cell.cell_id] is None]:
                return to_run
        return []

    def reason(self, cells: Sequence[Cell]) -> str:
        """Why these cells follow those that ran, in a line."""
        said = KINDS[self.plan.kind].say(self.plan, self.ordered)
        names = ", ".join(dict.fromkeys(cell.backbone.backbone_id for cell in cells))
        if cells[0].rung is not None:
            what = f"the {len(cells)} best trials go on, of {names}"
        else:
            seeds = ", ".join(dict.fromkeys(str(cell.seed) for cell in cells))
            what = f"seed {seeds} of {names}"
        return f"{said} Next: {what}".strip()

    def _find(self, cell: Cell) -> CellResult | None:
        return self.infeasible.get(cell.cell_id) or find_finished(self.plan, cell)


def ids_of(cells: Iterable[Cell]) -> list[str]:
    """Their ids."""
    return [cell.cell_id for cell in cells]
