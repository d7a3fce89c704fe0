"""What a person sees of a cell while it runs, from its spool."""

from pathlib import Path
from typing import Any

from small_spec import write_small_spec

from jobs.driver.progress import CellView
from orchestrator.layout import CellFolder
from orchestrator.planning.plan import load_comparison
from orchestrator.results import EvaluationPoint, StepMetrics
from orchestrator.tracking.spool import SpoolWriter


def step(number: int) -> StepMetrics:
    fields: dict[str, Any] = dict.fromkeys(StepMetrics.__dataclass_fields__, 1.0)
    return StepMetrics(**{**fields, "step": number})


def test_a_score_says_its_step_once_others_were_made_and_proofs_are_counted(tmp_path: Path) -> None:
    plan = load_comparison(write_small_spec(tmp_path))
    view, writer = CellView(plan.cells[0], tmp_path), SpoolWriter(CellFolder(tmp_path).spool, 1)
    view.refresh()
    assert view.doing == "starting"
    writer.phase("certifying")
    view.refresh()
    assert view.doing == "certifying: proofs before the first step"
    for name in ("prompt", "packing"):
        writer.phase("certifying", proof={"name": name})
    view.refresh()
    assert view.doing == "certifying, 2 proofs made"
    writer.phase("training", step=0)
    writer.step(step(5))
    writer.evaluation(EvaluationPoint(5, 0.5, 10, 10, 1.0, 3.25, 1.0))
    view.refresh()
    assert (view.doing, view.score(".3f")) == ("training", "3.250")
    writer.step(step(6))
    view.refresh()
    assert view.score(".3f") == "3.250 at step 5"
