"""Several backbones under one recipe, and which of them wins."""

from collections.abc import Sequence

from jobs.driver.kinds.kind import Conclusion
from jobs.driver.kinds.reports import write_report
from jobs.results.tuning import describe_tuning, is_cut_off, judged_plan, next_trials
from orchestrator.planning.plan import Cell, Plan
from orchestrator.results import CellResult


class ComparisonKind:
    """`backbone compare`."""

    entry_point = "jobs.compare"

    def next_cells(self, plan: Plan, results: Sequence[CellResult]) -> Sequence[Cell]:
        """The trials, rung by rung, where learning rates are tuned; then every cell that is judged, once."""
        if trials := next_trials(plan, results):
            return trials
        if is_cut_off(plan, results):
            return ()
        return self.next_judged(plan, results)

    def next_judged(self, plan: Plan, results: Sequence[CellResult]) -> Sequence[Cell]:
        """The cells that are judged; none once they ran."""
        ran = {result.cell_id for result in results}
        cells = judged_plan(plan, results).cells
        return () if any(cell.cell_id in ran for cell in cells) else cells

    def say(self, plan: Plan, results: Sequence[CellResult]) -> str:
        """What the trials have shown."""
        return describe_tuning(plan, results)

    def conclude(self, plan: Plan, results: Sequence[CellResult], command: str) -> Conclusion:
        """Judges the cells, and writes the report."""
        return write_report(plan, results, command, export=None)
