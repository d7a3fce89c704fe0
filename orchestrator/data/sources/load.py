"""From `recipe.data` to a split: which files, which rows in them, and every row that is wrong. No torch."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator.data.sources.cache import ScanCache, default_folder
from orchestrator.data.sources.containers import Part, part_of, part_of_hub
from orchestrator.data.sources.dataset import NOTHING, Block, Dataset, HeldBlock, Summary, block_of, occur_in
from orchestrator.data.sources.hub import PREFIX, HubDatasetError, resolve
from orchestrator.data.sources.lerobot import INFO, LeRobotError, part_of_lerobot
from orchestrator.data.sources.scan import Reading, scan_examples
from orchestrator.data.stdlib import stdlib_examples
from orchestrator.errors import SpecError, SpecProblem
from orchestrator.spec_files.source import SpecSource
from orchestrator.spec_files.spec import Data

BUILTIN = "builtin:stdlib"
MAX_PROBLEMS = 10
SUFFIXES = (".jsonl", ".parquet", ".csv", ".json")
Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Loaded:
    """A split, how many of its examples are held out and not in it, and the digests that another must not have."""

    dataset: Dataset
    removed: int
    digests: np.ndarray  # (examples,) S16, sorted; empty for training data


def load_split(
    source: SpecSource, split: Split, data: Data, held_out: np.ndarray = NOTHING, with_items: bool = False
) -> Loaded:
    """Reads `recipe.data.<split>` without what is held out (digests, sorted).

    Held-out data has its `items`, training data where they are asked for: some numbers for each example.
    Raises SpecError with file and row for every bad row (the first ten).
    """
    path, reference = f"recipe.data.{split}", getattr(data, split)
    summary = Summary(held_out=held_out, keeps_items=with_items or split == "validation", chunk=data.chunk)
    if reference.startswith("builtin:"):
        return _load_builtin(source, path, split, data, summary)
    reading = Reading(data.format, tuple(sorted((data.columns or {}).items())), data.chunk)
    return _load_parts(source, path, reference, _find_parts(source, path, reference, reading.format), reading, summary)


def find_path(source: SpecSource, text: str) -> Path | None:
    """A path of a spec: as written when absolute, else beside the spec file, else in the working directory."""
    path = Path(text).expanduser()
    places = [path] if path.is_absolute() else [Path(source.file).resolve().parent / path, Path.cwd() / path]
    return next((place.resolve() for place in places if place.exists()), None)


def _load_builtin(source: SpecSource, path: str, split: Split, data: Data, summary: Summary) -> Loaded:
    reference = getattr(data, split)
    if reference != BUILTIN:
        raise SpecError((source.problem(path, f"'{path}' is '{reference}'; the only built-in data is {BUILTIN}"),))
    if data.format != "messages":
        message = f"'recipe.data.format' is '{data.format}', but {BUILTIN} holds messages; set format: messages"
        raise SpecError((source.problem("recipe.data.format", message),))
    examples = stdlib_examples(split)
    scanned = scan_examples(examples)
    summary.add(scanned)
    is_out = occur_in(scanned.digests, summary.held_out)
    kept = tuple(example for example, out in zip(examples, is_out.tolist(), strict=True) if not out)
    return Loaded(summary.dataset(reference, (HeldBlock(kept),)), summary.removed, summary.digests)


def _load_parts(
    source: SpecSource, path: str, reference: str, parts: Sequence[Part], reading: Reading, summary: Summary
) -> Loaded:
    cache = ScanCache(default_folder())
    # A kept split has no items. What is held out was read a moment ago, and is short to add up again.
    key = None if summary.keeps_items else cache.key_of(parts, reading, reference, _digest_of(summary.held_out))
    if key and (known := cache.find_split(key, reading)):
        return Loaded(*known, NOTHING)
    problems: list[SpecProblem] = []
    blocks: list[Block] = []
    more = 0
    try:
        for scanned in cache.scan(parts, reading):
            problems += scanned.problems()
            more += scanned.more_faults
            if len(problems) >= MAX_PROBLEMS:
                break
            if len(scanned) and scanned.dimensions != summary.dimensions(scanned):
                problems.append(scanned.other_length(summary.dimensions(scanned)))
                continue
            if len(scanned) and scanned.has_images != summary.expects_images(scanned):
                problems.append(scanned.without_images(not scanned.has_images))
                continue
            if (again := summary.find_again(scanned)) is not None:
                problems.append(again)
                continue
            left, removed = summary.add(scanned)
            if left:
                blocks.append(block_of(scanned, reading, left, removed))
    except OSError as error:
        message = f"cannot be read: {error.strerror}; check what it is and its permissions"
        problems.append(SpecProblem(str(error.filename or parts[0].name), message))
    except LeRobotError as error:
        problems.append(SpecProblem(parts[0].name, str(error)))
    if len(problems) >= MAX_PROBLEMS:
        more += len(problems) - MAX_PROBLEMS
        others = f" ({more} more in what was read)" if more else ""
        message = f"'{path}' was read up to here: correct these {MAX_PROBLEMS} rows first{others}"
        problems = [*problems[:MAX_PROBLEMS], source.problem(path, message)]
    if problems:
        raise SpecError(tuple(problems))
    dataset = summary.dataset(reference, blocks)
    if not len(dataset) + summary.removed:
        message = f"'{path}' is '{reference}', which holds no rows; give a file with data"
        raise SpecError((source.problem(path, message),))
    if key and dataset.pictures is None:  # whose files may change without the others
        cache.keep_split(key, dataset, summary.removed)
    return Loaded(dataset, summary.removed, summary.digests)


def _digest_of(digests: np.ndarray) -> str:
    return hashlib.sha256(digests.tobytes()).hexdigest()


def _find_parts(source: SpecSource, path: str, reference: str, data_format: str) -> list[Part]:
    if reference.startswith(PREFIX):
        try:
            return [part_of_hub(resolve(reference, path.rpartition(".")[2], partial(find_path, source)))]
        except HubDatasetError as error:
            raise SpecError((source.problem(path, f"'{path}' is '{reference}': {error}"),)) from error
    if recorded := _find_recordings(source, path, reference, data_format):
        return [recorded]
    suffixes = (*SUFFIXES, ".txt") if data_format == "text" else SUFFIXES
    found = find_path(source, reference)
    if found is None:
        message = (
            f"'{path}' is '{reference}': no such file or folder beside the spec or in {Path.cwd()}; give the path of a "
            f"file or of a folder with some ({', '.join(suffixes)}; JSONL is best), or hf-dataset:ORG/NAME@REVISION"
        )
        raise SpecError((source.problem(path, message),))
    files = _of_one_kind(found, suffixes) if found.is_dir() else [found]
    if not files or files[0].suffix not in suffixes:
        message = f"'{path}' is '{reference}': no {' or '.join(suffixes)} file there; format {data_format} reads those"
        raise SpecError((source.problem(path, message),))
    try:
        return [part_of(file) for file in files]
    except OSError as error:
        message = f"cannot be read: {error.strerror}; check what it is and its permissions"
        raise SpecError((SpecProblem(str(error.filename), message),)) from None


def _find_recordings(source: SpecSource, path: str, reference: str, data_format: str) -> Part | None:
    """A LeRobotDataset's folder, and which of its episodes where it is written FOLDER#FIRST:LAST; None of others."""
    match = re.fullmatch(r"(.+?)(?:#(\d+):(\d+))?", reference)
    folder = None if match is None else find_path(source, match[1])
    if match is None or folder is None or not (folder / INFO).is_file():
        return None
    if data_format != "actions":
        message = f"'{path}' is '{reference}', a robot's recordings; set recipe.data.format to actions"
        raise SpecError((source.problem(path, message),))
    try:
        return part_of_lerobot(folder, int(match[2] or 0), int(match[3]) if match[3] else None)
    except LeRobotError as error:
        raise SpecError((source.problem(path, f"'{path}' is '{reference}': {error}"),)) from None
    except OSError as error:
        message = f"cannot be read: {error.strerror}; check what it is and its permissions"
        raise SpecError((SpecProblem(str(error.filename), message),)) from None


def _of_one_kind(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The data in a folder, by name. JSONL goes with plain text; a table beside it is another thing, such as notes."""
    files = sorted(file for file in folder.iterdir() if file.suffix in suffixes)
    kinds = [(".jsonl", ".txt"), *((suffix,) for suffix in SUFFIXES[1:])]
    return next((some for kind in kinds if (some := [file for file in files if file.suffix in kind])), [])
