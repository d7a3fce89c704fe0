"""Finished jobs and specs as people name them: a folder, a file, an id of a storage."""

from pathlib import Path

from backbones.reference import HubError
from jobs.results.differences.sides import Side, side_of_job, side_of_plan, side_of_report
from jobs.results.documents import Report, load_report
from orchestrator.errors import InputError, SpecError
from orchestrator.layout import JobFolder
from orchestrator.planning.plan import load_plan
from orchestrator.results import read_json
from orchestrator.spec_files.source import read_spec
from orchestrator.spec_files.spec import Comparison, Finetune
from orchestrator.spec_files.validation import check

WANTED = "a comparison or a finetune: its spec file, its report.json, its folder or its id"


def find_given(given: str | Path, storage: Path) -> Path:
    """The folder or file, which may be named by the id of a job in the storage. Raises InputError for nothing."""
    path = Path(given).expanduser()
    if not path.exists() and path.name == str(given):
        path = storage / path.name
    if not path.exists():
        raise InputError(f"{given}: no such folder or file; give the folder <name>-<hash> that a job wrote")
    return path


def job_folder(given: Path) -> JobFolder:
    """The job that a folder, or a file in it, is of."""
    return JobFolder((given if given.is_dir() else given.parent).resolve())


def load_side(given: str, storage: Path) -> Side:
    """What `backbone diff` compares: a report.json, the folder or id of a finished job, or a spec file.

    Raises InputError, which names what is wrong with it, and SpecError for a spec that is none.
    """
    path = find_given(given, storage)
    if path.is_file() and path.suffix not in (".json", ".html"):
        return _side_of_spec(path, given)
    return side_of_report(load_given_report(given, storage), given)


def load_given_report(given: str, storage: Path) -> Report:
    """The report.json, or that of a folder or id of a finished job. Raises InputError for anything else."""
    path = find_given(given, storage)
    if path.is_file() and path.suffix != ".html":
        return load_report(_checked(path))
    files = job_folder(path)
    if files.report.is_file():
        return load_report(files.report)
    if files.benchmark.is_file():
        raise _no_scores(files.benchmark)
    raise unfinished(files)


def _checked(path: Path) -> Path:
    """A JSON file that is a report, whatever state it is in."""
    try:
        document = read_json(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}; give {WANTED}") from None
    keys = document.keys() if isinstance(document, dict) else ()
    if "benchmark" in keys:
        raise _no_scores(path)
    if "comparison" not in keys:
        raise InputError(f"{path} holds no report; give {WANTED}")
    return path


def _no_scores(path: Path) -> InputError:
    return InputError(f"{path} is a benchmark, which has no scores to compare; give {WANTED}")


def _side_of_spec(path: Path, given: str) -> Side:
    source = read_spec(path)
    model = Finetune if "backbone" in source.data and "backbones" not in source.data else Comparison
    job, problems = check(source, model, model.stand_ins)
    if job is None or problems:
        raise SpecError(problems)
    try:
        return side_of_plan(load_plan(path), given)
    except (SpecError, HubError) as error:  # the spec is sound, and what it refers to is not here
        return side_of_job(job, given, f"{given} could not be planned here ({str(error).splitlines()[0]})")


def unfinished(files: JobFolder) -> InputError:
    """Of a job that has not written what it came to."""
    return InputError(
        f"{files.path} holds neither {files.report.name} nor {files.benchmark.name}; a job writes it when it ends: "
        "call what started the job again, which goes on or waits for it"
    )
