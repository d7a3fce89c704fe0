"""Success in rollouts on the way: what a report draws of it, and what MLflow is told once."""

from pathlib import Path

from jobs.results.rollouts import success_curve
from jobs.tracking.runs import take_result
from orchestrator.cell_job import RolloutRequest
from orchestrator.layout import CellFolder
from orchestrator.results import CellResult, CellStatus, Measurement, RolloutPoint
from orchestrator.spec_files.spec import Rollouts
from orchestrator.tracking.run import TrackedRun
from orchestrator.tracking.spool import SpoolWriter

ASKED = RolloutRequest("minigrid:BabyAI-GoToLocal-v0", 50, 0)
EARLIER = RolloutRequest("minigrid:BabyAI-GoToLocal-v0", 20, 0)


def rolled_out(folder: Path) -> CellResult:
    """A cell that was asked for other episodes first."""
    writer = SpoolWriter(CellFolder(folder).spool, attempt=1)
    for request, marks in ((EARLIER, (0, 4, 8)), (ASKED, (8, 4))):
        for step in marks:
            writer.rollouts(RolloutPoint(step, step / 8, 0, 0, 0.0, step / 10, 0.0, 5.0, request.digest))
    writer.close()
    metrics = {"rollout/success": 0.8, "rollout/success_low": 0.6, "val_bits_per_byte": 1.0}
    measurement = Measurement(dict(metrics), [], {}, {"rollouts": ASKED.digest}, "items.parquet")
    return CellResult("cell", "tiny", 0, CellStatus.SUCCEEDED, measurement=measurement, folder=str(folder))


def test_a_curve_has_the_points_of_the_episodes_that_are_asked_for_in_order(tmp_path: Path) -> None:
    assert success_curve(rolled_out(tmp_path)) == [(0.5, 0.4), (1.0, 0.8)]


def test_what_is_sent_with_its_step_is_no_figure_of_the_end_as_well(tmp_path: Path) -> None:
    run = TrackedRun("cell", tmp_path / "run.json", {}, {})
    take_result(run, rolled_out(tmp_path))
    assert run.summary == {"rollout/success_low": 0.6}


def test_what_was_measured_counts_where_an_attempt_that_died_had_played_other_episodes(tmp_path: Path) -> None:
    result = rolled_out(tmp_path)
    assert result.measurement is not None
    result.measurement.metrics["rollout/success"] = 0.9
    run = TrackedRun("cell", tmp_path / "run.json", {}, {})
    take_result(run, result)
    assert run.summary == {"rollout/success": 0.9, "rollout/success_low": 0.6}
    assert success_curve(result) == [(0.5, 0.4), (1.0, 0.9)]


def test_a_curve_is_no_reason_to_play_the_final_episodes_anew() -> None:
    curved = RolloutRequest(ASKED.environment, 50, 0, every=0.1)
    assert curved.digest == ASKED.digest != EARLIER.digest
    assert RolloutRequest(ASKED.environment, 50, 0, max_steps=5).digest != ASKED.digest
    plain, at_the_end = ({"environment": ASKED.environment} | more for more in ({}, {"every": 1.0}))
    assert Rollouts(**plain).model_dump() == Rollouts(**at_the_end).model_dump()
    assert "every" not in Rollouts(**plain).model_dump()
