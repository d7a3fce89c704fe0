"""The stages of a cell from loading to its measurement. Each is one function of the run; all of them are collective.

Over 300 lines: the stages, in the order in which a cell goes through them.
"""

import math
import os
import time
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch

from orchestrator.data.feed import StepWork
from orchestrator.errors import CancelledError, DivergedError, TimedOutError
from orchestrator.hardware import device_name, peak_memory_gib
from orchestrator.layout import CellFolder
from orchestrator.planning.sizes.chunks import positions_per_chunk
from orchestrator.results import EvaluationPoint, StepMetrics, read_json, write_json
from orchestrator.training.ahead import PreparedSteps
from orchestrator.training.checkpoints.checkpoint import SCORE, Checkpoint, find_latest, load_checkpoint, state_bytes
from orchestrator.training.checkpoints.resumption import Remade, find_conditions, find_remade, order_after, prove_order
from orchestrator.training.checkpoints.saver import CheckpointSaver, require_room
from orchestrator.training.contract import find_contract
from orchestrator.training.evaluation import evaluate, evaluate_actions
from orchestrator.training.export import export_model
from orchestrator.training.loss import all_logits, place, token_nats
from orchestrator.training.measurement import ItemScores, bits_per_byte, measure, save_item_scores, write_measurement
from orchestrator.training.rate import Seen, learning_rate, passed_a_mark
from orchestrator.training.run import CellRun, Position
from orchestrator.training.step import CONTINUE, TIMED_OUT, StepOutcome, train_step
from orchestrator.training.timer import StepTimer
from orchestrator.training.trainee import build_trainee


def load(run: CellRun) -> None:
    """Builds the trainee, and fills it from the newest checkpoint that is valid.

    Raises ResumeError when that one was on its way through other rows.
    """
    run.recorder.phase("loading", load_average=os.getloadavg()[0], cores=os.cpu_count())
    run.trainee = trainee = build_trainee(run.job, run.mesh)
    checkpoint = _find_checkpoint(run)
    if checkpoint is not None:
        load_checkpoint(checkpoint, trainee.backbone, trainee.optimizers)
        trainer = {key: value for key, value in checkpoint.trainer.items() if key != SCORE}
        run.position = Position(**{**trainer, "seen": Seen(**trainer["seen"])})
        compared = prove_order(trainee.feed, run.position.order, checkpoint.step, checkpoint.folder)
        run.recorder.phase("resumed", step=checkpoint.step, compared=compared)
    run.conditions = find_conditions(run.mesh, run.job.cell.micro_batch_size)
    made = (run.job.spool_folder, run.position.seen.steps, run.conditions, run.job.cell.recipe.precision)
    run.remade = run.mesh.from_main(find_remade(*made) if run.mesh.is_main else Remade())


def train(run: CellRun) -> None:
    """Trains to the end of the budget, with evaluations and checkpoints on the way.

    Raises DivergedError, CancelledError (after a checkpoint), TimedOutError (after a checkpoint), ResumeError when a
    step that is made again differs from what was recorded of it, and CheckpointError, before the first step where
    checkpoints would have no room.
    """
    trainee = run.trainee
    data_time_s = trainee.load_time_s - trainee.model_time_s
    times = {"model_s": trainee.model_time_s, "data_s": data_time_s}
    run.recorder.phase("training", step=run.position.seen.steps, conditions=run.conditions, **times)
    with closing(_open_saver(run)) as saver:
        _train(run, saver)


def _train(run: CellRun, saver: CheckpointSaver) -> None:
    job, trainee, cell = run.job, run.trainee, run.job.cell
    if run.position.seen.steps == 0:
        score(run)
    run.interlude(run)  # what an attempt before this one did not come to; the first step hears of an order
    steps = PreparedSteps(trainee, run.position.seen.steps, cell.micro_batch_size)

    def meanwhile() -> None:
        steps.prepare()
        saver.copied()

    timer = StepTimer(cell.recipe, run.remade.recorded, run.mesh.dims.world) if cell.recipe.budget.is_timed else None

    for work, batches in steps:
        before = run.share_of(run.position)
        if before >= 1:
            break
        after = replace(run.position, seen=run.position.seen.plus(work))
        # A step asks with the middle of its own progress, so that neither the first nor the last has rate 0.
        rate = learning_rate(cell.recipe.optimizer, (before + run.share_of(after)) / 2)
        if timer is not None:
            rate = timer.begin(after.seen.steps, before)
        started = time.perf_counter()
        run.begin_step(after.seen.steps)
        torch.manual_seed(_random_seed(cell.seed, after.seen.steps, run.mesh.rank))
        clock = None if timer is None else timer.read
        outcome = train_step(cell, trainee, work, rate, run.order, clock=clock, batches=batches, meanwhile=meanwhile)
        elapsed = time.perf_counter() - started
        if timer is not None:
            after = replace(after, seen=timer.end(after.seen, outcome.seconds))
        _record_step(run, work, after, outcome, rate, elapsed)
        digests = order_after(run.position.order, work, steps.following)
        run.position = replace(after, order=digests, train_time_s=run.position.train_time_s + elapsed)
        if run.contract is None:
            run.contract = find_contract(job, trainee)
            if run.mesh.is_main:  # kept for an attempt that has no step left to make
                write_json(CellFolder(job.folder).contract, run.contract)
        trainee.optimizers.zero_grad()
        share, order = run.share_of(run.position), outcome.order
        scored = passed_a_mark(before, share, cell.recipe.evaluate.every) or share >= 1
        if scored:
            score(run)
        if order == CONTINUE and share < 1:
            order = run.interlude(run)
        stopping = order != CONTINUE
        _tell_committed(run, saver)
        if passed_a_mark(before, share, cell.recipe.checkpoint.every) or share >= 1 or stopping:
            _checkpoint(run, saver, scored, is_last=share >= 1 or stopping)
        if stopping and share < 1:
            stop(order, run.position)


def conclude(run: CellRun) -> None:
    """The final scores, anew in an attempt that found the budget used up, and the peaks of memory over all ranks."""
    run.recorder.phase("finishing")
    run.pulse.rest("finishing")
    if run.scores is None:
        score(run)
    device, host = peak_memory_gib(run.mesh.device), peak_memory_gib(torch.device("cpu"))
    peaks = torch.tensor([device, host], device=run.mesh.device)
    run.mesh.maximum(peaks)
    run.peaks_gib = float(peaks[0]), float(peaks[1])


def measure_actions(run: CellRun) -> None:
    """Adds to the measurement how a robot's actions are predicted, under the names of `evaluate_actions`."""
    trainee, cell, backbone = run.trainee, run.job.cell, run.trainee.backbone
    assert run.job.prepared is not None and run.job.prepared.actions is not None
    run.pulse.rest("evaluating", run.position.seen.steps)
    backbone.llm.eval()
    with torch.no_grad():
        found, ahead = evaluate_actions(
            partial(all_logits, backbone),
            partial(place, backbone, device=run.mesh.device),
            trainee.validation,
            trainee.scored,
            coding=run.job.prepared.actions,
            sequence_length=cell.recipe.sequence_length,
            most_tokens=positions_per_chunk(backbone.tokenizer_rows.total),
            collate=backbone.collate,
            mesh=run.mesh,
        )
    backbone.llm.train()
    run.metrics |= found
    if run.job.prepared.actions.chunk > 1:
        run.facts["actions_ahead"] = ahead


def export(run: CellRun) -> None:
    """Writes the trained model as a Hugging Face folder."""
    assert run.scores is not None
    export_model(run.trainee.backbone, run.job, run.scores, run.mesh)


def record(run: CellRun) -> None:
    """Writes the per-item scores and the measurement: its presence says that the cell was trained and measured."""
    if not run.mesh.is_main:
        return
    job, trainee, position = run.job, run.trainee, run.position
    assert run.scores is not None
    save_item_scores(job.folder, run.scores)
    measurement = measure(
        job.folder,
        job.spool_folder,
        workers=run.mesh.dims.world,
        device=device_name(run.mesh.device),
        on_gpu=run.mesh.device.type == "cuda",
        flops_per_token=job.flops_per_token,
        peak_memory_gib=run.peaks_gib[0],
        peak_host_memory_gib=run.peaks_gib[1],
        load_time_s=trainee.load_time_s,
        checkpoint_stall_s=position.checkpoint_stall_s / max(position.checkpoints, 1),
        # An attempt that made no step has no gradients to look at.
        contract=run.contract or read_json(CellFolder(job.folder).contract),
        extra=run.metrics,
        facts=run.facts,
    )
    write_measurement(job.folder, measurement)
    run.recorder.phase("finished", step=position.seen.steps)


def score(run: CellRun) -> None:
    """Scores the held-out items. Raises DivergedError when the score is not finite, after it was recorded."""
    trainee, cell, position = run.trainee, run.job.cell, run.position
    run.pulse.rest("evaluating", position.seen.steps)
    trainee.backbone.llm.eval()
    with torch.no_grad():
        scores = evaluate(
            partial(token_nats, trainee.backbone, device=run.mesh.device),
            trainee.validation,
            trainee.scored,
            sequence_length=cell.recipe.sequence_length,
            rows=cell.micro_batch_size,
            collate=trainee.backbone.collate,
            mesh=run.mesh,
        )
    trainee.backbone.llm.train()
    run.scores = scores
    run.recorder.evaluation(_point(position, run.share_of(position), scores))
    if not math.isfinite(scores.bits_per_byte):
        run.mesh.barrier()  # the main rank has recorded it: the first rank to fail has the others killed
        raise DivergedError(
            f"{cell.cell_id}: held-out bits per byte are {scores.bits_per_byte} after step {position.seen.steps}. "
            "Lower recipe.optimizer.learning_rate or raise warmup."
        )


def _point(position: Position, share: float, scores: ItemScores) -> EvaluationPoint:
    seen, spent = position.seen, position.train_time_s
    return EvaluationPoint(seen.steps, share, seen.bytes, seen.tokens, spent, scores.bits_per_byte, scores.loss)


def _record_step(
    run: CellRun, work: StepWork, after: Position, outcome: StepOutcome, rate: float, elapsed: float
) -> None:
    """The step is recorded before a divergence is raised, with its real values."""
    seen = after.seen
    metrics = StepMetrics(
        step=seen.steps,
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        learning_rate=rate,
        train_bits_per_byte=bits_per_byte(outcome.loss * work.targets, work.learnable_bytes),
        examples_seen=seen.examples,
        tokens_seen=seen.tokens,
        bytes_seen=seen.bytes,
        progress=run.share_of(after),
        step_time_s=elapsed,
        tokens_per_second_per_device=work.tokens / elapsed / run.mesh.dims.world,
        peak_memory_gib=peak_memory_gib(run.mesh.device),
    )
    run.remade.prove(metrics, run.job.folder)
    run.recorder.step(metrics)
    if not outcome.is_finite:
        run.mesh.barrier()  # the main rank has recorded it: the first rank to fail has the others killed
        raise DivergedError(
            f"{run.job.cell.cell_id}: loss {outcome.loss} and gradient norm {outcome.grad_norm} at step {seen.steps}; "
            "the update was not made. Lower recipe.optimizer.learning_rate or raise warmup."
        )


def _open_saver(run: CellRun) -> CheckpointSaver:
    """Raises CheckpointError where the cell's checkpoints would have no room."""
    recipe, root = run.job.cell.recipe, run.job.checkpoint_root
    whole, share = state_bytes(run.trainee.backbone, recipe.optimizer.state_bytes)
    if run.share_of(run.position) < 1:
        most = recipe.checkpoint.keep + 2  # the newest, the best, and the one that is being written
        require_room(root, whole, min(most, math.ceil(1 / recipe.checkpoint.every)), run.mesh)
    return CheckpointSaver(root, run.job.attempt, recipe.checkpoint.keep, run.mesh, share)


def _checkpoint(run: CellRun, saver: CheckpointSaver, scored: bool, is_last: bool) -> None:
    position, trainee, step = run.position, run.trainee, run.position.seen.steps
    run.recorder.phase("checkpointing", step=step)
    run.pulse.rest("checkpointing", step)
    trainer = asdict(position) | ({SCORE: run.scores.bits_per_byte} if scored and run.scores is not None else {})
    saver.save(step, trainee.backbone, trainee.optimizers, trainer, is_last)
    run.recorder.phase("training", step=step)
    _tell_committed(run, saver)


def _tell_committed(run: CellRun, saver: CheckpointSaver) -> None:
    for one in saver.committed():
        run.recorder.phase("training", **asdict(one))
        before = run.position
        total_s = before.checkpoint_stall_s + one.stall_s
        run.position = replace(before, checkpoints=before.checkpoints + 1, checkpoint_stall_s=total_s)


def _find_checkpoint(run: CellRun) -> Checkpoint | None:
    """The newest valid checkpoint, if there is one. The main rank verifies; all ranks load the same."""
    found, rejected = find_latest(run.job.checkpoint_root) if run.mesh.is_main else (None, [])
    for sentence in rejected:
        run.recorder.phase("rejected", reason=sentence)
    return run.mesh.from_main(found)


def obey(run: CellRun) -> None:
    """Raises CancelledError or TimedOutError on all ranks where the main one was told to stop. Collective."""
    if (order := run.mesh.from_main(run.order)) != CONTINUE:
        stop(order, run.position)


def stop(order: int, position: Position) -> None:
    """Raises CancelledError or TimedOutError for an order other than CONTINUE; a checkpoint is kept."""
    where = f"a checkpoint was kept at step {position.seen.steps}; the same command continues from there"
    if order == TIMED_OUT:
        raise TimedOutError(f"policy.timeout is used up; {where} once policy.timeout is raised")
    raise CancelledError(f"stopped on request; {where}")


def _random_seed(*parts: int) -> int:
    """One seed from several numbers; equal on every machine and Python."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
