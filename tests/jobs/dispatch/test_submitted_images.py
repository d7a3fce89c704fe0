"""Jobs on images in the queue and on a clock: the folder that travels has them, and other pictures are another job."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from pictures import asked, png, shown, write

from jobs.dispatch.client import Submission
from jobs.dispatch.planning import plan_schedule, plan_submission
from jobs.dispatch.wire import ScheduleQuestion
from jobs.queue.rows import JobRequest
from orchestrator.errors import SpecError
from orchestrator.planning.plan import load_plan

CLOCK: Any = {"name": "nightly", "cron": "0 2 * * *", "timezone": "UTC", "rules": {}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finetune with its images beside it, in the working directory, as the gateway finds them on the head."""
    home = tmp_path / "home"
    home.mkdir()
    rows = [asked("What is it?", image=shown(home, number)) for number in range(6)]
    write(home / "train.jsonl", rows[:4])
    write(home / "validation.jsonl", rows[4:])
    spec = {
        "name": "eyes",
        "backbone": "tiny-smolvlm",
        "storage": str(tmp_path / "storage"),
        "export": {"folder": str(tmp_path / "export")},
        "recipe": {
            "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
            "adaptation": {"kind": "lora"},
            "sequence_length": 64,
            "global_batch_size": 2,
            "budget": {"kind": "steps", "amount": 2},
        },
    }
    (home / "finetune.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.chdir(home)
    return home


def submitted(folder: Path) -> JobRequest:
    return plan_submission(Submission(folder / "finetune.yaml").question)


def names_in(code: str | None) -> set[str]:
    assert code is not None
    with zipfile.ZipFile(code) as bundle:
        return set(bundle.namelist())


def test_a_submitted_job_is_planned_with_its_images_and_keeps_them_for_its_drivers(folder: Path) -> None:
    request = submitted(folder)

    assert [cell.cell_id for cell in request.cells] == [load_plan(folder / "finetune.yaml").cells[0].cell_id]
    frames = {f"frames/{number}.png" for number in range(6)}
    assert names_in(request.code) == {"finetune.yaml", "train.jsonl", "validation.jsonl", *frames}
    again = submitted(folder)
    assert (again.job_id, again.cells, again.code) == (request.job_id, request.cells, request.code)


def test_another_picture_under_the_same_name_is_another_job_and_another_bundle(folder: Path) -> None:
    before = submitted(folder)
    (folder / "frames" / "1.png").write_bytes(png(9))

    after = submitted(folder)
    assert after.job_id != before.job_id and after.cells[0].cell_id != before.cells[0].cell_id
    assert after.code != before.code
    assert after.cells[0].likeness != before.cells[0].likeness


@pytest.mark.parametrize("change", ["missing", "cut off"])
def test_a_picture_that_cannot_be_seen_is_refused_before_anything_is_queued(folder: Path, change: str) -> None:
    picture = folder / "frames" / "2.png"
    said = "does not exist in" if change == "missing" else "cannot be decoded"
    picture.unlink() if change == "missing" else picture.write_bytes(png(2)[:200])

    with pytest.raises(SpecError, match=rf"train.jsonl:3: .*frames/2.png.* {said}"):
        submitted(folder)
    with pytest.raises(SpecError, match=said):
        plan_schedule(ScheduleQuestion(**Submission(folder / "finetune.yaml").question, **CLOCK))


def test_a_tick_that_fires_again_is_the_same_job_unless_its_pictures_changed(folder: Path) -> None:
    _, template, *_ = plan_schedule(ScheduleQuestion(**Submission(folder / "finetune.yaml").question, **CLOCK))
    assert {f"frames/{number}.png" for number in range(6)} < names_in(template["code"])

    def fired(tick: str) -> JobRequest:
        return plan_submission({**Submission(folder / "finetune.yaml").question, "occurrence": f"nightly/{tick}"})

    first, again, next_day = (fired(f"2026-11-2{day}T02:00Z") for day in (2, 2, 3))
    assert (first.job_id, first.cells) == (again.job_id, again.cells)
    assert next_day.job_id != first.job_id
    assert next_day.cells[0].likeness == first.cells[0].likeness  # trained anew, and known how long that takes
    (folder / "frames" / "5.png").write_bytes(png(77))  # held out
    changed = fired("2026-11-23T02:00Z")
    assert changed.job_id != next_day.job_id and changed.cells[0].cell_id != next_day.cells[0].cell_id
