"""What a run really was: found on the wrapped model where it can be, declared where it cannot."""

from dataclasses import asdict
from typing import Any

from orchestrator.cell_job import CellJob
from orchestrator.hardware import device_name, package_versions
from orchestrator.training.model.sharding import found_contract
from orchestrator.training.trainee import Trainee


def find_contract(job: CellJob, trainee: Trainee) -> dict[str, Any]:
    """The contract of a cell, once a step has left its gradients."""
    assert job.prepared is not None
    cell, backbone = job.cell, trainee.backbone
    return {
        **found_contract(backbone, trainee.layers, trainee.optimizers, cell.recipe.precision),
        **trainee.optimizers.decay_counts(),
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
        "workers": trainee.mesh.dims.world,
        "replicas": trainee.mesh.dims.replicate,
        "revision": cell.backbone.revision,
        "weights_digest": cell.backbone.weights_digest,
        "device": device_name(trainee.mesh.device),
        "packages": package_versions(),
    }
