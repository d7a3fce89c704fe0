"""Success on the way: the policy plays its episodes at every share of the budget, between two steps. Collective.

What is trained is bit for bit the same without it: the policy draws nothing at random, every step seeds its own
generator, and compiled layers run as they are written meanwhile, so that no shape of a rollout changes their code.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from orchestrator.cell_job import CellJob, RolloutRequest
from orchestrator.environments.fleet import Fleet
from orchestrator.results import RolloutPoint
from orchestrator.rollouts.play import LANES, OnMesh, play
from orchestrator.rollouts.policies import BackbonePolicy, seeds_of
from orchestrator.rollouts.results import PREFIX, TRAINED, collect, figures
from orchestrator.tracking.spool import EntryKind, read_spool
from orchestrator.training.rate import marks_passed
from orchestrator.training.run import CellRun
from orchestrator.training.step import CONTINUE


class _Interrupted(Exception):
    """The main rank was told to stop; carries the order. All ranks raise it."""

    def __init__(self, order: int) -> None:
        super().__init__(order)
        self.order = order


def curve_of(run: CellRun, asked: RolloutRequest) -> Callable[[CellRun], int]:
    """An interlude that plays what is due; marks that an earlier attempt played are not played again. Collective."""
    return partial(_play_due, asked, run.mesh.from_main(_played(run.job, asked) if run.mesh.is_main else set()))


def record(run: CellRun, asked: RolloutRequest, found: Mapping[str, float]) -> None:
    """Notes a point of the curve, at the position of the run: some figures of its episodes."""
    seen = run.position.seen
    point = RolloutPoint(
        step=seen.steps,
        progress=run.share_of(run.position),
        bytes_seen=seen.bytes,
        tokens_seen=seen.tokens,
        train_time_s=run.position.train_time_s,
        success=found[f"{PREFIX}success"],
        total_reward=found[f"{PREFIX}return"],
        length=found[f"{PREFIX}length"],
        digest=asked.digest,
    )
    run.recorder.rollouts(point)


def fleet_of(job: CellJob, asked: RolloutRequest) -> Fleet:
    """Simulators beside a rank."""
    return Fleet(asked.environment, min(job.cell.placement.cpus_per_worker, LANES))


@contextmanager
def acting(run: CellRun, asked: RolloutRequest) -> Iterator[BackbonePolicy]:
    """The backbone that is trained, as it is now, for as long as the context lasts; afterwards it may train on.

    Compiled layers run as they are written: episodes have batches of many shapes, each of which would be compiled.
    """
    assert run.job.prepared is not None and run.job.prepared.actions is not None
    backbone, spec, learned = run.trainee.backbone, run.job.cell.backbone, run.job.prepared.actions
    backbone.llm.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield BackbonePolicy(backbone, spec, learned.statistics, run.mesh.device, learned.chunk, asked.execute)
    finally:
        backbone.llm.train()


def _played(job: CellJob, asked: RolloutRequest) -> set[int]:
    """The marks at which these episodes were played."""
    points = (entry.fields for entry in read_spool(job.spool_folder) if entry.kind is EntryKind.ROLLOUTS)
    return {marks_passed(point["progress"], asked.every) for point in points if point["digest"] == asked.digest}


def _play_due(asked: RolloutRequest, played: set[int], run: CellRun) -> int:
    """Plays unless the newest mark's episodes were; the last mark's are those of the stage that rolls out."""
    share, step = run.share_of(run.position), run.position.seen.steps
    mark = marks_passed(share, asked.every)
    if share >= 1 or mark in played:
        return CONTINUE
    run.recorder.phase("rolling out", step=step)
    beat(run)
    gang = OnMesh(run.mesh, partial(_heed, run))
    try:
        with fleet_of(run.job, asked) as fleet, acting(run, asked) as policy:
            episodes = play(policy, fleet, seeds_of(asked), gang, asked.max_steps)
    except _Interrupted as interrupted:
        return interrupted.order  # the next attempt plays them
    played.add(mark)
    record(run, asked, figures(collect(asked, {TRAINED: episodes})))
    run.recorder.phase("training", step=step)
    return CONTINUE


def beat(run: CellRun) -> None:
    """Tells the watch of this rank, before each action: all of them may take longer than anything else may."""
    run.pulse.rest("rolling out", run.position.seen.steps)


def _heed(run: CellRun) -> None:
    beat(run)
    if (order := run.mesh.from_main(run.order)) != CONTINUE:
        raise _Interrupted(order)
