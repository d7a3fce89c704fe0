"""Several backbones under one recipe, and which of them wins."""

from collections.abc import Sequence

from jobs.driver.kinds.kind import Conclusion, OneRound
from jobs.driver.kinds.reports import write_report
from orchestrator.planning.plan import Plan
from orchestrator.results import CellResult


class ComparisonKind(OneRound):
    """`backbone compare`."""

    entry_point = "jobs.compare"

    def conclude(self, plan: Plan, results: Sequence[CellResult], command: str) -> Conclusion:
        """Judges the cells, and writes the report."""
        return write_report(plan, results, command, export=None)
