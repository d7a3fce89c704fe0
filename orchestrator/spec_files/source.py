"""YAML at the border: duplicate keys refused, `1e-4` is a number, every value knows its line. No torch, ray, mlflow."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from orchestrator.errors import SpecError, SpecProblem, spec_error

MAX_SPEC_BYTES = 100_000

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
            found = "nothing" if root is None else "a list" if root.tag == _TAG + "seq" else "a single value"
            remedy = "write keys with values, such as 'name: my-comparison'; `backbone schema` prints the keys"
            raise spec_error(file, f"holds {found}, not a spec; {remedy}")
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
    remedy = (
        "indent with spaces, not tabs" if r"'\t'" in what else "check the indentation, and quote special characters"
    )
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
                name = key.value if isinstance(key, yaml.ScalarNode) else "that is a list or a mapping"
                yield SpecProblem(
                    file, f"{path or 'the spec'} has the key {name}, which is no text; quote it", path, line
                )
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
            return f"is {shown(node.value)}, which holds a character that no file name or text can have; remove it"
        if node.tag == _TAG + "int" and len(node.value) > 30:
            return f"is a number of {len(node.value)} digits; write a smaller one"
    return ""


def shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."
