"""What is trained: the sharded backbone, its optimizers and its data on this rank."""

import time
from dataclasses import dataclass

import numpy as np
import transformers
from torch import nn

from backbones.contract import TrainableBackbone
from orchestrator.cell_job import CellJob
from orchestrator.data.feed import Feed
from orchestrator.data.parity import load_selection
from orchestrator.data.prepare import TokenizedDataset, load_tokenized
from orchestrator.parallel import Mesh
from orchestrator.planning.sizes.recomputation import keeps_weights_gathered
from orchestrator.training.model.optimizer import Optimizers, build_optimizers
from orchestrator.training.model.sharding import build_sharded


@dataclass(frozen=True)
class Trainee:
    """The sharded backbone, its optimizers and its data on this rank."""

    backbone: TrainableBackbone
    layers: list[nn.Module]  # the sharded decoder layers
    optimizers: Optimizers
    feed: Feed
    validation: TokenizedDataset
    scored: np.ndarray
    mesh: Mesh
    row_width: int | None  # that all rows of a step are padded to; None: the longest of its micro-batch
    load_time_s: float
    model_time_s: float  # of it: to build, shard and fill the backbone


def build_trainee(job: CellJob, mesh: Mesh) -> Trainee:
    """Builds, adapts and shards the backbone, and opens its data. Collective."""
    assert job.prepared is not None, "a job without data has no stage that trains"
    cell, recipe = job.cell, job.cell.recipe
    # Imported before the clock starts: workers that trained another seed of this backbone have the module already.
    getattr(transformers, cell.backbone.llm_cls, None)
    started = time.perf_counter()
    gathered = keeps_weights_gathered(cell.backbone, recipe, cell.placement, cell.micro_batch_size)
    backbone, layers = build_sharded(cell.backbone, recipe, mesh, seed=cell.seed, keep_gathered=gathered)
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
        ranks=mesh.dp_size,
    )
    return Trainee(
        backbone=backbone,
        layers=layers,
        optimizers=build_optimizers(backbone.llm, recipe.optimizer),
        feed=feed,
        validation=load_tokenized(job.prepared.validation_file),
        scored=scored,
        mesh=mesh,
        # Allocator and compiled code want shapes that stay; a processor computes what is padded for nothing.
        row_width=recipe.sequence_length if recipe.packing and mesh.device.type == "cuda" else None,
        load_time_s=time.perf_counter() - started,
        model_time_s=model_time_s,
    )
