"""`backbone plan --dry-run`: every backbone of a plan is laid out, adapted and sharded over ranks that do not exist."""

from typing import TYPE_CHECKING

from rich.table import Table
from typing_extensions import TypedDict

from jobs.cli import tables
from orchestrator.errors import ShardingError
from orchestrator.hardware import GIB

_IN_GIB = ("weights", "gradients", "optimizer", "predicted peak")

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan
    from orchestrator.training.model.dry_run import Wrap


class WrapDocument(TypedDict):
    """A backbone of `backbone plan --dry-run --json`, as rank 0 would hold it. Sizes in bytes, padding included."""

    backbone_id: str
    fsdp_units: int
    decoder_layers: int
    decoder_layer: str
    embedding_rows: int
    parameters: int
    trainable_parameters: int
    rank_parameter_bytes: int
    rank_gradient_bytes: int
    rank_optimizer_bytes: int
    largest_unit: str
    largest_unit_bytes: int  # gathered, in the dtype that computes
    predicted_memory_gib: float
    contract: dict[str, object]


def dry_run(planned: "Plan") -> tuple[list[WrapDocument], list[str]]:
    """What every backbone becomes on the ranks of the plan, and why those that cannot be wrapped cannot."""
    import warnings

    from orchestrator.training.model.dry_run import Wrap, wrap_all

    predicted = {
        cell.backbone.backbone_id: forecast.memory.total
        for cell, forecast in zip(planned.cells, planned.forecasts, strict=True)
    }
    job, wrapped, failures = planned.job, [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers', of what it will rename
        for outcome in wrap_all(planned.backbones, job.recipe, job.placement.parallel):
            if isinstance(outcome, Wrap):
                wrapped.append(_document(outcome, predicted[outcome.backbone_id]))
            else:
                failures.append(str(outcome))
    return wrapped, failures


def print_dry_run(planned: "Plan", wrapped: list[WrapDocument]) -> None:
    """A row for each backbone that was wrapped, then how, in words."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("backbone", "layers", "FSDP units", "rows", "learning", *_IN_GIB, "largest unit gathered"):
        is_text = name in ("backbone", "largest unit gathered")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for facts in wrapped:
        sizes = (facts["rank_parameter_bytes"], facts["rank_gradient_bytes"], facts["rank_optimizer_bytes"])
        table.add_row(
            facts["backbone_id"],
            f"{facts['decoder_layers']} {facts['decoder_layer']}",
            str(facts["fsdp_units"]),
            f"{facts['embedding_rows']:,}",
            f"{facts['trainable_parameters']:,} of {facts['parameters']:,}",
            *(f"{size / GIB:.3f}" for size in sizes),
            f"{facts['predicted_memory_gib']:.2f}",
            f"{facts['largest_unit_bytes'] / GIB:.3f} GiB: {facts['largest_unit'] or 'the root (embedding, head)'}",
        )
    print()
    tables.print_wide(table)
    dims = planned.job.placement.parallel
    shards = f"{dims.shard} shards x {dims.replicate} replicas"
    print(f"\n{'wrapped':10} over {dims.world} ranks that do not exist ({shards}); GiB are those of one rank")
    for dtypes in sorted({_dtypes(facts) for facts in wrapped}):
        print(f"{'dtypes':10} {dtypes}")


def raise_unless_wrapped(failures: list[str]) -> None:
    """Raises ShardingError with every backbone that no gang could wrap."""
    if failures:
        raise ShardingError("\n".join(["no gang could wrap what this plan asks for", *failures]))


def _document(found: "Wrap", predicted_gib: float) -> WrapDocument:
    return {
        "backbone_id": found.backbone_id,
        "fsdp_units": len(found.units),
        "decoder_layers": found.decoder_layers,
        "decoder_layer": found.contract["decoder_layer"],
        "embedding_rows": found.embedding_rows,
        "parameters": found.contract["parameters"],
        "trainable_parameters": found.contract["trainable_parameters"],
        "rank_parameter_bytes": found.parameter_bytes,
        "rank_gradient_bytes": found.gradient_bytes,
        "rank_optimizer_bytes": found.optimizer_bytes,
        "largest_unit": found.largest.name,
        "largest_unit_bytes": found.largest.gathered_bytes,
        "predicted_memory_gib": predicted_gib,
        "contract": found.contract,
    }


def _dtypes(facts: WrapDocument) -> str:
    contract = facts["contract"]
    return (
        f"weights {contract['parameter_dtype']}, computing in {contract['compute_dtype']}, "
        f"gradients reduced in {contract['reduce_dtype']}"
    )
