"""Reads a data source into examples, checking every row. No torch, no transformers."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from orchestrator.data.examples import Example, Role, Turn
from orchestrator.data.stdlib import stdlib_examples
from orchestrator.errors import SpecError, SpecProblem
from orchestrator.yaml_source import SpecSource

BUILTIN = "builtin:stdlib"
MAX_PROBLEMS = 10
Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Dataset:
    """Examples in file order. `digest` hashes their content and groups, not where they were found."""

    reference: str
    examples: tuple[Example, ...]

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(f"{example.content_hash} {example.group}\n".encode())
        return digest.hexdigest()[:32]

    @property
    def learnable_bytes(self) -> int:
        return sum(example.learnable_bytes for example in self.examples)


def load_dataset(source: SpecSource, split: Split, reference: str, data_format: str) -> Dataset:
    """Reads `recipe.data.<split>`. Raises SpecError with file and line for every bad row (the first ten)."""
    path = f"recipe.data.{split}"
    if reference.startswith("builtin:"):
        return _load_builtin(source, path, split, reference, data_format)
    files = _find_files(source, path, reference, data_format)
    problems: list[SpecProblem] = []
    examples: list[Example] = []
    for file in files:
        for example in _read_file(file, data_format, problems.append):
            examples.append(example)
        if len(problems) > MAX_PROBLEMS:
            break
    if problems:
        more = len(problems) - MAX_PROBLEMS
        tail = [SpecProblem(str(files[0]), f"and {more} more bad rows", path)] if more > 0 else []
        raise SpecError(tuple(problems[:MAX_PROBLEMS] + tail))
    if not examples:
        raise SpecError(
            (source.problem(path, f"'{path}' is {reference!r}, which holds no rows; give a file with data"),)
        )
    return Dataset(reference, tuple(examples))


def without_held_out(train: Dataset, validation: Dataset) -> tuple[Dataset, int]:
    """The training data without examples that are also held out, and how many were removed."""
    held_out = {example.content_hash for example in validation.examples}
    kept = tuple(example for example in train.examples if example.content_hash not in held_out)
    return Dataset(train.reference, kept), len(train.examples) - len(kept)


def find_path(source: SpecSource, text: str) -> Path | None:
    """A path of a spec: as written when absolute, else beside the spec file, else in the working directory."""
    path = Path(text).expanduser()
    places = [path] if path.is_absolute() else [Path(source.file).resolve().parent / path, Path.cwd() / path]
    return next((place.resolve() for place in places if place.exists()), None)


def _load_builtin(source: SpecSource, path: str, split: Split, reference: str, data_format: str) -> Dataset:
    if reference != BUILTIN:
        raise SpecError((source.problem(path, f"'{path}' is {reference!r}; the only built-in data is {BUILTIN}"),))
    if data_format != "messages":
        message = f"'recipe.data.format' is {data_format!r}, but {BUILTIN} holds messages; set format: messages"
        raise SpecError((source.problem("recipe.data.format", message),))
    return Dataset(reference, tuple(stdlib_examples(split)))


def _find_files(source: SpecSource, path: str, reference: str, data_format: str) -> list[Path]:
    suffixes = (".jsonl", ".txt") if data_format == "text" else (".jsonl",)
    found = find_path(source, reference)
    if found is None:
        message = (
            f"'{path}' is {reference!r}: no such file or folder beside the spec or in {Path.cwd()}; give the path of a "
            "JSONL file or of a folder with some (a hub dataset must first be saved as JSONL)"
        )
        raise SpecError((source.problem(path, message),))
    files = sorted(p for p in found.iterdir() if p.suffix in suffixes) if found.is_dir() else [found]
    if not files or files[0].suffix not in suffixes:
        message = f"'{path}' is {reference!r}: no {' or '.join(suffixes)} file there; format {data_format} reads those"
        raise SpecError((source.problem(path, message),))
    return files


def _read_file(file: Path, data_format: str, report: Callable[[SpecProblem], None]) -> Iterator[Example]:
    if file.suffix == ".txt":
        yield from _paragraphs(file)
        return
    parse = _PARSERS[data_format]
    with open(file, encoding="utf-8", errors="strict") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise _RowError("", f"the row is a {type(row).__name__}; each line must be a JSON object")
                yield parse(row, _group(row, file))
            except json.JSONDecodeError as error:
                report(SpecProblem(str(file), f"not valid JSON: {error.msg}; write one JSON object a line", "", number))
            except _RowError as error:
                report(SpecProblem(str(file), str(error), error.path, number))


def _paragraphs(file: Path) -> Iterator[Example]:
    """A plain text file: blank lines separate its examples."""
    for paragraph in file.read_text(encoding="utf-8").split("\n\n"):
        if paragraph.strip():
            yield Example(group=file.name, text=paragraph.strip())


class _RowError(ValueError):
    def __init__(self, path: str, message: str):
        super().__init__(message)
        self.path = path


def _group(row: dict[str, Any], file: Path) -> str:
    group = row.get("group", file.name)
    if not isinstance(group, str):
        raise _RowError("group", f"'group' is {group!r}; it must be text that names where the row comes from")
    return group


def _text(row: dict[str, Any], key: str, path: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        shown = "missing" if key not in row else json.dumps(value, ensure_ascii=False)[:60]
        raise _RowError(path, f"'{path}' is {shown}; it must be text that is not empty (keys here: {', '.join(row)})")
    return value


def _parse_messages(row: dict[str, Any], group: str) -> Example:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        found = ", ".join(row) or "none"
        raise _RowError("messages", f"'messages' must be a list of {{role, content}} (keys here: {found})")
    turns = tuple(_turn(message, f"messages.{index}") for index, message in enumerate(messages))
    roles = [turn.role for turn in turns]
    dialogue = roles[1:] if roles[0] == "system" else roles
    if "assistant" not in dialogue:
        raise _RowError("messages", "'messages' has no assistant turn, so there is no answer to learn; add one")
    expected = [("user", "assistant")[index % 2] for index in range(len(dialogue))]
    if dialogue != expected or dialogue[-1] != "assistant":
        order = ", ".join(roles)
        raise _RowError("messages", f"'messages' has roles {order}; user and assistant must alternate, assistant last")
    return Example(group=group, turns=turns)


def _turn(message: Any, path: str) -> Turn:
    if not isinstance(message, dict):
        raise _RowError(path, f"'{path}' must be an object with role and content")
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise _RowError(f"{path}.role", f"'{path}.role' is {role!r}; use system, user or assistant")
    return Turn(cast(Role, role), _text(message, "content", f"{path}.content").strip())


def _parse_prompt_completion(row: dict[str, Any], group: str) -> Example:
    answer = "response" if "response" in row and "completion" not in row else "completion"
    prompt, completion = _text(row, "prompt", "prompt").strip(), _text(row, answer, answer).strip()
    return Example(group=group, turns=(Turn("user", prompt), Turn("assistant", completion)))


def _parse_text(row: dict[str, Any], group: str) -> Example:
    return Example(group=group, text=_text(row, "text", "text"))


_PARSERS: dict[str, Callable[[dict[str, Any], str], Example]] = {
    "messages": _parse_messages,
    "prompt_completion": _parse_prompt_completion,
    "text": _parse_text,
}
