"""Datasets of the Hugging Face hub, through the `datasets` library: `hf-dataset:ORG/NAME@REVISION#SPLIT`, or a folder
that the library reads, `hf-dataset:./FOLDER#SPLIT`. No code of a dataset is run.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from backbones.reference import hub_errors
from orchestrator.errors import InputError

PREFIX = "hf-dataset:"
_EXAMPLE = f"{PREFIX}ORG/NAME@REVISION#SPLIT"
_ON_HUB = re.compile(r"hf-dataset:(?P<path>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?(#(?P<split>[^#]+))?")
_IN_FOLDER = re.compile(r"hf-dataset:(?P<path>(/|~|\.\.?/)[^#]*)(#(?P<split>[^#]+))?")


class HubDatasetError(InputError):
    """A reference names no rows that can be read here."""


def resolve(reference: str, our_split: str, find_folder: Callable[[str], Path | None]) -> str:
    """The reference with its split, which is called as ours where it names none, and its folder as an absolute path.

    Raises HubDatasetError.
    """
    if match := _IN_FOLDER.fullmatch(reference):
        folder = find_folder(match["path"])
        if folder is None:
            raise HubDatasetError(f"there is no folder {match['path']}; a hub dataset is written {_EXAMPLE}")
        return f"{PREFIX}{folder}#{match['split'] or our_split}"
    match = _ON_HUB.fullmatch(reference)
    if match is None:
        raise HubDatasetError(f"write {_EXAMPLE}, such as {PREFIX}tatsu-lab/alpaca@main#train")
    if match["revision"] is None:
        raise HubDatasetError(f"the revision is missing, and without one the rows may change; write {_EXAMPLE}")
    return f"{PREFIX}{match['path']}@{match['revision']}#{match['split'] or our_split}"


@cache  # a task reads many spans of one dataset
def open_rows(reference: str) -> Any:
    """The rows of a resolved reference, mapped from the library's own cache.

    Raises HubDatasetError (no such split or files) and HubError.
    """
    import datasets

    match = _IN_FOLDER.fullmatch(reference) or _ON_HUB.fullmatch(reference)
    assert match is not None, reference
    revision = match.groupdict().get("revision")
    datasets.disable_progress_bars()
    try:
        with hub_errors(reference, match["path"]):
            rows = datasets.load_dataset(match["path"], revision=revision, split=match["split"])
    except (ValueError, FileNotFoundError) as error:  # the library's words for what it did not find
        raise HubDatasetError(f"{str(error).partition(chr(10))[0]} Write {_EXAMPLE}") from error
    for feature in rows.info.features.values():
        _leave_as_stored(feature)
    return rows


def _leave_as_stored(feature: Any) -> None:
    """Images stay bytes: what is decoded has no content that could be hashed."""
    import datasets

    if isinstance(feature, datasets.Image):
        feature.decode = False
    elif isinstance(feature, dict):
        for part in feature.values():
            _leave_as_stored(part)
    elif (part := getattr(feature, "feature", None)) is not None:  # of a list
        _leave_as_stored(part)


def rows_between(reference: str, first: int, last: int) -> Iterator[tuple[int, Any]]:
    """Rows of a resolved reference, numbered from 0. Columns that are empty in a row are left out of it."""
    for number, row in enumerate(open_rows(reference).select(range(first, last))):
        yield number, {key: value for key, value in row.items() if value is not None}
