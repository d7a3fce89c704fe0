"""What a plan asks of the queue."""

from collections.abc import Sequence

from jobs.cluster.ray_cluster import demand_of
from jobs.driver.names import default_owner
from jobs.queue.rows import CellRequest, JobRequest
from orchestrator.identity import backbone_identity, content_hash
from orchestrator.planning.plan import Cell, Plan


def job_request(plan: Plan, cells: Sequence[Cell]) -> JobRequest:
    """What a plan asks of the queue, for those of its cells that are not finished."""
    policy = plan.job.policy
    return JobRequest(
        job_id=plan.job_id,
        kind=plan.kind,
        owner=default_owner(),
        priority=policy.priority,
        preemptible=policy.preemptible,
        storage=str(plan.storage),
        cells=tuple(_cell_request(cell, policy.timeout_s) for cell in cells),
        gpu_hours=policy.gpu_hours,
        hours=policy.hours,
        in_turn=plan.job.in_turn,
    )


def _cell_request(cell: Cell, limit_s: float) -> CellRequest:
    recipe = cell.recipe.model_dump(mode="json")
    placement = cell.placement.model_dump(mode="json")
    likeness = content_hash([backbone_identity(cell.backbone), recipe, placement, cell.train_digest])
    return CellRequest(cell.cell_id, demand_of(cell.placement, cell.worlds), limit_s, likeness)
