"""What a caller is told of a job that came to nothing."""

import json
from pathlib import Path

import pytest
from report_documents import comparison_document, failed

from jobs.api import compare, finetune
from jobs.dispatch.client import Submission
from jobs.dispatch.planning import entry_arguments
from jobs.notebook import launching
from jobs.notebook.launching import require_success
from orchestrator.errors import InputError, JobError
from orchestrator.layout import JobFolder


def store(folder: Path, cells: int) -> Path:
    """A report of which the first so many cells failed."""
    document = comparison_document()
    for number in range(cells):
        document["cells"][number] = failed(document["cells"][number], "DIVERGED", "the loss is not finite at step 3")
    JobFolder(folder).report.write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_a_job_of_which_nothing_succeeded_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(
        JobError, match=r"no cell succeeded\. DIVERGED: the loss is not finite at step 3\. The report is"
    ):
        require_success(store(tmp_path, 9))


def test_a_job_of_which_something_succeeded_is_a_result(tmp_path: Path) -> None:
    result = require_success(store(tmp_path, 8))
    assert list(result.cells["status"]).count("DIVERGED") == 8


def test_what_a_caller_chooses_are_options_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Submission] = []

    def run(submission: Submission, *_: object) -> Path:
        asked.append(submission)
        return store(tmp_path, 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launching, "_run", run)
    (tmp_path / "compare.yaml").touch()
    compare(tmp_path / "compare.yaml")
    compare(tmp_path / "compare.yaml", keep_finished=True, certificate=False)
    assert [[*entry_arguments(one.question)] for one in asked] == [[], ["--no-certificate", "--keep-finished"]]


def test_a_job_that_is_refused_in_its_own_process_is_refused_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault that nobody could mean is looked at where the job runs, after the spec was found sound."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "BACKBONE_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("BACKBONE_FAULT", "nobody means this")
    for split, first in (("train", 0), ("validation", 100)):
        rows = [{"prompt": f"{n}?", "completion": f"The half of {n} is {n / 2}."} for n in range(first, first + 8)]
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "format": "prompt_completion"}
    recipe = {"data": data, "sequence_length": 64, "global_batch_size": 2, "budget": {"kind": "steps", "amount": 1}}

    with pytest.raises(InputError, match="BACKBONE_FAULT"):
        finetune(name="refused", backbone="tiny-llama2", recipe=recipe)

    assert "BACKBONE_FAULT" in capsys.readouterr().out
