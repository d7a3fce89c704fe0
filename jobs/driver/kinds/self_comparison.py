"""A backbone against itself: two groups of seeds under two labels, to see what noise alone would call a win."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.driver.kinds.comparison import ComparisonKind
from jobs.driver.kinds.kind import Conclusion
from jobs.driver.kinds.reports import write_report
from orchestrator.errors import SpecError
from orchestrator.identity import content_hash
from orchestrator.planning.plan import Plan, by_budget, load_comparison, narrow, with_job
from orchestrator.results import CellResult
from orchestrator.spec_files.spec import Comparison, SelfComparison, further_seeds

FEWEST = 2  # seeds of a label


def load_self_comparison(path: Path, backbone: str | None = None) -> Plan:
    """Plans one backbone of the spec, else its first, with twice the seeds, at the largest budget. Raises SpecError."""
    comparison = by_budget(load_comparison(path))[-1]
    job = comparison.job
    assert isinstance(job, Comparison)
    chosen = backbone or job.backbones[0]
    names = dict(zip(job.backbones, (spec.backbone_id for spec in comparison.backbones), strict=True))
    if chosen not in names:
        message = f"--backbone {chosen} is not one of them; choose {', '.join(names)}"
        raise SpecError((comparison.source.problem("backbones", message),))
    seeds = further_seeds(job.seed_list, 2 * max(FEWEST, len(job.seed_list)))
    rule = job.verdict.model_copy(update={"max_seeds": None})
    fields = dict(job) | {"backbones": (chosen,), "seeds": seeds, "verdict": rule}
    own = narrow(comparison, {cell.cell_id for cell in comparison.cells if cell.backbone.backbone_id == names[chosen]})
    plan = with_job(own, SelfComparison(**fields))
    identity = content_hash([SelfComparison.kind, [cell.cell_id for cell in plan.cells], rule.model_dump()])
    return replace(plan, job_id=f"{job.name}-a-a-{identity[:10]}")


def labelled(plan: Plan, results: Sequence[CellResult]) -> list[CellResult]:
    """The results of the first half of the seeds as A, those of the others as B; trials are of both."""
    seeds = plan.job.seed_list
    first, trials = seeds[: len(seeds) // 2], plan.trials
    return [
        result
        if result.cell_id in trials
        else replace(result, backbone_id=f"{result.backbone_id} {'A' if result.seed in first else 'B'}")
        for result in results
    ]


class SelfComparisonKind(ComparisonKind):
    """`backbone compare --a-a`."""

    def conclude(self, plan: Plan, results: Sequence[CellResult], command: str) -> Conclusion:
        """Judges the two labels, and writes the report."""
        return write_report(plan, labelled(plan, results), command, export=None)
