"""Follows a spec to the first optimizer step of a real `backbone compare`: `python -m tools.data_way`.

Prints our functions that stand on the stack at that moment, the driver's and then the worker's, and every climb: a file
that calls up into another, each pair once, where a file stands above all that it imports. A callback is a climb, and so
is an object whose method a lower file calls. One machine, two workers, one tiny backbone, one step.

The workers load this file as a plug-in, which is how they come to be watched.
"""

import ast
import json
import os
import sys
import tempfile
import threading
from collections import defaultdict
from dataclasses import replace
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import Any

from backbones.registry import get_spec, register

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("backbones", "orchestrator", "jobs")
PLUGIN_ID = "tiny-followed"
NOTES = "DATA_WAY_NOTES"  # the folder in which driver and worker note what they saw
SPEC = """\
name: data-way
backbones: [tiny-followed]
seeds: 1
recipe:
  data: {train: "builtin:stdlib", validation: "builtin:stdlib"}
  sequence_length: 64
  global_batch_size: 2
  budget: {kind: steps, amount: 1}
placement: {workers: 2}
"""

Call = tuple[str, str]  # (file, function)
# Where a cell leaves the driver: today, and at 9e5abff.
HAND_OVERS = (("orchestrator/attempt/mailbox.py", "put"), ("orchestrator/worker.py", "run_attempt"))


class Watch:
    """Sees every call between our files, in the thread that installs it and in those that are started later."""

    def __init__(self) -> None:
        self.arrows: dict[tuple[Call, Call], None] = {}
        self._starters: dict[int, list[Call]] = {}  # the stack that started a thread, by the thread object

    def install(self) -> None:
        threading.setprofile(self._see)
        sys.setprofile(self._see)

    def note(self, name: str, frame: FrameType) -> None:
        """Writes down the stack above `frame` and the arrows so far; the first one to come is kept."""
        file = Path(os.environ[NOTES]) / f"{name}.json"
        if not file.exists():
            started = self._starters.get(id(threading.current_thread()), [])
            arrows = [[list(caller), list(callee)] for caller, callee in self.arrows]
            file.write_text(json.dumps({"frames": [*started, *_ours(frame)], "arrows": arrows}), encoding="utf-8")

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        callee = _call(frame)
        if callee is not None and (caller := _caller(frame)) is not None and caller[0] != callee[0]:
            self.arrows[caller, callee] = None
        if callee in HAND_OVERS:
            self.note("driver", frame)
        if frame.f_code.co_name == "start" and frame.f_code.co_filename == threading.__file__:
            stack = self._starters.get(id(threading.current_thread()), []) + _ours(frame)
            self._starters[id(frame.f_locals["self"])] = stack


def _ours(frame: FrameType | None) -> list[Call]:
    """Our functions on the stack, the outermost first."""
    found = []
    while frame is not None:
        if (call := _call(frame)) is not None and not call[1].startswith("<"):
            found.append(call)
        frame = frame.f_back
    return found[::-1]


def _caller(frame: FrameType) -> Call | None:
    """Our nearest function above a frame: a library in between carries a callback. None while a file is imported."""
    above = frame.f_back
    while above is not None and _place(above.f_code.co_filename) is None:
        above = above.f_back
    return None if above is None else _call(above)


@cache
def _place(file: str) -> str | None:
    path = Path(file)
    if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in PACKAGES:
        return None
    return str(path.relative_to(ROOT))


def _call(frame: FrameType) -> Call | None:
    place = _place(frame.f_code.co_filename)
    return None if place is None or frame.f_code.co_name == "<module>" else (place, frame.f_code.co_name)


def _watch_worker() -> None:
    """The plug-in's part: in a worker, watches until the first optimizer step."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    watch = Watch()
    watch.install()
    register_optimizer_step_pre_hook(lambda *_: watch.note("worker", sys._getframe(1)))


def floors() -> dict[str, int]:
    """The floor of each of our files: 1, or one above the highest that it imports, lazily or not."""
    imports = _imports()
    while True:
        try:
            order = list(TopologicalSorter(imports).static_order())
            break
        except CycleError as error:  # a circle has no floors: one of its arrows does not count
            first, second = error.args[1][:2]
            imports[second].discard(first)
            imports[first].discard(second)
    floor: dict[str, int] = {}
    for file in order:
        floor[file] = 1 + max((floor[used] for used in imports.get(file, ())), default=0)
    return floor


def _imports() -> dict[str, set[str]]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = {str(path.relative_to(ROOT))[:-3].removesuffix("/__init__").replace("/", "."): path for path in files}
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                used = {str(names[target].relative_to(ROOT)) for target in targets & names.keys() - {name}}
                found[str(path.relative_to(ROOT))] |= used
    return found


def main() -> None:
    import ray  # noqa: F401 - its own threads start before we look

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {NOTES: name, "BACKBONE_STORAGE": str(folder / "runs")}
        (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
        sys.argv = ["backbone", "compare", "--plugin", str(Path(__file__).resolve()), "--no-certificate"]
        sys.argv.append(str(folder / "spec.yaml"))
        try:
            from jobs.cli.app import main as backbone
        except ModuleNotFoundError:
            from jobs.cli import main as backbone
        watch = Watch()
        watch.install()
        try:
            backbone()
        except SystemExit as end:
            if end.code:
                raise
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
        _print(*(json.loads((folder / f"{part}.json").read_text("utf-8")) for part in ("driver", "worker")))


def _print(driver: dict[str, Any], worker: dict[str, Any]) -> None:
    frames = [*driver["frames"], *worker["frames"]]
    print(f"\n{len(frames)} of our frames from the command to the first optimizer step:")
    for number, (file, function) in enumerate(frames, 1):
        print(f"{number:3}  {file}  {function}")
    floor = floors()
    climbs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for caller, callee in (*driver["arrows"], *worker["arrows"]):
        if floor.get(callee[0], 0) > floor.get(caller[0], 0):
            climbs[caller[0], callee[0]].append(f"{caller[1]} -> {callee[1]}")
    print(f"\n{len(climbs)} climbs:")
    for (lower, upper), calls in climbs.items():
        print(f"     {lower} -> {upper}  ({', '.join(dict.fromkeys(calls))})")


if __name__ == "__main__":
    main()
else:
    register(replace(get_spec("tiny-llama2"), backbone_id=PLUGIN_ID))
    if NOTES in os.environ and Path(sys.argv[0]).name == "default_worker.py":
        _watch_worker()
