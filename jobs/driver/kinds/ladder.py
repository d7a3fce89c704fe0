"""A comparison at each of several budgets: a report for each, and one of how scores fall with the budget."""

import shutil
from collections.abc import Sequence

from jobs.driver.kinds.kind import Conclusion, OneRound
from jobs.driver.kinds.reports import write_report
from jobs.report.html import render_report
from jobs.results.documents import Report
from jobs.results.predictions.ladder import ladder_facts
from orchestrator.planning.plan import Plan, by_budget
from orchestrator.results import CellResult, write_json


class LadderKind(OneRound):
    """`backbone compare` of a spec with `recipe.budget.ladder`."""

    entry_point = "jobs.compare"

    def conclude(self, plan: Plan, results: Sequence[CellResult], command: str) -> Conclusion:
        """Writes the report of each budget where a spec of that budget alone would have it, then the ladder's.

        That is the report of the largest budget, with what the others came to.
        """
        known = {result.cell_id: result for result in results}
        concluded: list[tuple[Plan, Conclusion]] = []
        for one in by_budget(plan):
            own = [known[cell.cell_id] for cell in one.cells if cell.cell_id in known]
            one.folder.mkdir(parents=True, exist_ok=True)
            concluded.append((one, write_report(one, own, command, export=None, prepared_for=plan)))
        (largest, last), budget = concluded[-1], plan.job.recipe.budget
        facts = ladder_facts([(one.job.recipe.budget.amount, end.document) for one, end in concluded], budget.kind)
        of_largest: Report = last.document
        whole: Report = {**of_largest, "ladder": facts}
        whole["comparison"] = {
            **of_largest["comparison"],
            "id": plan.job_id,
            "kind": plan.kind,
            "spec": plan.job.model_dump(mode="json", by_alias=True),
        }
        write_json(plan.files.report, whole)
        plan.files.report_page.write_text(render_report(whole), encoding="utf-8")
        if largest.files.items.exists():
            shutil.copyfile(largest.files.items, plan.files.items)
        return Conclusion(
            document=whole,
            files=(plan.files.report_page, plan.files.report, *last.files[2:]),
            summary=last.summary,
            verdict=last.verdict,
            sentences=(facts["sentence"], *last.sentences),
            series=last.series,
        )
