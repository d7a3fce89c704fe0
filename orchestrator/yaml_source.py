"""YAML at the border: duplicate keys refused, `1e-4` is a number, every value knows its line. No torch, ray, mlflow."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import SpecError, SpecProblem, spec_error

MAX_SPEC_BYTES = 1_000_000
Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats and plain-string dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class SpecSource:
    """A parsed YAML file: its plain data and the line of every dotted path."""

    file: str
    text: str
    data: dict[str, Any]
    lines: dict[str, int]

    def problem(self, path: str, message: str) -> SpecProblem:
        """A problem at a dotted path, with its line (or the nearest enclosing one)."""
        return SpecProblem(self.file, message, path, self._line(path))

    def _line(self, path: str) -> int | None:
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return self.lines.get(path)


def read_spec(path: Path) -> SpecSource:
    """Reads a YAML mapping. Raises SpecError for a missing, huge, malformed or ambiguous file."""
    file = str(path)
    if not path.is_file():
        raise spec_error(file, _missing_file_message(path))
    if path.stat().st_size > MAX_SPEC_BYTES:
        raise spec_error(file, f"larger than {MAX_SPEC_BYTES} bytes; a spec is a short YAML file, not data")
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise spec_error(file, f"not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise SpecError((_syntax_problem(file, error),)) from error
    if not isinstance(root, yaml.MappingNode):
        raise spec_error(file, "must be a YAML mapping such as 'name: my-comparison'; see `backbone schema`")
    lines: dict[str, int] = {}
    problems = list(_walk(file, root, "", lines))
    if problems:
        raise SpecError(tuple(problems))
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 -- a SafeLoader: plain data only
    except yaml.YAMLError as error:
        raise SpecError((_syntax_problem(file, error),)) from error
    return SpecSource(file, text, data, lines)


def validate(source: SpecSource, model: type[Model]) -> Model:
    """Checks the data against a strict pydantic model; raises SpecError naming every problem at once."""
    try:
        return model.model_validate_json(json.dumps(source.data))
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise SpecError(tuple(_problem(source, model, detail) for detail in details)) from None


def _missing_file_message(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else "; give the path of a YAML spec"
    return "no such file" + hint


def _syntax_problem(file: str, error: yaml.YAMLError) -> SpecProblem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    line = None if mark is None else mark.line + 1
    return SpecProblem(file, f"not valid YAML: {what}; indent with spaces and quote special characters", "", line)


def _walk(file: str, node: yaml.Node, path: str, lines: dict[str, int]) -> Iterable[SpecProblem]:
    """Records the line of each path and yields a problem for each duplicate key, non-string key and alias."""
    if path in lines:  # an alias is the same node reached twice; anchors make specs hard to read and can explode
        return
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(file, item, f"{path}.{index}" if path else str(index), lines)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                yield SpecProblem(file, f"{path or 'the spec'} has a key that is not plain text; quote it", path, line)
                continue
            child = f"{path}.{key.value}" if path else key.value
            if key.value in seen:
                yield SpecProblem(
                    file, f"duplicate key '{child}' (first on line {seen[key.value]}); keep one of them", child, line
                )
                continue
            seen[key.value] = line
            yield from _walk(file, value, child, lines)
            lines[child] = line


def _problem(source: SpecSource, model: type[BaseModel], detail: ErrorDetails) -> SpecProblem:
    path = _dotted(detail["loc"], source)
    value = detail.get("input")
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _keys_beside(model, source, detail["loc"])
        return source.problem(path, f"unknown key '{path}'" + _suggestion(path, known))
    if kind == "missing":
        return source.problem(path, f"'{path}' is missing; add it (see `backbone schema`)")
    message = detail["msg"].removeprefix("Value error, ")
    return source.problem(path, f"'{path}' is {_shown(value)}: {message[:1].lower() + message[1:]}")


def _dotted(location: tuple[str | int, ...], source: SpecSource) -> str:
    """The user's dotted path: pydantic also puts union tags into `loc`, which are no keys of the file."""
    path, node = [], source.data
    for index, part in enumerate(location):
        last = index == len(location) - 1
        here = (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int))
        if here:
            node = node[part]  # type: ignore[index]
            path.append(str(part))
        elif last and isinstance(node, dict):
            path.append(str(part))
    return ".".join(path) or ".".join(map(str, location))


def _keys_beside(model: type[BaseModel], source: SpecSource, location: tuple[str | int, ...]) -> list[str]:
    """Every key the schema allows at the place of an unknown one, and anywhere else as a second choice."""
    schema = model.model_json_schema()
    definitions = [schema, *schema.get("$defs", {}).values()]
    title = str(location[-2]) if len(location) > 1 else ""
    near = [d for d in definitions if str(d.get("title", "")).lower() == title.lower()]
    names = [name for definition in near + definitions for name in definition.get("properties", {})]
    return list(dict.fromkeys(names))


def _suggestion(path: str, known: list[str]) -> str:
    parent, _, key = path.rpartition(".")
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not match:
        return "; remove it, or see `backbone schema` for the keys there are"
    return f"; did you mean '{parent + '.' if parent else ''}{match[0]}'?"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
