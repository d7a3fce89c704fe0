"""A plan to look at: its cells as a data frame, and why some of them cannot run."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from jobs.cli.plan_tables import PlanDocument, plan_document
from jobs.notebook.specs import Spec, load_plugins, spec_file
from orchestrator.planning.plan import load_plan

if TYPE_CHECKING:
    from jobs.notebook.frames import Frame


@dataclass(frozen=True, repr=False)
class PlannedJob:
    """What a job would do. Nothing was started."""

    document: PlanDocument

    @property
    def job_id(self) -> str:
        return self.document["id"]

    @property
    def cells(self) -> "Frame":
        """A row for each cell: batches, predicted memory, FLOPs per token, and why it cannot run."""
        from jobs.notebook.frames import planned_frame

        return planned_frame(self.document["cells"])

    @property
    def infeasible(self) -> list[str]:
        """Why some cells cannot run, each reason once."""
        return list(dict.fromkeys(cell["infeasible"] for cell in self.document["cells"] if cell["infeasible"]))

    def __repr__(self) -> str:
        return "; ".join([f"{self.job_id}: {len(self.document['cells'])} cells, {self._data}", *self.infeasible])

    def _repr_html_(self) -> str:
        troubles = "".join(f"<p>{escape(reason)}</p>" for reason in self.infeasible)
        head = f"<p><b>{escape(self.job_id)}</b>: {self._data}; results go to {escape(self.document['storage'])}</p>"
        return head + troubles + str(self.cells.drop(columns="infeasible").to_html(index=False))

    @property
    def _data(self) -> str:
        facts = self.document
        return f"{facts['train_examples']:,} training examples, {facts['validation_examples']:,} held out"


def plan(spec: Spec | None = None, *, plugins: Sequence[str] = (), **keys: Any) -> PlannedJob:
    """The cells of a spec, their batches and their predicted memory, at once and without starting anything.

    Raises SpecError with everything that is wrong with the spec; a cell that cannot fit is no error here.
    """
    load_plugins(tuple(plugins))
    return PlannedJob(plan_document(load_plan(spec_file(spec, keys))))
