"""The table of states: held against every change, and shown in docs/queue.md as it is."""

from pathlib import Path

import pytest

from jobs.queue.rows import JobState
from jobs.queue.transitions import CELLS, JOBS, as_markdown, check
from orchestrator.results import CellStatus

PAGE = Path(__file__).parents[3] / "docs" / "queue.md"
BEGIN, END = "<!-- transitions -->\n", "\n<!-- end of transitions -->"


def test_the_page_shows_the_table_that_the_code_keeps_to() -> None:
    shown = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    wanted = f"Jobs:\n\n{as_markdown(JOBS)}\n\nCells:\n\n{as_markdown(CELLS)}"
    assert shown == wanted, f"put this between the marks in {PAGE.name}:\n{wanted}"


def test_every_state_has_a_way_in_and_its_ways_out() -> None:
    assert set(JOBS) == {None, *JobState}
    assert {after for changes in JOBS.values() for after in changes} == set(JobState)
    kept = set(CellStatus) - {CellStatus.INFEASIBLE}  # such a cell never enters the queue
    assert set(CELLS) == {None, *kept}
    assert {after for changes in CELLS.values() for after in changes} == kept


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, JobState.SUCCEEDED), (JobState.SUCCEEDED, JobState.FAILED), (JobState.QUEUED, JobState.INTERRUPTED)],
)
def test_a_change_that_the_table_lacks_is_a_bug_of_ours(before: JobState | None, after: JobState) -> None:
    with pytest.raises(AssertionError, match=f"which cannot go from {before} to {after}"):
        check(JOBS, before, after, "which")
