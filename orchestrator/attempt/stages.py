"""The stages of a cell: certify, load, train, evaluate, tasks, rollouts, export, measure. New ones join `STAGES`.

Collective: every rank of the process group runs the same stages. Knows nothing of Ray or MLflow: it needs a process
group, a device and a folder that all ranks share.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from orchestrator.cell_job import CellJob
from orchestrator.certificate.gang import require_certificate
from orchestrator.faults import Faults
from orchestrator.hardware import forget_peak_memory
from orchestrator.parallel import Mesh
from orchestrator.rollouts import stage as rollouts
from orchestrator.tasks import generation
from orchestrator.tasks import stage as tasks
from orchestrator.tracking.recorder import open_recorder
from orchestrator.tracking.system import sampling
from orchestrator.training import stages
from orchestrator.training.pulse import Pulse
from orchestrator.training.run import CellRun
from orchestrator.training.step import STOP


@dataclass(frozen=True)
class Stage:
    """One part of an attempt: whether a job has it, and what it does. A name for people."""

    name: str
    applies: Callable[[CellJob], bool]
    run: Callable[[CellRun], None]


def certify(run: CellRun) -> None:
    """Demands the backbone's certificate, made by these ranks where none is kept.

    Raises CertificateError, and CancelledError between two proofs.
    """
    assert run.job.certificate is not None
    run.recorder.phase("certifying")
    require_certificate(run.job.certificate, run.mesh, run.job.folder, run.recorder, lambda: run.order == STOP)


def _trains(job: CellJob) -> bool:
    return job.trains


def _has_tasks(job: CellJob) -> bool:
    return job.tasks is not None


def _writes_answers(job: CellJob) -> bool:
    return job.trains and job.cell.recipe.evaluate.generation is not None


def _has_actions(job: CellJob) -> bool:
    return job.prepared is not None and job.prepared.actions is not None


def _has_rollouts(job: CellJob) -> bool:
    return job.rollouts is not None


STAGES = (
    Stage("certify", lambda job: job.certificate is not None, certify),
    Stage("find tasks", _has_tasks, tasks.find),
    Stage("find environment", _has_rollouts, rollouts.find),
    Stage("load", _trains, stages.load),
    Stage("train", _trains, stages.train),
    Stage("evaluate", _trains, stages.conclude),
    Stage("ask tasks", _has_tasks, tasks.ask),
    Stage("write answers", _writes_answers, generation.write_answers),
    Stage("evaluate actions", _has_actions, stages.measure_actions),
    Stage("roll out", _has_rollouts, rollouts.roll_out),
    Stage("export", lambda job: job.export is not None, stages.export),
    Stage("measure", _trains, stages.record),
)


def run_cell(job: CellJob, device: torch.device, pulse: Pulse | None = None) -> None:
    """Runs every stage that the job has, resuming from its newest valid checkpoint; `pulse` shows how it gets on.

    Writes proofs, steps and evaluations to the spool, checkpoints beside it, and at the end the measurement. Raises
    CertificateError, before it trains, where a certificate is asked for and a proof fails; DivergedError,
    CancelledError (after a checkpoint), TimedOutError (after a checkpoint) or ShardingError.
    """
    forget_peak_memory(device)
    mesh = Mesh.build(device, job.cell.placement.parallel)
    mesh = replace(mesh, faults=Faults.of(job.faults, mesh.rank, job.attempt))
    samples = sampling(job.spool_folder, job.trains and mesh.is_first_on_node)
    with closing(open_recorder(job.spool_folder, job.attempt, mesh.is_main)) as recorder, samples:
        run = CellRun(job, mesh, recorder, pulse or Pulse())
        for stage in STAGES:
            if stage.applies(job):
                stage.run(run)
