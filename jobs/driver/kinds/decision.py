"""A comparison that gets further seeds until a winner or a tie is decided, or until the declared number is reached."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.driver.kinds.comparison import ComparisonKind
from jobs.driver.kinds.kind import Conclusion
from jobs.driver.kinds.reports import write_report
from jobs.results.documents import Verdict
from jobs.results.finished import judge_cells
from jobs.results.tuning import judged_plan
from orchestrator.errors import SpecError
from orchestrator.identity import content_hash
from orchestrator.planning.plan import Cell, Plan, comparison_identity, load_comparison, narrow, with_job
from orchestrator.results import CellResult, CellStatus
from orchestrator.spec_files.spec import MAX_SEEDS, Comparison, Decision, Ladder, further_seeds

KIND = "decision"
DEFAULT_MAX_SEEDS = 8
FEWEST = 2  # seeds of a verdict


def load_decision(path: Path, max_seeds: int | None = None, occurrence: str | None = None) -> Plan:
    """Plans every cell that may be needed: all seeds up to `max_seeds`, else the spec's, else 8. Raises SpecError."""
    comparison = load_comparison(path, occurrence)
    job = comparison.job
    assert isinstance(job, Comparison)
    if isinstance(job, Ladder):
        message = "'recipe.budget.ladder' has several budgets, and seeds are added at one; write its amount alone"
        raise SpecError((comparison.source.problem("recipe.budget.ladder", message),))
    most = max_seeds or job.verdict.max_seeds or DEFAULT_MAX_SEEDS
    first = max(FEWEST, len(job.seed_list))
    if not first <= most <= MAX_SEEDS:
        message = (
            f"at most {most} seeds are declared, but the first look takes {first}; declare {first} to {MAX_SEEDS} of "
            "them with verdict.max_seeds or --max-seeds"
        )
        raise SpecError((comparison.source.problem("verdict.max_seeds", message),))
    rule = job.verdict.model_copy(update={"max_seeds": most})
    fields = dict(job) | {"verdict": rule, "seeds": further_seeds(job.seed_list, most)}
    plan = with_job(comparison, Decision(**fields, first=first))
    tuning = [] if job.tuning is None else [job.tuning.model_dump()]
    identity = content_hash([KIND, comparison_identity(plan), rule.model_dump(), plan.job.seed_list, *tuning])
    return replace(plan, job_id=f"{job.name}-{KIND}-{identity[:10]}")


class DecisionKind(ComparisonKind):
    """`backbone decide`."""

    entry_point = "jobs.decide"

    def next_judged(self, plan: Plan, results: Sequence[CellResult]) -> Sequence[Cell]:
        """One more seed for every backbone that may still be the best; none once it is decided or a cell failed."""
        job = plan.job
        assert isinstance(job, Decision)
        cells = judged_plan(plan, results).cells
        known = {result.cell_id: result for result in results}
        ran = [known[cell.cell_id] for cell in cells if cell.cell_id in known]
        if not ran:
            return [cell for cell in cells if cell.seed in job.seed_list[: job.first]]
        if any(result.status not in (CellStatus.SUCCEEDED, CellStatus.INFEASIBLE) for result in ran):
            return ()
        verdict = judge_cells(plan, job.verdict, results)
        seeds = job.seed_list[: len({result.seed for result in ran}) + 1]
        if verdict["outcome"] != "undecided" or len(seeds) > len(job.seed_list):
            return ()
        going_on = set(find_contenders(verdict))
        return [
            cell
            for cell in cells
            if cell.seed in seeds and cell.cell_id not in known and cell.backbone.backbone_id in going_on
        ]

    def say(self, plan: Plan, results: Sequence[CellResult]) -> str:
        """Why there are further cells, in a line."""
        job = plan.job
        assert isinstance(job, Decision)
        if plan.trials.issuperset(result.cell_id for result in results):
            return super().say(plan, results)
        return str(judge_cells(plan, job.verdict, results)["sentence"])

    def conclude(self, plan: Plan, results: Sequence[CellResult], command: str) -> Conclusion:
        """Judges the cells that ran, and writes the report."""
        return write_report(narrow(plan, {result.cell_id for result in results}), results, command, export=None)


def find_contenders(verdict: Verdict) -> list[str]:
    """Who may still be the best; who is significantly worse at this look's alpha gets no further seeds."""
    return [row["backbone_id"] for row in verdict["ranking"] if not row["worse_than_best"]]
