"""What travels between a driver and its gangs arrives as it was sent."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_jobs import make_job

from backbones.registry import backbone_ids, get_spec
from orchestrator.attempt.failure import Failure
from orchestrator.attempt.mailbox import Answer, Call, Mailbox
from orchestrator.attempt.taxonomy import Cause
from orchestrator.cell_job import CellJob, CertificateRequest, ExportRequest
from orchestrator.faults import parse_faults
from orchestrator.results import CellStatus
from orchestrator.spec_files.spec import Adaptation


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> CellJob:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    mailbox = Mailbox(tmp_path / "mailbox")
    mailbox.create()
    return mailbox


@pytest.mark.parametrize("backbone_id", backbone_ids())
def test_the_job_of_every_backbone_arrives_unchanged(backbone_id: str, job: CellJob, mailbox: Mailbox) -> None:
    spec = get_spec(backbone_id)
    recipe = job.cell.recipe.model_copy(update={"adaptation": Adaptation(kind="lora", rank=8)})
    request = CertificateRequest(spec, recipe, 2, Path("/certificates"), "launch", ("a.py",), 0.1 + 0.2)
    sent = replace(
        job,
        cell=replace(job.cell, backbone=spec, recipe=recipe),
        certificate=request,
        export=ExportRequest(Path("/out"), {"name": "a", "seeds": [1, 2], "recipe": {"x": None}}),
        deadline=1_800_000_000.123456,
        plugins=("a.py",),
        hang_timeout_s=12.5,
        faults=parse_faults("kill@rank1:step3:save,nan@rank0:step2@always"),
    )
    mailbox.put(Call(7, sent))
    assert mailbox.find_call(7) == Call(7, sent)
    assert mailbox.find_call(6) is None
    assert mailbox.find_call(8) is None


@pytest.mark.parametrize(
    "failure", [None, Failure("DivergedError", "naïve", 0, 1.25, False, CellStatus.DIVERGED, Cause.NON_FINITE, 3)]
)
def test_an_answer_arrives_unchanged_and_speaks_of_one_call(failure: Failure | None, mailbox: Mailbox) -> None:
    assert mailbox.find_answer(1) is None
    mailbox.answer(Answer(1, failure))
    assert mailbox.find_answer(1) == Answer(1, failure)
    assert mailbox.find_answer(2) is None


def test_the_end_is_a_call_without_a_job(mailbox: Mailbox) -> None:
    mailbox.put(Call(3))
    assert mailbox.find_call(3) == Call(3, None)
