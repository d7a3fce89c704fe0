"""The schemas that `backbone schema` prints: of spec files, and of the documents that the commands write."""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue, TypeAdapter

from jobs.dispatch.wire import JobStatus, QueueListing, ScheduleFacts, ScheduleListing
from jobs.results.benchmark_documents import BenchmarkReport
from jobs.results.differences.comparability import Difference
from jobs.results.documents import HistoryRecord, Report
from jobs.results.predictions.prediction import Prediction
from jobs.simulation.figures import SimulationDocument
from orchestrator.errors import InputError
from orchestrator.results import CellResult, Measurement
from orchestrator.spec_files.spec import Comparison, Finetune

SPECS = {"comparison": Comparison, "finetune": Finetune}
# By the name that `--of` takes; what a document holds beside these types is what its writer hands over.
DOCUMENTS: Mapping[str, Any] = {
    **SPECS,
    "report": Report,  # report.json of a comparison or a finetune
    "benchmark": BenchmarkReport,  # benchmark.json
    "difference": Difference,  # what `backbone diff --json` prints
    "prediction": Prediction,  # what `backbone predict --json` prints
    "queue": QueueListing,  # what `backbone queue --json` prints
    "status": JobStatus,  # what `backbone submit, status, stop, cancel --json` print
    "schedules": ScheduleListing,  # what `backbone schedule list --json` prints
    "schedule": ScheduleFacts,  # what the other verbs of `backbone schedule` print
    "simulation": SimulationDocument,  # what `backbone simulate --json` prints
    "history": HistoryRecord,  # a file of a schedule's history
    "result": CellResult,  # result.json of a cell
    "measurement": Measurement,  # measurement.json of a cell
}


def spec_schema(kind: str) -> dict[str, JsonValue]:
    """The JSON schema of a spec file. Raises InputError for a name that is none."""
    return _schema(SPECS, kind)


def document_schema(name: str) -> dict[str, JsonValue]:
    """The JSON schema of any document in `DOCUMENTS`. Raises InputError for a name that is none."""
    return _schema(DOCUMENTS, name)


def _schema(known: Mapping[str, Any], name: str) -> dict[str, JsonValue]:
    if name not in known:
        raise InputError(f"no schema {name!r}; there are: {', '.join(known)}")
    return TypeAdapter(known[name]).json_schema()
