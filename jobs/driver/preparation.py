"""Tokenizes a job's data on the cluster and decides what every candidate sees, before anything trains."""

from dataclasses import asdict, dataclass

from jobs.results.documents import PreparedFacts
from orchestrator.data.parity import check_parity, compare_tokenizers, save_selection
from orchestrator.data.prepare import Prepared, prepare
from orchestrator.errors import OrchestratorError
from orchestrator.layout import Storage
from orchestrator.planning.plan import Plan
from orchestrator.results import read_json, write_json


@dataclass(frozen=True)
class Preparation:
    """Where each backbone's token arrays and selection are, and the parity facts for the report."""

    prepared: dict[str, Prepared]
    selection_files: dict[str, str]
    facts: PreparedFacts


def find_preparation(plan: Plan) -> Preparation | None:
    """What an earlier launch of the same job prepared, or None."""
    file = plan.files.preparation
    if not file.exists():
        return None
    document = read_json(file)
    prepared = {backbone_id: Prepared(**one) for backbone_id, one in document["prepared"].items()}
    return Preparation(prepared, document["selection_files"], document["facts"])


def prepare_data(plan: Plan) -> Preparation:
    """Tokenizes with every candidate's tokenizer in one Ray task and applies the parity rule."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=1)(_prepare_all)
    try:
        prepared: list[Prepared] = ray.get(task.remote(plan))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OrchestratorError):
            raise error.cause from None  # designed for the user; Ray's wrapping shows its own traceback instead
        raise
    sequence_length = plan.job.recipe.sequence_length
    parity = compare_tokenizers(prepared, sequence_length, plan.job.recipe.data.parity)
    check_parity(parity, plan.source.file, sequence_length)
    files = {}
    for number, one in enumerate(prepared):
        file = plan.files.selection(number)
        save_selection(file, parity, one.backbone_id)
        files[one.backbone_id] = str(file)
    facts: PreparedFacts = {
        "kept": min(len(kept) for kept in parity.kept.values()),
        "scored": len(parity.scored),
        "dropped": {**parity.dropped, "in_validation": plan.train_in_validation},
        "backbones": parity.backbones,
    }
    preparation = Preparation({one.backbone_id: one for one in prepared}, files, facts)
    write_json(plan.files.preparation, asdict(preparation))
    return preparation


def _prepare_all(plan: Plan) -> list[Prepared]:
    """Runs on a node that has the model cache and, for gated ids, HF_TOKEN."""
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from backbones import registry

    for module in plan.plugins:
        registry.load_plugin(module)
    folder, length = Storage(plan.storage).prepared, plan.job.recipe.sequence_length
    return [
        prepare(spec.backbone_id, registry.load_codec(spec, max_length=length), plan.train, plan.validation, folder)
        for spec in plan.backbones
    ]
