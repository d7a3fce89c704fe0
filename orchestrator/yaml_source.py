"""YAML at the border: duplicate keys refused, `1e-4` is a number, every value knows its line. No torch, ray, mlflow."""

import copy
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from orchestrator.errors import SpecError, SpecProblem, spec_error

MAX_SPEC_BYTES = 100_000
Model = TypeVar("Model", bound=BaseModel)

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases and dates, and with the numbers of YAML 1.2: `1e-4` is one, `1:30` and `010` are text.

    An alias makes a short file explode and a line number ambiguous; a spec needs none.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"the alias *{event.anchor} is not allowed; write the value out"
            raise ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in resolvers if pair[0] not in (_TAG + "timestamp", _TAG + "int", _TAG + "float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBERS = {
    "int": r"[-+]?(0|[1-9][\d_]*)|0x[\da-fA-F]+",
    "float": r"[-+]?(\d[\d_]*\.\d*|\.\d+|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$", re.ASCII), list("-+0123456789."))


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
    file, text = str(path), _read_text(path)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            found = "is empty" if root is None else f"holds a {'list' if root.id == 'sequence' else 'single value'}"
            remedy = "write a mapping such as 'name: my-comparison'; `backbone schema` prints the keys"
            raise spec_error(file, f"{found}, not a spec; {remedy}")
        lines: dict[str, int] = {}
        problems = tuple(_walk(file, root, "", lines))
        if problems:
            raise SpecError(problems)
        data = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise SpecError((_syntax_problem(file, error),)) from error
    except RecursionError:
        raise spec_error(file, "nested too deeply; a spec has at most four levels, see `backbone schema`") from None
    return SpecSource(file, text, data, lines)


def check(
    source: SpecSource, model: type[Model], stand_ins: dict[str, Any]
) -> tuple[Model | None, tuple[SpecProblem, ...]]:
    """Checks the data against a strict pydantic model: the model, and every problem at once.

    With problems the model is what the file says without the wrong parts, so that the caller can find what else is
    wrong; `stand_ins` are values for wrong or missing parts that are required. It is None when too little is left.
    """
    try:
        return model.model_validate_json(json.dumps(source.data)), ()
    except ValidationError as error:
        problems = tuple(_problems(source, model, error.errors(include_url=False)))
    data = copy.deepcopy(source.data)
    for problem in sorted(problems, key=lambda problem: problem.path, reverse=True):  # a list shrinks from its end
        stood_for = next((path for path in stand_ins if is_within(problem.path, path)), None)
        if stood_for is None:
            _remove(data, problem.path)
        else:
            _replace(data, stood_for, stand_ins[stood_for])
    try:
        return model.model_validate_json(json.dumps(data)), problems
    except ValidationError:
        return None, problems


def is_within(path: str, ancestor: str) -> bool:
    """Whether a dotted path is `ancestor` or lies below it."""
    return path == ancestor or path.startswith(f"{ancestor}.")


def _read_text(path: Path) -> str:
    file = str(path)
    if path.is_dir():
        raise spec_error(file, "is a folder; give the path of a YAML spec")
    if not path.is_file():
        raise spec_error(file, _missing_file_message(path))
    try:
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise spec_error(file, f"is larger than {MAX_SPEC_BYTES:,} bytes; a spec is a short YAML file, not data")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise spec_error(file, f"not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise spec_error(file, f"cannot be read: {error.strerror}; check its permissions") from error


def _missing_file_message(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else "; give the path of a YAML spec"
    return "no such file" + hint


def _syntax_problem(file: str, error: yaml.YAMLError) -> SpecProblem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    line = None if mark is None else mark.line + 1
    if isinstance(error, ComposerError | ConstructorError):
        return SpecProblem(file, what, "", line)
    remedy = "indent with spaces, not tabs" if r"'\t'" in what else "check the indentation, and quote special characters"
    return SpecProblem(file, f"not valid YAML: {what}; {remedy}", "", line)


def _walk(file: str, node: yaml.Node, path: str, lines: dict[str, int]) -> Iterable[SpecProblem]:
    """Records the line of each path and yields a problem for each duplicate key and each key or value JSON lacks."""
    line = lines.setdefault(path, node.start_mark.line + 1)
    if fault := _fault(node):
        yield SpecProblem(file, f"'{path}' {fault}", path, line)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(file, item, f"{path}.{index}" if path else str(index), lines)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
                shown = key.value if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                yield SpecProblem(file, f"{path or 'the spec'} has the key {shown}, which is no text; quote it", path, line)
                continue
            child = f"{path}.{key.value}" if path else key.value
            if key.value in seen:
                first = f"first on line {seen[key.value]}"
                yield SpecProblem(file, f"duplicate key '{child}' ({first}); keep one of them", child, line)
                continue
            seen[key.value] = lines[child] = line
            yield from _walk(file, value, child, lines)


def _fault(node: yaml.Node) -> str:
    """What a value is that JSON, and so a spec, cannot hold; empty when it is plain."""
    if node.tag not in _PLAIN_TAGS:
        tag = node.tag.replace(_TAG, "!!")
        return f"has the type {tag}; a spec holds text, numbers, true and false, lists and mappings"
    if isinstance(node, yaml.ScalarNode):
        if node.tag == _TAG + "str" and re.search(r"[\0\ud800-\udfff]", node.value):
            return f"is {_shown(node.value)}, which holds a character that no file name or text can have; remove it"
        if node.tag == _TAG + "int" and len(node.value) > 30:
            return f"is a number of {len(node.value)} digits; write a smaller one"
    return ""


def _problems(source: SpecSource, model: type[BaseModel], details: list[ErrorDetails]) -> Iterator[SpecProblem]:
    """One problem per place: pydantic reports each alternative of a union on its own."""
    by_path: dict[str, list[ErrorDetails]] = {}
    for detail in details:
        by_path.setdefault(_dotted(detail["loc"], source), []).append(detail)
    for path, found in by_path.items():
        if any(other != path and is_within(other, path) for other in by_path):
            continue  # the alternative that the value is not meant to be
        yield source.problem(path, _message(path, found, model))


def _message(path: str, found: list[ErrorDetails], model: type[BaseModel]) -> str:
    detail = found[0]
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{path}'; {_suggestion(path, list(_key_paths(model)))}"
    if detail["type"] == "missing":
        return f"'{path}' is missing; add it (`backbone schema` prints what it may hold)"
    shown = f"'{path}' is {_shown(detail['input'])}"
    if detail["type"] == "value_error":
        return f"{shown}; {detail['msg'].removeprefix('Value error, ')}"
    wanted = " or ".join(dict.fromkeys(_wanted(one) for one in found))
    return f"{shown}; it must be {wanted}"


_WANTED: dict[str, Callable[[dict[str, Any]], str]] = {
    "int_type": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "bool_type": lambda _: "true or false",
    "string_type": lambda _: "text (put it in quotes)",
    "string_too_short": lambda _: "text that is not empty",
    "model_type": lambda _: "a mapping of keys to values",
    "dict_type": lambda _: "a mapping of keys to values",
    "tuple_type": lambda _: "a list such as [a, b]",
    "too_short": lambda context: f"a list of at least {context['min_length']}",
    "too_long": lambda context: f"a list of at most {context['max_length']}",
    "literal_error": lambda context: str(context["expected"]).replace("'", ""),
    "greater_than": lambda context: f"above {context['gt']:g}",
    "greater_than_equal": lambda context: f"at least {context['ge']:g}",
    "less_than": lambda context: f"below {context['lt']:g}",
    "less_than_equal": lambda context: f"at most {context['le']:g}",
}


def _wanted(detail: ErrorDetails) -> str:
    describe = _WANTED.get(detail["type"])
    if describe is None:
        return f"different ({detail['msg'][:1].lower()}{detail['msg'][1:]})"
    return describe(detail.get("ctx", {}))


def _dotted(location: tuple[str | int, ...], source: SpecSource) -> str:
    """The user's dotted path: pydantic also puts union tags into `loc`, which are no keys of the file."""
    path, node = [], source.data
    for index, part in enumerate(location):
        last = index == len(location) - 1
        here = (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if here:
            node = node[part]  # type: ignore[index]
            path.append(str(part))
        elif last and isinstance(node, dict):
            path.append(str(part))
    return ".".join(path) or ".".join(map(str, location))


def _key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted path of every key that the schema knows."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _key_paths(kind, f"{path}.")


def _suggestion(path: str, known: list[str]) -> str:
    """The key that was meant: one beside it with a similar name, else one of the same name elsewhere."""
    parent, _, key = path.rpartition(".")
    beside = {known_path.rpartition(".")[2]: known_path for known_path in known if known_path.rpartition(".")[0] == parent}
    elsewhere = {known_path.rpartition(".")[2]: known_path for known_path in reversed(known)}
    for names, cutoff in ((beside, 0.6), (elsewhere, 0.85)):
        if near := difflib.get_close_matches(key, names, n=1, cutoff=cutoff):
            return f"did you mean '{names[near[0]]}'?"
    return f"remove it; the keys {f'of {parent}' if parent else 'here'} are {', '.join(beside)}"


def _remove(data: Any, path: str) -> None:
    """Deletes what a dotted path leads to, where it leads to something."""
    *parents, last = path.split(".")
    for part in parents:
        data = _child(data, part)
    if isinstance(data, dict):
        data.pop(last, None)
    elif isinstance(data, list) and last.isdigit() and int(last) < len(data):
        del data[int(last)]


def _replace(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        data = data[part] if isinstance(data.get(part), dict) else {}
    data[last] = value


def _child(data: Any, part: str) -> Any:
    if isinstance(data, dict):
        return data.get(part)
    return data[int(part)] if isinstance(data, list) and part.isdigit() and int(part) < len(data) else None


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
