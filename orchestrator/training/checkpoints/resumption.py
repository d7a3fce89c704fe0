"""A resumed run proves that it goes on where the last attempt stood, or stops.

Every checkpoint carries digests of the steps around it: those made last and the one planned next. An attempt that
resumes plans the same ones anew and compares. Where an earlier attempt came further than its checkpoint, its spool
tells what the steps made again have to come to: the same counts always, and the same loss as far as floats allow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
import xxhash

from orchestrator.data.feed import Feed, StepWork
from orchestrator.errors import ResumeError
from orchestrator.hardware import device_name
from orchestrator.layout import CellFolder
from orchestrator.parallel import Mesh
from orchestrator.results import StepMetrics
from orchestrator.tracking.spool import EntryKind, read_spool

KEPT = 4  # steps whose digests a checkpoint holds: the last three made, and the next
COUNTED = ("examples_seen", "tokens_seen", "bytes_seen")
# Relative difference of the loss of one step with the same weights and rows, where kernels may add in another order.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}


def digest(work: StepWork) -> str:
    """Of what a step holds, however its rows are dealt to ranks."""
    facts = (sorted(work.rows), work.examples, work.tokens, work.targets, work.learnable_bytes)
    return xxhash.xxh3_64(repr(facts).encode()).hexdigest()


def order_after(order: Sequence[str], work: StepWork, following: StepWork) -> tuple[str, ...]:
    """The digests that a checkpoint keeps, once `work` was made and `following` is planned next."""
    return (*(order or (digest(work),)), digest(following))[-KEPT:]


def prove_order(feed: Feed, order: Sequence[str], steps: int, checkpoint: Path) -> str:
    """Plans the steps around a checkpoint of `steps` steps anew, and compares them with the digests that it holds.

    Returns what was compared, for the record. Raises ResumeError where a step holds other rows.
    """
    if not order:
        return "nothing: the checkpoint is of a version that kept no digests of rows"
    first = steps + 1 - len(order)
    planned = [digest(work) for work in islice(feed.steps(first), len(order))]
    for number, (kept, now) in enumerate(zip(order, planned, strict=True), start=first + 1):
        if kept != now:
            raise ResumeError(
                f"{checkpoint}: the rows of step {number} have the digest {kept} there and {now} as planned now: "
                "the run would repeat or skip examples. Restore the data, the tokenizer files and the version of the "
                f"orchestrator that wrote it, or delete {checkpoint.parents[1]} to train the cell from the beginning"
            )
    return f"the rows of steps {first + 1} to {steps + 1}"


def find_conditions(mesh: Mesh, micro_batch_size: int) -> dict[str, Any]:
    """What decides how floats are added up, besides the recipe: equal ones give an equal loss on CPUs. Collective."""
    ranks = mesh.gathered(f"{device_name(mesh.device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    machines = "; ".join(f"{len(list(group))} x {name}" for name, group in groupby(ranks))
    return {"workers": mesh.dims.world, "micro_batch_size": micro_batch_size, "machines": machines}


@dataclass(frozen=True)
class Remade:
    """What earlier attempts recorded of steps that this one makes again, and how closely it must agree."""

    recorded: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # by step: a step's metrics
    tolerances: Mapping[int, float] = field(default_factory=dict)  # of the loss, relative; 0 is bit for bit

    def prove(self, metrics: StepMetrics, folder: Path) -> None:
        """Raises ResumeError where a step that is made again comes to something else than it was recorded with."""
        recorded = self.recorded.get(metrics.step)
        if recorded is None:
            return
        for name in COUNTED:
            if recorded[name] != getattr(metrics, name):
                raise _other(metrics.step, name, recorded[name], getattr(metrics, name), "exactly", folder)
        tolerance = self.tolerances.get(metrics.step)
        if tolerance is not None and not _agree(recorded["loss"], metrics.loss, tolerance):
            allowed = f"within {tolerance:g} of it" if tolerance else "bit for bit"
            raise _other(metrics.step, "loss", recorded["loss"], metrics.loss, allowed, folder)


def find_remade(spool_folder: Path, steps: int, conditions: Mapping[str, Any], precision: str) -> Remade:
    """What the spool holds of the steps behind `steps`.

    The losses of all of them must be equal bit for bit where both attempts computed in fp32 on equal CPUs; else that of
    the first one must be near, if as many workers made it: the others follow from weights that rounding moved apart.
    Of attempts that did not record their conditions the counts alone are compared.
    """
    recorded: dict[int, Mapping[str, Any]] = {}
    made_by: dict[int, int] = {}
    known: dict[int, Mapping[str, Any]] = {}  # the conditions of each attempt
    for entry in read_spool(spool_folder):
        if entry.kind is EntryKind.STEP and entry.fields["step"] > steps:
            recorded[entry.fields["step"]] = entry.fields
            made_by[entry.fields["step"]] = entry.attempt
        elif "conditions" in entry.fields:
            known[entry.attempt] = entry.fields["conditions"]
    exact = precision == "fp32" and "CPU" in conditions["machines"]
    tolerances: dict[int, float] = {}
    for step, attempt in made_by.items():
        before = known.get(attempt, {})
        if exact and before == conditions:
            tolerances[step] = 0.0
        elif step == steps + 1 and before.get("workers") == conditions["workers"]:
            tolerances[step] = TOLERANCE[precision]
    return Remade(recorded, tolerances)


def _agree(recorded: float, found: float, tolerance: float) -> bool:
    if math.isnan(recorded) or math.isnan(found):
        return math.isnan(recorded) and math.isnan(found)
    return math.isclose(recorded, found, rel_tol=tolerance, abs_tol=0.0)


def _other(step: int, name: str, recorded: Any, found: Any, allowed: str, folder: Path) -> ResumeError:
    return ResumeError(
        f"{folder}: step {step} was recorded with {name} {recorded!r} and made again with {found!r}; they must agree "
        f"{allowed}, so the run does not go on from where it stood. Delete the newest folder in "
        f"{CellFolder(folder).checkpoints} to resume from an older one, or {folder} to train the cell from its "
        "beginning"
    )
