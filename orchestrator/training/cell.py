"""One cell, trained and measured. Collective: every rank of the process group runs the same lines.

Knows nothing of Ray or MLflow: it needs an initialised process group, a device and a folder that all ranks share.
"""

import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from backbones.hf_causal import HFCausalLLMBackbone
from orchestrator.cell_job import CellJob
from orchestrator.certificate.gang import require_certificate
from orchestrator.data.feed import Feed, StepWork
from orchestrator.data.parity import load_selection
from orchestrator.data.prepare import TokenizedDataset, load_tokenized
from orchestrator.errors import CancelledError, DivergedError, TimedOutError
from orchestrator.hardware import device_name, package_versions, peak_memory_gib
from orchestrator.planning.plan import Cell
from orchestrator.results import EvaluationPoint, StepMetrics, read_json, write_json
from orchestrator.tracking.spool import SpoolWriter
from orchestrator.training.checkpoint import Checkpoint, find_latest, load_checkpoint, prune, save_checkpoint
from orchestrator.training.evaluation import evaluate
from orchestrator.training.export import export_model
from orchestrator.training.loss import summed_nats, token_nats
from orchestrator.training.measurement import ItemScores, bits_per_byte, measure, save_item_scores, write_measurement
from orchestrator.training.optimizer import build_optimizer, decay_counts
from orchestrator.training.rate import Seen, learning_rate, passed_a_mark, progress
from orchestrator.training.sharding import build_sharded, found_contract

CONTINUE, STOP, TIMED_OUT = 0, 1, 2
CONTRACT_FILE = "contract.json"


@dataclass(frozen=True)
class Trainee:
    """The sharded backbone, its optimizer and its data on this rank."""

    backbone: HFCausalLLMBackbone
    layers: list[nn.Module]  # the sharded decoder layers
    optimizer: torch.optim.Optimizer
    feed: Feed
    validation: TokenizedDataset
    scored: np.ndarray
    device: torch.device
    load_time_s: float
    model_time_s: float  # of it: to build, shard and fill the backbone

    @property
    def pad_token_id(self) -> int:
        return int(self.backbone.pad_token_id)


@dataclass(frozen=True)
class Position:
    """How far a run has come; stored in every checkpoint."""

    seen: Seen = field(default_factory=Seen)
    train_time_s: float = 0.0  # in steps alone
    checkpoint_stall_s: float = 0.0
    checkpoints: int = 0


@dataclass(frozen=True)
class StepOutcome:
    """What a step measured over all ranks, and whether rank 0 wants the run to go on."""

    loss: float
    grad_norm: float
    order: int


def train_cell(job: CellJob, device: torch.device) -> None:
    """Trains `job.cell` to the end of its budget, resuming from its newest valid checkpoint.

    Writes steps and evaluations to the spool, checkpoints beside it, and at the end the measurement. Raises
    CertificateError, before it starts, where a certificate is asked for and a proof fails; DivergedError,
    CancelledError (after a checkpoint), TimedOutError (after a checkpoint) or ShardingError.
    """
    spool = SpoolWriter(job.spool_folder, job.attempt) if dist.get_rank() == 0 else None
    if job.certificate is not None:
        _phase(spool, "certifying")
        require_certificate(job.certificate, device, job.folder, spool)
    _phase(spool, "loading", load_average=os.getloadavg()[0], cores=os.cpu_count())
    trainee = build_trainee(job, device)
    position = _resume(job, trainee, spool)
    data_time_s = trainee.load_time_s - trainee.model_time_s
    _phase(spool, "training", step=position.seen.steps, model_s=trainee.model_time_s, data_s=data_time_s)
    if position.seen.steps == 0:
        _evaluate(job, trainee, position, spool)
    scores: ItemScores | None = None
    contract: dict[str, Any] | None = None
    for work in itertools.islice(trainee.feed.steps(), position.seen.steps, None):
        before = _progress(job, position)
        if before >= 1:
            break
        position, outcome = _advance(job, trainee, work, position, spool)
        contract = contract or _record_contract(job, trainee, spool)
        trainee.optimizer.zero_grad()
        after = _progress(job, position)
        if passed_a_mark(before, after, job.cell.recipe.evaluate.every) or after >= 1:
            scores = _evaluate(job, trainee, position, spool)
        stopping = outcome.order != CONTINUE
        if passed_a_mark(before, after, job.cell.recipe.checkpoint.every) or after >= 1 or stopping:
            position = _checkpoint(job, trainee, position, spool)
        if stopping and after < 1:
            _stop(outcome.order, position)
    _finish(job, trainee, position, scores, contract, spool)


def build_trainee(job: CellJob, device: torch.device) -> Trainee:
    """Builds, adapts and shards the backbone, and opens its data."""
    started = time.perf_counter()
    cell, recipe = job.cell, job.cell.recipe
    backbone, layers = build_sharded(
        cell.backbone.reference, recipe, device, seed=cell.seed, replicas=cell.placement.replicas
    )
    model_time_s = time.perf_counter() - started
    backbone.llm.train()
    kept, scored = load_selection(job.selection_file)
    feed = Feed(
        data=load_tokenized(job.prepared.train_file),
        kept=kept,
        data_digest=cell.train_digest,
        seed=cell.seed,
        global_batch_size=recipe.global_batch_size,
        sequence_length=recipe.sequence_length,
        packing=recipe.packing,
    )
    return Trainee(
        backbone=backbone,
        layers=layers,
        optimizer=build_optimizer(backbone.llm, recipe.optimizer),
        feed=feed,
        validation=load_tokenized(job.prepared.validation_file),
        scored=scored,
        device=device,
        load_time_s=time.perf_counter() - started,
        model_time_s=model_time_s,
    )


def train_step(cell: Cell, trainee: Trainee, work: StepWork, rate: float, order: int = CONTINUE) -> StepOutcome:
    """One optimizer step over the global batch, with gradients left in place.

    The loss is the sum over all target tokens of the step divided by their number, over all ranks and micro-batches:
    FSDP averages gradients over ranks, so each micro-batch is scaled by the number of ranks. Raises DivergedError
    before the update when loss or gradient norm is not finite.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    share = len(work.rows) // world
    mine = work.rows[rank * share : (rank + 1) * share]
    sums = torch.zeros(2, dtype=torch.float64, device=trainee.device)
    for rows in _chunks(mine, cell.micro_batch_size):
        nats = summed_nats(trainee.backbone, trainee.feed.batch(rows, trainee.pad_token_id), trainee.device)
        (nats * (world / work.targets)).backward()
        sums[0] += nats.detach()
    sums[1] = order
    dist.all_reduce(sums)
    loss = float(sums[0]) / work.targets
    norm = torch.nn.utils.clip_grad_norm_(
        [p for p in trainee.backbone.llm.parameters() if p.requires_grad], cell.recipe.optimizer.max_grad_norm
    )
    grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return StepOutcome(loss, grad_norm, int(sums[1]))
    for group in trainee.optimizer.param_groups:
        group["lr"] = rate
    trainee.optimizer.step()
    return StepOutcome(loss, grad_norm, int(sums[1]))


def _advance(
    job: CellJob, trainee: Trainee, work: StepWork, position: Position, spool: SpoolWriter | None
) -> tuple[Position, StepOutcome]:
    """Runs a step and records it. The step is in the spool before a divergence is raised, with its real values."""
    seen = position.seen.plus(work)
    after = replace(position, seen=seen)
    middle = (_progress(job, position) + _progress(job, after)) / 2
    rate = learning_rate(job.cell.recipe.optimizer, middle)
    started = time.perf_counter()
    torch.manual_seed(_random_seed(job.cell.seed, seen.steps, dist.get_rank()))
    outcome = train_step(job.cell, trainee, work, rate, _order(job))
    elapsed = time.perf_counter() - started
    if spool is not None:
        spool.step(
            StepMetrics(
                step=seen.steps,
                loss=outcome.loss,
                grad_norm=outcome.grad_norm,
                learning_rate=rate,
                train_bits_per_byte=bits_per_byte(outcome.loss * work.targets, work.learnable_bytes),
                examples_seen=seen.examples,
                tokens_seen=seen.tokens,
                bytes_seen=seen.bytes,
                progress=_progress(job, after),
                step_time_s=elapsed,
                tokens_per_second_per_device=work.tokens / elapsed / dist.get_world_size(),
                peak_memory_gib=peak_memory_gib(trainee.device),
            )
        )
    if not (math.isfinite(outcome.loss) and math.isfinite(outcome.grad_norm)):
        dist.barrier()  # rank 0 has written the point: the first rank to fail has the others killed
        raise DivergedError(
            f"{job.cell.cell_id}: loss {outcome.loss} and gradient norm {outcome.grad_norm} at step {seen.steps}; "
            "the update was not made. Lower recipe.optimizer.learning_rate or raise warmup."
        )
    return replace(after, train_time_s=position.train_time_s + elapsed), outcome


def _evaluate(job: CellJob, trainee: Trainee, position: Position, spool: SpoolWriter | None) -> ItemScores:
    """Scores the held-out items. Raises DivergedError when the score is not finite, after it went to the spool."""
    backbone = trainee.backbone
    backbone.llm.eval()
    with torch.no_grad():
        scores = evaluate(
            lambda batch: token_nats(backbone, batch, trainee.device),
            trainee.validation,
            trainee.scored,
            sequence_length=job.cell.recipe.sequence_length,
            rows=job.cell.micro_batch_size,
            pad_token_id=trainee.pad_token_id,
            device=trainee.device,
        )
    backbone.llm.train()
    seen = position.seen
    if spool is not None:
        share, spent = _progress(job, position), position.train_time_s
        spool.evaluation(
            EvaluationPoint(seen.steps, share, seen.bytes, seen.tokens, spent, scores.bits_per_byte, scores.loss)
        )
    if not math.isfinite(scores.bits_per_byte):
        dist.barrier()  # rank 0 has written the point: the first rank to fail has the others killed
        raise DivergedError(
            f"{job.cell.cell_id}: held-out bits per byte are {scores.bits_per_byte} after step {seen.steps}. "
            "Lower recipe.optimizer.learning_rate or raise warmup."
        )
    return scores


def _checkpoint(job: CellJob, trainee: Trainee, position: Position, spool: SpoolWriter | None) -> Position:
    _phase(spool, "checkpointing", step=position.seen.steps)
    started = time.perf_counter()
    step, root = position.seen.steps, job.checkpoint_root
    folder = save_checkpoint(root, job.attempt, step, trainee.backbone, trainee.optimizer, asdict(position))
    if spool is not None:
        prune(root, job.cell.recipe.checkpoint.keep)
    stall = time.perf_counter() - started
    if spool is not None:
        size = sum(file.stat().st_size for file in folder.iterdir())
        spool.phase("training", step=step, stall_s=stall, checkpoint_bytes=size)
    return replace(
        position, checkpoints=position.checkpoints + 1, checkpoint_stall_s=position.checkpoint_stall_s + stall
    )


def _resume(job: CellJob, trainee: Trainee, spool: SpoolWriter | None) -> Position:
    """Loads the newest valid checkpoint, if there is one. Rank 0 verifies; all ranks load the same."""
    found: list[Checkpoint | None] = [None]
    if spool is not None:
        found[0], rejected = find_latest(job.checkpoint_root)
        for sentence in rejected:
            spool.phase("rejected", reason=sentence)
    dist.broadcast_object_list(found)
    checkpoint = found[0]
    if checkpoint is None:
        return Position()
    load_checkpoint(checkpoint, trainee.backbone, trainee.optimizer)
    _phase(spool, "resumed", step=checkpoint.step)
    return Position(**{**checkpoint.trainer, "seen": Seen(**checkpoint.trainer["seen"])})


def _finish(
    job: CellJob,
    trainee: Trainee,
    position: Position,
    scores: ItemScores | None,
    contract: dict[str, Any] | None,
    spool: SpoolWriter | None,
) -> None:
    """Exports where asked, and writes the measurement. An attempt that found the budget used up scores again."""
    _phase(spool, "finishing")
    scores = scores or _evaluate(job, trainee, position, spool)
    host = torch.device("cpu")
    peaks = torch.tensor([peak_memory_gib(trainee.device), peak_memory_gib(host)], device=trainee.device)
    dist.all_reduce(peaks, dist.ReduceOp.MAX)
    if job.export is not None:
        export_model(trainee.backbone, job, scores)
    if spool is None:
        return
    save_item_scores(job.folder, scores)
    if contract is None:  # this attempt made no step; there are no gradients to look at
        contract = read_json(job.folder / CONTRACT_FILE)
    measurement = measure(
        job.folder,
        job.spool_folder,
        workers=job.cell.placement.workers,
        device=device_name(trainee.device),
        on_gpu=trainee.device.type == "cuda",
        flops_per_token=job.flops_per_token,
        peak_memory_gib=float(peaks[0]),
        peak_host_memory_gib=float(peaks[1]),
        load_time_s=trainee.load_time_s,
        checkpoint_stall_s=position.checkpoint_stall_s / max(position.checkpoints, 1),
        contract=contract,
    )
    write_measurement(job.folder, measurement)
    spool.phase("finished", step=position.seen.steps)
    spool.close()


def _record_contract(job: CellJob, trainee: Trainee, spool: SpoolWriter | None) -> dict[str, Any]:
    """The contract as found after this attempt's first step, kept for an attempt that has no step left to make."""
    contract = _contract(job, trainee)
    if spool is not None:
        write_json(job.folder / CONTRACT_FILE, contract)
    return contract


def _contract(job: CellJob, trainee: Trainee) -> dict[str, Any]:
    """What this run really was: found on the wrapped model where it can be, declared where it cannot."""
    cell, backbone = job.cell, trainee.backbone
    return {
        **found_contract(backbone, trainee.layers, trainee.optimizer, cell.recipe.precision),
        **decay_counts(trainee.optimizer),
        "activation_checkpointing": all(
            bool(getattr(layer, "gradient_checkpointing", False)) for layer in trainee.layers
        ),
        "adaptation": cell.recipe.adaptation.summary,
        "weights_read": backbone.weights_read,
        "attention": asdict(backbone.attention),
        "tokenizer_rows": asdict(backbone.tokenizer_rows),
        "prompt_format": cell.backbone.prompt_builder,
        "prompt_variant": cell.backbone.prompt_variant,
        "prompt_hash": job.prepared.fingerprint[:16],
        "prompt_example": job.prepared.prompt_example,
        "global_batch_size": cell.recipe.global_batch_size,
        "micro_batch_size": cell.micro_batch_size,
        "accumulation_steps": cell.accumulation_steps,
        "workers": cell.placement.workers,
        "replicas": cell.placement.replicas,
        "revision": cell.backbone.revision,
        "weights_digest": cell.backbone.weights_digest,
        "device": device_name(trainee.device),
        "packages": package_versions(),
    }


def _order(job: CellJob) -> int:
    """Rank 0 looks for a request to stop and at the clock; the other ranks hear of it in the step's reduction."""
    if dist.get_rank() != 0:
        return CONTINUE
    if job.stop_file.exists():
        return STOP
    return TIMED_OUT if time.time() > job.deadline else CONTINUE


def _stop(order: int, position: Position) -> None:
    where = f"a checkpoint was kept at step {position.seen.steps}; the same command continues from there"
    if order == TIMED_OUT:
        raise TimedOutError(f"policy.timeout is used up; {where} once policy.timeout is raised")
    raise CancelledError(f"stopped on request; {where}")


def _progress(job: CellJob, position: Position) -> float:
    return progress(position.seen, job.cell.recipe.budget, job.flops_per_token)


def _phase(spool: SpoolWriter | None, name: str, **details: Any) -> None:
    if spool is not None:
        spool.phase(name, **details)


def _random_seed(*parts: int) -> int:
    """One seed from several numbers; equal on every machine and Python."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _chunks(rows: tuple[tuple[int, ...], ...], size: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
