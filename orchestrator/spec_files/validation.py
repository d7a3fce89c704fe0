"""A spec's plain data against its schema: every problem at once, with the place, the value and the remedy."""

import copy
import difflib
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import SpecProblem
from orchestrator.spec_files.source import SpecSource, shown

Model = TypeVar("Model", bound=BaseModel)


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
        if refusal := _refusal(path, model):
            return f"'{path}' is {shown(detail['input'])}; {refusal}"
        return f"unknown key '{path}'; {_suggestion(path, list(_key_paths(model)))}"
    found_here = f"'{path}' is {shown(detail['input'])}"
    if detail["type"] == "missing":
        if isinstance(position := detail["loc"][-1], int):
            return f"{found_here}; it must be a list of at least {position + 1}"
        return f"'{path}' is missing; add it (`backbone schema` prints what it may hold)"
    if detail["type"] == "value_error":
        return f"{found_here}; {detail['msg'].removeprefix('Value error, ')}"
    wanted = " or ".join(dict.fromkeys(_wanted(one) for one in found))
    return f"{found_here}; it must be {wanted}"


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
    "greater_than": lambda context: f"above {_plain(context['gt'])}",
    "greater_than_equal": lambda context: f"at least {_plain(context['ge'])}",
    "less_than": lambda context: f"below {_plain(context['lt'])}",
    "less_than_equal": lambda context: f"at most {_plain(context['le'])}",
}


def _plain(limit: float) -> str:
    return f"{int(limit):,}" if limit == int(limit) else f"{limit:g}"


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
        elif last and isinstance(node, dict) and str(part).isidentifier():  # a missing key; tags such as tuple[...] go
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


def _refusal(path: str, model: type[BaseModel]) -> str | None:
    """What to say of a key that no schema has and people still write; None for any other."""
    *parents, key = path.split(".")
    for parent in parents:
        field = model.model_fields.get(parent)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    refused: dict[str, str] = getattr(model, "refused", {})
    return refused.get(key)


def _suggestion(path: str, known: list[str]) -> str:
    """The key that was meant: one beside it with a similar name, else one of the same name elsewhere."""
    parent, _, key = path.rpartition(".")
    beside = {
        known_path.rpartition(".")[2]: known_path for known_path in known if known_path.rpartition(".")[0] == parent
    }
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
