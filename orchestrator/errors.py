"""One exception class per decision a caller can take. All are picklable: every argument goes to `Exception`."""

from dataclasses import dataclass


class OrchestratorError(Exception):
    """Base of every error we raise on purpose. Its message names the remedy.

    `status` is the name of the `CellStatus` that a cell gets whose attempt it ends, and `retriable` says whether
    another attempt is worth it. `backbones.errors.BackboneError` says the same of itself.
    """

    exit_code = 1
    status = "FAILED"
    retriable = False


@dataclass(frozen=True)
class SpecProblem:
    """One thing that is wrong with an input: where it stands, what was found, what to do."""

    file: str
    message: str
    path: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


class SpecError(OrchestratorError):
    """The input is wrong; nothing was started. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: tuple[SpecProblem, ...]):
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def spec_error(file: str, message: str, path: str = "") -> SpecError:
    """A `SpecError` with a single problem."""
    return SpecError((SpecProblem(file, message, path),))


class InputError(OrchestratorError):
    """A command was called in a way that cannot work here; nothing was started."""

    exit_code = 2


class FormatError(InputError):
    """A document was written in a format that this version does not read."""


class ResourcesError(OrchestratorError):
    """The cluster does not have, and did not get in time, what a cell needs."""

    retriable = True


class AlreadyRunningError(OrchestratorError):
    """Another process is working on the same cell."""

    retriable = True


class DivergedError(OrchestratorError):
    """Loss or gradient norm is not finite. Raised before the optimizer step; retrying would repeat it."""

    status = "DIVERGED"


class OutOfMemoryError(OrchestratorError):
    """A device or the host ran out of memory; the same configuration would do so again."""

    status = "OUT_OF_MEMORY"


class HangError(OrchestratorError):
    """A rank makes no progress, and the others wait for it."""

    retriable = True


class TimedOutError(OrchestratorError):
    """The cell used up `policy.timeout`."""

    status = "TIMED_OUT"


class CancelledError(OrchestratorError):
    """Somebody asked the cell to stop; a checkpoint was kept."""

    status = "CANCELLED"


class ShardingError(OrchestratorError):
    """The decoder-layer class matched nothing, or a layer did not become an FSDP unit."""

    status = "INFEASIBLE"


class CertificateError(OrchestratorError):
    """A proof of a backbone's integration certificate failed; training it would measure something else."""

    status = "UNCERTIFIED"


class CheckpointError(OrchestratorError):
    """A checkpoint could not be written or read."""

    retriable = True


class ResumeError(OrchestratorError):
    """A resumed run reads other rows, or computes another loss, than an earlier attempt did; retrying repeats it."""


class JobError(OrchestratorError):
    """A job ended, and there is no result of it to give."""


class StoreError(OrchestratorError):
    """The queue's database cannot be opened or is not ours alone."""

    retriable = True


class ClusterError(OrchestratorError):
    """The cluster, or the dispatcher on it, could not be reached or refused."""

    retriable = True


class ExportError(OrchestratorError):
    """The trained model could not be written as a Hugging Face folder."""

    retriable = True


class TasksError(OrchestratorError):
    """The data of a task of lm-evaluation-harness cannot be had."""

    retriable = True
