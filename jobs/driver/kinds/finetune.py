"""One backbone, trained and exported."""

from collections.abc import Sequence

from jobs.driver.cell_jobs import find_finished_export
from jobs.driver.kinds.kind import Conclusion, OneRound
from jobs.driver.kinds.reports import write_report
from orchestrator.planning.plan import Plan
from orchestrator.results import CellResult


class FinetuneKind(OneRound):
    """`backbone finetune`."""

    entry_point = "jobs.finetune"

    def conclude(self, plan: Plan, results: Sequence[CellResult], command: str) -> Conclusion:
        """Writes the report, which names the export."""
        return write_report(plan, results, command, find_finished_export(plan))
