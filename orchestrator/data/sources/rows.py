"""A row of any container to an example, by `recipe.data.format`; every fault has a dotted path and a remedy.

Pure, but for the images that a row names. Over 300 lines: each format after the other, and the checks that they share.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from orchestrator.data.actions import question_about
from orchestrator.data.examples import Example, Image, Role, Turn
from orchestrator.data.images.files import ImageError, ImageReader
from orchestrator.data.sources.properties import properties_of

DataFormat = Literal["messages", "prompt_completion", "text", "sharegpt", "alpaca", "actions"]
Columns = tuple[tuple[str, str], ...]  # (the key that a format reads, the column that holds it)

SHAPES: dict[DataFormat, str] = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "prompt_completion": '{"prompt": "...", "completion": "..."}',
    "text": '{"text": "..."}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    "alpaca": '{"instruction": "...", "input": "...", "output": "..."}',
    "actions": '{"instruction": "...", "action": [0.1, -0.2, 1.0], "episode": 0}',
}
_TELLING: dict[DataFormat, str] = {  # the key that tells a format
    "messages": "messages",
    "prompt_completion": "prompt",
    "text": "text",
    "sharegpt": "conversations",
    "alpaca": "instruction",
    "actions": "action",
}
_READ: dict[DataFormat, frozenset[str]] = {  # the keys that a format reads, and whose text is no property of a row
    "messages": frozenset({"messages", "image", "images", "group"}),
    "prompt_completion": frozenset({"prompt", "completion", "response", "group"}),
    "text": frozenset({"text", "group"}),
    "sharegpt": frozenset({"conversations", "group"}),
    "alpaca": frozenset({"instruction", "input", "output", "group"}),
    "actions": frozenset({"action", "episode", "image", "images", "group"}),
}
_LARGEST = sys.float_info.max
_SHAREGPT_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class Step:
    """What chunks of actions need of a row."""

    episode: str
    number: int | None  # within the episode, where the rows say it
    action: tuple[float, ...]

    def leads_to(self, other: "Step") -> bool:
        """Whether the next row is the next step of the same episode. Raises RowError where it is out of order."""
        if other.episode != self.episode:
            return False
        if self.number is None and other.number is None:
            return True
        if self.number is None or other.number is None or other.number <= self.number:
            numbers = [_shown(number) for number in (self.number, other.number)]
            message = (
                f"'step' is {numbers[0]}, and {numbers[1]} in the next row of {self.episode}; chunks of actions are of "
                "rows in order: sort each episode's by step, or name the right column in recipe.data.columns.step"
            )
            raise RowError("step", message)
        return other.number == self.number + 1


class RowError(ValueError):
    """A row is no example; `path` is the key in it that is wrong."""

    def __init__(self, path: str, message: str):
        super().__init__(message)
        self.path = path


def read_row(row: Any, data_format: DataFormat, columns: Columns, group: str, images: ImageReader) -> Example:
    """The example of a row; `group` is its group where the row names none. Raises RowError."""
    if not isinstance(row, dict):
        message = f"the row is {_shown(row)}; each row must be a JSON object such as {SHAPES[data_format]}"
        raise RowError("", message)
    if columns:
        row = renamed(row, columns)
    telling = _TELLING[data_format]
    if telling not in row:
        raise RowError(telling, f"'{telling}' is missing; {_hint(row, data_format)} ({_keys(row)})")
    named = _text(row, "group", "group") if "group" in row else group
    if data_format == "messages":
        example = _parse_messages(row, named, images)
    elif data_format == "actions":
        example = _parse_actions(row, named, images)
    else:
        example = _PARSERS[data_format](row, named)
    others = row.keys() - _READ[data_format]
    return replace(example, columns=properties_of(row, others)) if others else example


def renamed(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """The row under the keys that a format reads."""
    for key, column in columns:
        if column not in row:
            message = f"recipe.data.columns.{key} is '{column}', which this row does not have; correct it"
            raise RowError(key, f"{message} ({_keys(row)})")
    taken = {column for _, column in columns}
    rest = {key: value for key, value in row.items() if key not in taken}
    return rest | {key: row[column] for key, column in columns}


def _hint(row: Mapping[str, Any], data_format: DataFormat) -> str:
    other = next((name for name, key in _TELLING.items() if key in row and name != data_format), None)
    return f"set recipe.data.format to {other}" if other else f"write {SHAPES[data_format]}"


def _keys(row: Mapping[str, Any]) -> str:
    return f"keys here: {', '.join(row) or 'none'}"


def _text(row: Mapping[str, Any], key: str, path: str) -> str:
    if key not in row:
        raise RowError(path, f"'{path}' is missing; add it ({_keys(row)})")
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise RowError(path, f"'{path}' is {_shown(value)}; it must be text that is not empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            message = f"'{path}' holds half of a surrogate pair, which is no text; remove the row or repair it"
            raise RowError(path, message) from None
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _conversation(turns: tuple[Turn, ...], key: str, group: str) -> Example:
    """Checks the order of the roles."""
    roles = [turn.role for turn in turns]
    dialogue = roles[1:] if roles[0] == "system" else roles
    if "assistant" not in dialogue:
        raise RowError(key, f"'{key}' has no assistant turn, so there is no answer to learn; add one")
    expected = [("user", "assistant")[index % 2] for index in range(len(dialogue))]
    if dialogue != expected or dialogue[-1] != "assistant":
        raise RowError(
            key,
            f"'{key}' has the roles {', '.join(roles)}; after an optional system turn, user and assistant must "
            "alternate, and the assistant must be last",
        )
    return Example(group=group, turns=turns)


def _listed(row: Mapping[str, Any], key: str, data_format: DataFormat) -> list[Any]:
    """The messages of a row; a column that can only hold text, as in CSV, has them as JSON."""
    messages = row[key]
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        try:
            messages = json.loads(messages)
        except ValueError as error:
            raise RowError(key, f"'{key}' is text and not valid JSON: {error}; write {SHAPES[data_format]}") from None
    if not isinstance(messages, list) or not messages:
        raise RowError(key, f"'{key}' is {_shown(messages)}; write {SHAPES[data_format]}")
    return messages


def _parse_messages(row: Mapping[str, Any], group: str, images: ImageReader) -> Example:
    """Images stand at the turns that show them, or in the row, and then parts of turns without a source take them."""
    messages = _listed(row, "messages", "messages")
    spare = _images(row, "", images) if "images" in row or "image" in row else []
    waiting = spare[::-1]
    turns = tuple([_turn(one, f"messages.{n}", images, waiting) for n, one in enumerate(messages)])
    if waiting:
        taken = len(spare) - len(waiting)
        message = (
            f"the row has {len(spare)} images and its messages show {taken} of them; "
            'put them into user turns as "images", or as parts {"type": "image"} of their content'
        )
        raise RowError("images", message)
    return _conversation(turns, "messages", group)


def _turn(message: Any, path: str, images: ImageReader, waiting: list[Image]) -> Turn:
    if not isinstance(message, dict):
        raise RowError(path, f"'{path}' is {_shown(message)}; it must be an object with role and content")
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise RowError(f"{path}.role", f"'{path}.role' is {_shown(role)}; use system, user or assistant")
    if not isinstance(message.get("content"), list) and "images" not in message and "image" not in message:
        return Turn(cast(Role, role), _text(message, "content", f"{path}.content").strip())  # as almost all are
    shown = _images(message, path, images)
    if isinstance(message.get("content"), list):
        content, parts = _parts(message["content"], f"{path}.content", images, waiting)
        shown += parts
    else:
        content = _text(message, "content", f"{path}.content").strip()
    if shown and role != "user":
        raise RowError(path, f"'{path}' has the role {role} and an image; only users show them: move it to their turn")
    return Turn(cast(Role, role), content, tuple(shown))


def _parts(parts: list[Any], path: str, images: ImageReader, waiting: list[Image]) -> tuple[str, list[Image]]:
    """The text of a message whose content is a list of parts, a line each, and its images."""
    texts, shown = [], []
    for number, part in enumerate(parts):
        place = f"{path}.{number}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(_text(part, "text", f"{place}.text").strip())
        elif kind == "image":
            key = next((key for key in ("image", "path", "url") if part.get(key) is not None), None)
            if key is not None:
                shown.append(_image(part[key], f"{place}.{key}", images))
            elif waiting:
                shown.append(waiting.pop())
            else:
                raise RowError(place, f"'{place}' has no image; add its path, or list it in the row's 'images'")
        else:
            what = 'write {"type": "text", "text": ...} or {"type": "image", "path": ...}'
            raise RowError(place, f"'{place}' is {_shown(part)}; {what}")
    if not texts:
        raise RowError(path, f"'{path}' has no text; add a part with some")
    return "\n".join(texts), shown


def _images(holder: Mapping[str, Any], path: str, images: ImageReader) -> list[Image]:
    """What an object has under `image` or `images`."""
    one, some = holder.get("image"), holder.get("images")
    prefix = f"{path}." if path else ""
    if one is not None and some is not None:
        raise RowError(f"{prefix}images", f"'{prefix}image' and '{prefix}images' are both there; list all in 'images'")
    if one is not None:
        return [_image(one, f"{prefix}image", images)]
    if some is None:
        return []
    if not isinstance(some, list) or not some:
        message = f"'{prefix}images' is {_shown(some)}; it must list paths or images, at least one: or leave it out"
        raise RowError(f"{prefix}images", message)
    return [_image(value, f"{prefix}images.{number}", images) for number, value in enumerate(some)]


def _image(value: Any, path: str, images: ImageReader) -> Image:
    try:
        return images.read(value)
    except ImageError as error:
        name = value.get("path") if isinstance(value, dict) else value
        shown = f"'{path}' holds bytes and" if isinstance(name, bytes | None) else f"'{path}' is {_shown(name)}, which"
        raise RowError(path, f"{shown} {error}") from None


def _parse_sharegpt(row: Mapping[str, Any], group: str) -> Example:
    messages = _listed(row, "conversations", "sharegpt")
    turns = tuple([_sharegpt_turn(one, f"conversations.{n}") for n, one in enumerate(messages)])
    return _conversation(turns, "conversations", group)


def _sharegpt_turn(message: Any, path: str) -> Turn:
    if not isinstance(message, dict):
        raise RowError(path, f"'{path}' is {_shown(message)}; it must be an object with from and value")
    speaker = message.get("from")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        raise RowError(f"{path}.from", f"'{path}.from' is {_shown(speaker)}; use human, gpt or system")
    return Turn(_SHAREGPT_ROLES[speaker], _text(message, "value", f"{path}.value").strip())


def _parse_alpaca(row: Mapping[str, Any], group: str) -> Example:
    """The input, where there is one, stands below the instruction, a blank line between."""
    asked, answer = _text(row, "instruction", "instruction").strip(), _text(row, "output", "output").strip()
    more = row.get("input")
    if more is not None and (not isinstance(more, str) or more.strip()):
        asked = f"{asked}\n\n{_text(row, 'input', 'input').strip()}"
    return Example(group=group, turns=(Turn("user", asked), Turn("assistant", answer)))


def _parse_prompt_completion(row: Mapping[str, Any], group: str) -> Example:
    answer = "response" if "response" in row and "completion" not in row else "completion"
    prompt, completion = _text(row, "prompt", "prompt").strip(), _text(row, answer, answer).strip()
    return Example(group=group, turns=(Turn("user", prompt), Turn("assistant", completion)))


def _parse_actions(row: Mapping[str, Any], group: str, images: ImageReader) -> Example:
    """OpenVLA's question about an instruction, and the action at this step of an episode, which is its group.

    Images are what the robot sees at this step.
    """
    question = question_about(_text(row, "instruction", "instruction"))
    action = action_of(row)
    episode = group if "group" in row else episode_of(row)
    return Example(group=episode, turns=(Turn("user", question, tuple(_images(row, "", images))),), action=action)


def step_of(row: Any, columns: Columns) -> Step:
    """What a chunk needs of a row of `actions`, whose group is not enough: it may hold episodes. Raises RowError."""
    if isinstance(row, dict) and columns:
        row = renamed(row, columns)
    if not isinstance(row, dict) or "action" not in row:
        raise RowError("action", "'action' is missing")  # reading the row says more
    episode = episode_of(row)
    if "group" in row:
        episode = f"{_text(row, 'group', 'group')} {episode}"
    number = row.get("step")
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise RowError("step", f"'step' is {_shown(number)}; it must be a whole number: correct it, or leave it out")
    return Step(episode, number, action_of(row))


def action_of(row: Mapping[str, Any]) -> tuple[float, ...]:
    """The numbers of a step. Raises RowError."""
    numbers = _listed(row, "action", "actions")
    if all(isinstance(one, list) for one in numbers):
        message = (
            f"'action' is {_shown(numbers)}, a list of actions; write a row for each step with its one action, and set "
            "recipe.data.actions.chunk to how many are learned at once"
        )
        raise RowError("action", message)
    return tuple([_number(number, f"action.{place}") for place, number in enumerate(numbers)])


def _number(value: Any, path: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -_LARGEST <= value <= _LARGEST:  # as NaN is not
        raise RowError(path, f"'{path}' is {_shown(value)}; it must be a finite number: repair the step or remove it")
    return float(value)


def episode_of(row: Mapping[str, Any]) -> str:
    """What an episode is called. Raises RowError."""
    if "episode" not in row:
        raise RowError("episode", f"'episode' is missing; add the number or name of the step's ({_keys(row)})")
    value = row["episode"]
    if isinstance(value, bool) or not isinstance(value, int):
        value = _text(row, "episode", "episode").strip()
    return f"episode {value}"


def _parse_text(row: Mapping[str, Any], group: str) -> Example:
    return Example(group=group, text=_text(row, "text", "text"))


_PARSERS: dict[DataFormat, Callable[[Mapping[str, Any], str], Example]] = {
    "prompt_completion": _parse_prompt_completion,
    "text": _parse_text,
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
}
