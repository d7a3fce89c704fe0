"""Environments by name: a kind and what it is called there, such as `minigrid:BabyAI-GoToLocal-v0`."""

import difflib
import importlib
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from orchestrator.environments.environment import Environment
from orchestrator.errors import InputError
from orchestrator.identity import content_hash

WHOLE = "@whole"  # behind a name of MiniGrid: seen from above


@dataclass(frozen=True)
class Kind:
    """A simulator: the package that it needs, the extra that installs it, and the function that opens one by name."""

    package: str
    extra: str
    opener: str  # module:function; of (name within the kind)
    example: str  # what a name looks like


KINDS = {
    "minigrid": Kind("minigrid", "minigrid", "orchestrator.environments.grid:open_grid", "BabyAI-GoToLocal-v0"),
    "metaworld": Kind("metaworld", "metaworld", "orchestrator.environments.arm:open_arm", "reach-v3"),
    "pusht": Kind("gym_pusht", "pusht", "orchestrator.environments.push:open_push", "PushT-v0"),
}


def find_problem(name: str) -> str | None:
    """What is wrong with a name, as far as it shows without its simulator; None where nothing is."""
    kind, _, within = name.partition(":")
    examples = ", ".join(f"{known}:{one.example}" for known, one in KINDS.items())
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"there is no environment {name!r}{hint} Write a kind and a name, such as {examples}"
    if not within:
        return f"{name!r} says which kind of environment, but not which one; write one such as {examples}"
    if not all(within.removesuffix(WHOLE).split(":")):
        return f"{name!r} has nothing on one side of a colon; write a name such as {examples}"
    return None


def module_of(name: str) -> str:
    """The module that a valid name imports first, which registers what it names; '' where there is none."""
    kind, _, within = name.partition(":")
    return within.rpartition(":")[0] if kind == "minigrid" else ""


def look_here() -> None:
    """Has modules looked for in the working directory too, as `python -m` does: a command's own path lacks it."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def code_of(name: str) -> str:
    """A hash of the source of the module that a valid name imports; '' where there is no module, or no source file.

    The module itself is not run, but the packages that it is in are.
    """
    if not (module := module_of(name)):
        return ""
    look_here()
    try:
        spec = find_spec(module)
    except Exception:  # whatever a package raises; who opens the environment says it
        return ""
    if spec is None or not spec.has_location or spec.origin is None or Path(spec.origin).suffix != ".py":
        return ""
    return content_hash(Path(spec.origin).read_text("utf-8", "replace"))


def find_missing_simulator(name: str) -> str | None:
    """What to do where the simulator of a valid name is not installed; None where it is."""
    kind = KINDS[name.partition(":")[0]]
    if find_spec(kind.package) is not None:
        return None
    return (
        f"environment {name!r} is simulated by {kind.package}, which is not installed here; "
        f"run `pip install 'backbone-orchestrator[{kind.extra}]'`, on every node of a cluster"
    )


def open_environment(name: str) -> Environment:
    """Raises InputError for a name that nothing answers to, and where its simulator is not installed."""
    if problem := find_problem(name) or find_missing_simulator(name):
        raise InputError(problem)
    kind, _, within = name.partition(":")
    module, _, function = KINDS[kind].opener.partition(":")
    opened: Environment = getattr(importlib.import_module(module), function)(within)
    return opened
