"""What `backbone eval` says to those who ask for what is not. What it does is shown beside finetunes."""

import sys
from pathlib import Path

import pytest

from jobs.cli.evaluate import find_exported
from orchestrator.errors import InputError
from orchestrator.tasks.harness import open_tasks


def test_a_name_that_is_neither_a_folder_nor_an_exported_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'nobody' is neither a folder nor a cell in"):
        find_exported(tmp_path, "nobody")
    (tmp_path / "cells" / "some-cell").mkdir(parents=True)
    with pytest.raises(InputError, match=r"some-cell has no exported folder: .* recipe\.evaluate\.tasks"):
        find_exported(tmp_path, "some-cell")


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'backbone-orchestrator\[eval\]'"):
        open_tasks(["hellaswag"])
