"""A finished job's held-out items, from what its cells left in the storage."""

from collections.abc import Sequence
from pathlib import Path

from jobs.results.documents import RankedBackbone
from jobs.results.held_out.documents import HeldOutFacts
from jobs.results.held_out.facts import held_out_facts
from jobs.results.held_out.items import scored_items, write_items
from jobs.results.judging.metrics import held_out_score
from jobs.results.tuning import judged_plan
from orchestrator.data.sources.dataset import DataChangedError
from orchestrator.planning.plan import Plan
from orchestrator.results import CellResult, CellStatus
from orchestrator.training.measurement import load_item_scores


def describe_items(plan: Plan, results: Sequence[CellResult], ranking: Sequence[RankedBackbone]) -> HeldOutFacts | None:
    """Writes `items.parquet` of the job and returns what the report shows of it; None where no cell finished.

    Held-out data that cannot be read again as it was planned is said in the facts: the verdict does not need it.
    """
    chosen = {cell.cell_id for cell in judged_plan(plan, results).cells}
    finished = [one for one in results if one.cell_id in chosen and one.status is CellStatus.SUCCEEDED]
    if not finished:
        return None
    score = held_out_score("bits_per_byte" if plan.job.rule is None else plan.job.rule.metric)
    try:
        items = scored_items(
            plan.validation, [(one.backbone_id, load_item_scores(Path(one.folder))) for one in finished]
        )
        if not len(items.places):
            return None
        write_items(plan.files.items, items)
        return held_out_facts(items, score, [row["backbone_id"] for row in ranking])
    except (DataChangedError, OSError) as error:
        note = f"The held-out data could not be read again: {error}."
        return {"leading": [], "difference": None, "slices": [], "apart": [], "hardest": [], "note": note}
