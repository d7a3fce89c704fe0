"""Reads a data source into examples, checking every row. No torch, no transformers."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from orchestrator.data.examples import Example, Role, Turn
from orchestrator.data.stdlib import stdlib_examples
from orchestrator.errors import SpecError, SpecProblem
from orchestrator.spec_files.source import SpecSource

BUILTIN = "builtin:stdlib"
MAX_PROBLEMS = 10
Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Dataset:
    """Examples in file order. `digest` hashes their content and which share a group, not where they were found."""

    reference: str
    examples: tuple[Example, ...]

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        numbers: dict[str, int] = {}  # a group's name may be that of a file
        for example in self.examples:
            number = numbers.setdefault(example.group, len(numbers))
            digest.update(f"{example.content_hash} {number}\n".encode())
        return digest.hexdigest()[:32]

    @property
    def learnable_bytes(self) -> int:
        return sum(example.learnable_bytes for example in self.examples)


def load_dataset(source: SpecSource, split: Split, reference: str, data_format: str) -> Dataset:
    """Reads `recipe.data.<split>`. Raises SpecError with file and line for every bad row (the first ten)."""
    path = f"recipe.data.{split}"
    if reference.startswith("builtin:"):
        return _load_builtin(source, path, split, reference, data_format)
    problems: list[SpecProblem] = []
    examples: list[Example] = []
    files = _find_files(source, path, reference, data_format)
    for item in (item for file in files for item in _read_file(file, data_format)):
        if isinstance(item, Example):
            examples.append(item)
        else:
            problems.append(item)
        if len(problems) == MAX_PROBLEMS:
            problems.append(
                source.problem(path, f"'{path}' was read up to here: correct these {MAX_PROBLEMS} rows first")
            )
            break
    if problems:
        raise SpecError(tuple(problems))
    if not examples:
        message = f"'{path}' is '{reference}', which holds no rows; give a file with data"
        raise SpecError((source.problem(path, message),))
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
        raise SpecError((source.problem(path, f"'{path}' is '{reference}'; the only built-in data is {BUILTIN}"),))
    if data_format != "messages":
        message = f"'recipe.data.format' is '{data_format}', but {BUILTIN} holds messages; set format: messages"
        raise SpecError((source.problem("recipe.data.format", message),))
    return Dataset(reference, tuple(stdlib_examples(split)))


def _find_files(source: SpecSource, path: str, reference: str, data_format: str) -> list[Path]:
    suffixes = (".jsonl", ".txt") if data_format == "text" else (".jsonl",)
    found = find_path(source, reference)
    if found is None:
        message = (
            f"'{path}' is '{reference}': no such file or folder beside the spec or in {Path.cwd()}; give the path of a "
            "JSONL file or of a folder with some (a hub dataset must first be saved as JSONL)"
        )
        raise SpecError((source.problem(path, message),))
    files = sorted(p for p in found.iterdir() if p.suffix in suffixes) if found.is_dir() else [found]
    if not files or files[0].suffix not in suffixes:
        message = f"'{path}' is '{reference}': no {' or '.join(suffixes)} file there; format {data_format} reads those"
        raise SpecError((source.problem(path, message),))
    return files


def _read_file(file: Path, data_format: str) -> Iterator[Example | SpecProblem]:
    """The examples of a file, and a problem for each row that is none."""
    try:
        with open(file, encoding="utf-8-sig", errors="strict") as stream:
            yield from _paragraphs(file, stream.read()) if file.suffix == ".txt" else _rows(file, stream, data_format)
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text ({error.reason}, byte {error.object[error.start]:#04x}); save it as UTF-8"
        yield SpecProblem(str(file), message)
    except OSError as error:
        yield SpecProblem(str(file), f"cannot be read: {error.strerror}; check what it is and its permissions")


def _paragraphs(file: Path, text: str) -> Iterator[Example]:
    """A plain text file: blank lines separate its examples."""
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            yield Example(group=file.name, text=paragraph.strip())


def _rows(file: Path, lines: Iterable[str], data_format: str) -> Iterator[Example | SpecProblem]:
    parse = _PARSERS[data_format]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise _RowError(
                    "", f"the row is {_shown(row)}; each line must be a JSON object such as {_SHAPES[data_format]}"
                )
            yield parse(row, _group(row, file))
        except _RowError as error:
            yield SpecProblem(str(file), str(error), error.path, number)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            yield SpecProblem(str(file), f"not valid JSON: {reason}; write one JSON object a line", "", number)


class _RowError(ValueError):
    def __init__(self, path: str, message: str):
        super().__init__(message)
        self.path = path


def _group(row: dict[str, Any], file: Path) -> str:
    return _text(row, "group", "group") if "group" in row else file.name


def _text(row: dict[str, Any], key: str, path: str) -> str:
    if key not in row:
        raise _RowError(path, f"'{path}' is missing; add it (keys here: {', '.join(row) or 'none'})")
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise _RowError(path, f"'{path}' is {_shown(value)}; it must be text that is not empty")
    if re.search("[\ud800-\udfff]", value):
        raise _RowError(path, f"'{path}' holds half of a surrogate pair, which is no text; remove the row or repair it")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _parse_messages(row: dict[str, Any], group: str) -> Example:
    if "messages" not in row:
        other = next((name for name, key in _KEYS.items() if key in row), None)
        hint = f"set recipe.data.format to {other}" if other else f"write {_SHAPES['messages']}"
        raise _RowError("messages", f"'messages' is missing; {hint} (keys here: {', '.join(row) or 'none'})")
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise _RowError("messages", f"'messages' is {_shown(messages)}; write {_SHAPES['messages']}")
    turns = tuple(_turn(message, f"messages.{index}") for index, message in enumerate(messages))
    roles = [turn.role for turn in turns]
    dialogue = roles[1:] if roles[0] == "system" else roles
    if "assistant" not in dialogue:
        raise _RowError("messages", "'messages' has no assistant turn, so there is no answer to learn; add one")
    expected = [("user", "assistant")[index % 2] for index in range(len(dialogue))]
    if dialogue != expected or dialogue[-1] != "assistant":
        order = ", ".join(roles)
        raise _RowError(
            "messages",
            f"'messages' has the roles {order}; after an optional system turn, user and assistant must alternate, "
            "and the assistant must be last",
        )
    return Example(group=group, turns=turns)


def _turn(message: Any, path: str) -> Turn:
    if not isinstance(message, dict):
        raise _RowError(path, f"'{path}' is {_shown(message)}; it must be an object with role and content")
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise _RowError(f"{path}.role", f"'{path}.role' is {_shown(role)}; use system, user or assistant")
    return Turn(cast(Role, role), _text(message, "content", f"{path}.content").strip())


def _parse_prompt_completion(row: dict[str, Any], group: str) -> Example:
    answer = "response" if "response" in row and "completion" not in row else "completion"
    prompt, completion = _text(row, "prompt", "prompt").strip(), _text(row, answer, answer).strip()
    return Example(group=group, turns=(Turn("user", prompt), Turn("assistant", completion)))


def _parse_text(row: dict[str, Any], group: str) -> Example:
    return Example(group=group, text=_text(row, "text", "text"))


_KEYS = {"prompt_completion": "prompt", "text": "text"}  # what tells that another format was meant
_SHAPES = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "prompt_completion": '{"prompt": "...", "completion": "..."}',
    "text": '{"text": "..."}',
}
_PARSERS: dict[str, Callable[[dict[str, Any], str], Example]] = {
    "messages": _parse_messages,
    "prompt_completion": _parse_prompt_completion,
    "text": _parse_text,
}
