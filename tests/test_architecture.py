"""The import direction, the doors to foreign systems, the rooms, circles, the torch-free modules, forbidden calls.

Over 300 lines: every rule stands beside the planted violations that show that it can fail.

Reads source only, except for the last test of the torch-free modules, which imports them in a fresh process.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("backbones", "orchestrator", "jobs")

# Imports point down this list only: jobs run the orchestrator, which trains backbones.
MAY_NOT_IMPORT = {
    "backbones": ("orchestrator", "jobs", "ray", "mlflow"),
    "orchestrator": ("jobs",),
    "jobs": ("mlflow",),
}

# One door per foreign system: (what is imported, the only modules that may).
DOORS = (
    ("ray.train", "orchestrator.attempt*"),
    ("ray.job_submission", "jobs.cluster.jobs_api"),
    ("mlflow", "orchestrator.tracking.trackers*"),
    ("flash_attn", "backbones.attention"),
    ("gguf", "backbones.gguf_folder"),
    ("peft", "backbones.adaptation"),
    ("flash_attn_interface", "backbones.attention"),
    ("torch.nn.attention.varlen", "backbones.varlen"),
    ("backbones.varlen", "backbones.attention"),
    ("pyarrow", "orchestrator.data.sources*"),
    ("av", "orchestrator.data.sources.lerobot"),
    ("datasets", "orchestrator.data.sources.hub"),
    ("PIL", "orchestrator.data.images*"),
    ("pandas", "jobs.notebook.frames"),
    ("lm_eval", "orchestrator.tasks*"),
    *(
        (simulator, "orchestrator.environments*")
        for simulator in ("gymnasium", "minigrid", "metaworld", "mujoco", "gym_pusht")
    ),
)

# The rooms of a package, from the ground up. Files import from their own room and from those before it, lazily or not.
ROOMS = {
    "orchestrator": (
        *("errors", "faults", "layout", "identity", "results", "hardware", "parallel", "tracking"),
        *("spec_files", "data", "environments", "planning", "cell_job", "training", "tasks", "rollouts"),
        *("certificate", "attempt"),
    ),
    "jobs": (
        *("formats", "queue", "cluster", "results", "report", "simulation"),
        *("tracking", "driver", "dispatch", "doctor", "cli", "notebook"),
    ),
}
# What people start with `python -m` or import: nothing of ours imports them.
DOORS_OF_JOBS = ("compare", "decide", "finetune", "benchmark", "certify", "dispatcher", "client", "api")
MOST_MODULES = 6  # at the top of jobs/, besides the doors
MOST_LINES = 300
WHY_LONG = "Over 300 lines"  # how the sentence begins that says why

# Planning answers in well under a second, and on a laptop without a GPU stack.
TORCH_FREE = (
    *(f"orchestrator.{name}" for name in ("errors", "identity", "results", "spec_files.spec")),
    *(f"orchestrator.planning.{name}" for name in ("plan", "sizes.memory", "sizes.flops")),
    *("orchestrator.data.examples", "orchestrator.data.stdlib", "jobs.cli.app", "jobs.api", "backbones.registry"),
    *("jobs.queue.policy", "jobs.simulation.simulate", "jobs.simulation.trace"),
)
HEAVY = ("torch", "ray", "mlflow", "transformers")
TYPE_CHECKING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@dataclass(frozen=True)
class Import:
    """`target` is absolute: `from a import b` gives both `a` and `a.b`, since b may be a module."""

    target: str
    line: int
    at_import_time: bool


@dataclass(frozen=True)
class Module:
    """One source file of our packages."""

    name: str
    path: str
    tree: ast.Module

    @cached_property
    def package(self) -> str:
        """The dotted package that a relative import starts from."""
        return self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]

    @cached_property
    def imports(self) -> list[Import]:
        return [
            Import(target, getattr(node, "lineno", 0), at_import_time)
            for node, at_import_time in walk(self.tree)
            for target in imported_names(node, self.package)
        ]


Modules = dict[str, Module]


def load_modules(root: Path) -> Modules:
    files = sorted(path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*.py"))
    return dict(parse(str(path), (root / path).read_text("utf-8")) for path in files)


def parse(path: str, source: str) -> tuple[str, Module]:
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return name, Module(name, path, ast.parse(source, filename=path))


def written(sources: dict[str, str]) -> Modules:
    """Modules from path to source, to show that the rules below can fail."""
    return dict(parse(path, source) for path, source in sources.items())


def walk(node: ast.AST, at_import_time: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, with whether it runs when the module is imported: not in functions, not under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and ast.unparse(node.test) in TYPE_CHECKING and child in node.body
        )
        yield child, at_import_time and not deferred
        yield from walk(child, at_import_time and not deferred)


def imported_names(node: ast.AST, package: str) -> list[str]:
    """The absolute names that a node imports, also by `importlib.import_module("name")` and as `ray.train.…`."""
    match node:
        case ast.Import(names=aliases):
            return [alias.name for alias in aliases]
        case ast.ImportFrom(module=module, names=aliases, level=level):
            anchor = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            base = ".".join([*anchor, *([module] if module else [])])
            return [base, *(f"{base}.{alias.name}" for alias in aliases)]
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
            return [name] if called_name(function) in ("importlib.import_module", "import_module", "__import__") else []
        case ast.Attribute(value=ast.Name(id="ray"), attr=attribute):
            return [f"ray.{attribute}"]
    return []


def called_name(function: ast.expr) -> str:
    """`a.b.c` of a called expression, or an empty string for anything but names and attributes."""
    match function:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            return f"{called_name(value)}.{attribute}"
    return ""


def within(target: str, package: str) -> bool:
    return target == package or target.startswith(f"{package}.")


def sites(module: Module, found: list[Import], remedy: str) -> Iterator[str]:
    for line, target in sorted({(site.line, site.target) for site in found}):
        yield f"{module.path}:{line} imports {target}: {remedy}"


# --- (a) direction and (b) doors ---


def direction_violations(modules: Modules) -> list[str]:
    found: list[str] = []
    for module in modules.values():
        package = module.name.partition(".")[0]
        for forbidden in MAY_NOT_IMPORT[package]:
            wrong = [site for site in module.imports if within(site.target, forbidden)]
            found += sites(module, wrong, f"{package}/ may not import {forbidden} (backbones <- orchestrator <- jobs)")
    return found


def door_violations(modules: Modules) -> list[str]:
    found: list[str] = []
    for foreign, door in DOORS:
        for module in modules.values():
            if not (fnmatch(module.name, door) or (door.endswith("*") and within(module.name, door[:-1]))):
                wrong = [site for site in module.imports if within(site.target, foreign)]
                found += sites(module, wrong, f"the only door to {foreign} is {door}; go through it")
    return found


# --- (c) rooms ---


def room_of(name: str) -> tuple[str, str]:
    """Package and room of a module; a module at the top of its package is a room of its own."""
    package, _, rest = name.partition(".")
    return package, rest.partition(".")[0]


def room_violations(modules: Modules) -> list[str]:
    found: list[str] = []
    for module in modules.values():
        package, room = room_of(module.name)
        order = (*ROOMS.get(package, ()), *(DOORS_OF_JOBS if package == "jobs" else ()))
        if not room or package not in ROOMS:
            continue
        if room not in order:
            found.append(f"{module.path} is in no room of {package}/: give {room} a place in ROOMS, or move the file")
            continue
        above = order[order.index(room) + 1 :]
        wrong = [
            site
            for site in module.imports
            if room_of(site.target)[0] == package
            and (room_of(site.target)[1] in above or room_of(site.target)[1] in set(DOORS_OF_JOBS) - {room})
        ]
        found += sites(module, wrong, f"{package}/{room} stands below it; move what both need down")
    return found


def circles(modules: Modules) -> list[str]:
    """Every circle of files, lazy imports and those for type checkers counted."""
    arrows = {
        name: {target for site in module.imports for target in _modules_of(site, modules)} - {name}
        for name, module in modules.items()
    }
    found: list[str] = []
    while True:
        try:
            TopologicalSorter(arrows).prepare()
            return found
        except CycleError as error:
            names: list[str] = error.args[1]
            found.append(f"{' <- '.join(names)}: a circle; move what both need into a file below")
            arrows[names[1]].discard(names[0])
            arrows[names[0]].discard(names[1])


def _modules_of(site: Import, modules: Modules) -> set[str]:
    """The module that an import names. `from package import module` is no import of the package's own face."""
    return {site.target} if site.target in modules and not modules[site.target].path.endswith("__init__.py") else set()


def crowded(modules: Modules) -> list[str]:
    """Modules at the top of jobs/ besides the doors, if they are too many."""
    tops = [module for module in modules.values() if module.path.count("/") == 1 and module.path.startswith("jobs/")]
    extra = sorted(module.path for module in tops if room_of(module.name)[1] not in (*DOORS_OF_JOBS, ""))
    return [f"jobs/ has {', '.join(extra)} at its top; a room wants them"] if len(extra) > MOST_MODULES else []


def long_files(sources: dict[str, str]) -> list[str]:
    """Files of more than MOST_LINES lines whose docstring does not say why."""
    return [
        f"{path} has {source.count(chr(10))} lines; part it, or let its docstring say '{WHY_LONG}: ...'"
        for path, source in sources.items()
        if source.count("\n") > MOST_LINES and WHY_LONG not in (ast.get_docstring(ast.parse(source)) or "")
    ]


# --- (d) torch-free modules ---


def loaded_with(name: str, modules: Modules) -> set[str]:
    """Our modules that importing `name` executes: itself and its parent packages."""
    parts = name.split(".")
    return {parent for n in range(1, len(parts) + 1) if (parent := ".".join(parts[:n])) in modules}


def heavy_imports(start: str, modules: Modules) -> list[str]:
    """`path:line imports torch, reached by a -> b -> c` for every heavy import that importing `start` executes."""
    found: list[str] = []
    chains: dict[str, tuple[str, ...]] = {name: (name,) for name in loaded_with(start, modules)}
    waiting = list(chains)
    while waiting:
        module = modules[waiting.pop()]
        for site in (site for site in module.imports if site.at_import_time):
            if any(within(site.target, heavy) for heavy in HEAVY):
                reached = " -> ".join(chains[module.name])
                found.append(f"{module.path}:{site.line} imports {site.target}, reached by {reached}: import it lazily")
            for reached_module in loaded_with(site.target, modules) - chains.keys():
                chains[reached_module] = (*chains[module.name], reached_module)
                waiting.append(reached_module)
    return found


# --- (e) calls that product code never makes ---

PICKLE_READERS = ("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads")
FORBIDDEN_CALLS = {
    **dict.fromkeys(PICKLE_READERS, "a pickle runs code; use JSON or safetensors"),
    **dict.fromkeys(("dill.load", "dill.loads", "joblib.load"), "a pickle runs code; use JSON or safetensors"),
    **dict.fromkeys(("yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all"), "use a SafeLoader"),
    **dict.fromkeys(("os.system", "os.popen", "subprocess.getoutput"), "pass subprocess an argument list, no shell"),
    **dict.fromkeys(("eval", "exec"), "input is data, never code"),
}
FORBIDDEN_ARGUMENTS = {
    ("trust_remote_code", True): "runs code from a model repository",
    ("weights_only", False): "torch.load would unpickle; load safetensors, or keep weights_only=True",
    ("shell", True): "pass subprocess an argument list, no shell",
    ("allow_pickle", True): "a pickle runs code",
}
OWNED_BY_RAY = "Ray Train sets up the process group of a gang"


def forbidden_calls(modules: Modules) -> list[str]:
    return [
        f"{module.path}:{line} {what}"
        for module in modules.values()
        for node, _ in walk(module.tree)
        for line, what in forbidden(node, module.tree)
    ]


def forbidden(node: ast.AST, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Call):
        name = full_name(called_name(node.func), tree)
        if name in FORBIDDEN_CALLS:
            yield node.lineno, f"calls {name}: {FORBIDDEN_CALLS[name]}"
        if name.endswith("init_process_group") and not is_fake(node):
            yield node.lineno, f"calls {name}: {OWNED_BY_RAY}"
        if name in ("yaml.load", "yaml.load_all") and not loader_is_safe(node, tree):
            yield node.lineno, f"calls {name} without a SafeLoader"
    for line, argument, value in constant_arguments(node):
        if isinstance(value, bool) and (argument, value) in FORBIDDEN_ARGUMENTS:
            yield line, f"passes {argument}={value}: {FORBIDDEN_ARGUMENTS[argument, value]}"


def is_fake(call: ast.Call) -> bool:
    """Whether a process group is asked for that moves nothing: a dry run has no gang."""
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == "fake"


def constant_arguments(node: ast.AST) -> Iterator[tuple[int, str, object]]:
    """`name=True` in calls and parameter defaults, `"name": True` in dictionaries, `options["name"] = True`."""
    pairs: list[tuple[ast.AST | None, ast.AST | None]] = []
    match node:
        case ast.keyword(arg=str(name)):
            pairs = [(ast.Constant(name), node.value)]
        case ast.Dict():
            pairs = [*zip(node.keys, node.values, strict=True)]
        case ast.Assign(targets=[ast.Subscript(slice=index)]):
            pairs = [(index, node.value)]
        case ast.arguments():
            pairs = [*zip(reversed([*node.posonlyargs, *node.args]), reversed(node.defaults), strict=False)]
            pairs += zip(node.kwonlyargs, node.kw_defaults, strict=True)
    for key, value in pairs:
        if isinstance(value, ast.Constant) and isinstance(key, ast.Constant | ast.arg):
            yield value.lineno, str(key.arg if isinstance(key, ast.arg) else key.value), value.value


def full_name(name: str, tree: ast.Module) -> str:
    """A called name with this file's import aliases undone: `p.load` after `import pickle as p` is `pickle.load`."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    first, dot, rest = name.partition(".")
    return aliases.get(first, first) + dot + rest


def loader_is_safe(call: ast.Call, tree: ast.Module) -> bool:
    """Whether the loader is SafeLoader, CSafeLoader, or a class of the same file that derives from one."""
    loaders = [keyword.value for keyword in call.keywords if keyword.arg == "Loader"] or call.args[1:2]
    bases = {
        node.name: [called_name(base) for base in node.bases] for node in tree.body if isinstance(node, ast.ClassDef)
    }

    def safe(name: str) -> bool:
        return name.rpartition(".")[2] in ("SafeLoader", "CSafeLoader") or any(map(safe, bases.get(name, [])))

    return bool(loaders) and safe(called_name(loaders[0]))


def report(violations: list[str]) -> str:
    return f"{len(violations)} violation(s):\n  " + "\n  ".join(violations)


@pytest.fixture(scope="module")
def modules() -> Modules:
    found = load_modules(ROOT)
    assert found, f"no product code under {ROOT}"
    return found


def test_imports_point_from_jobs_to_orchestrator_to_backbones_and_never_back(modules: Modules) -> None:
    violations = direction_violations(modules)
    assert not violations, report(violations)


def test_every_foreign_system_has_one_door(modules: Modules) -> None:
    violations = door_violations(modules)
    assert not violations, report(violations)


def test_files_import_from_their_own_room_and_those_below(modules: Modules) -> None:
    violations = room_violations(modules)
    assert not violations, report(violations)


def test_no_files_import_each_other_in_a_circle(modules: Modules) -> None:
    violations = circles(modules)
    assert not violations, report(violations)


def test_the_top_of_jobs_has_doors_and_few_other_modules(modules: Modules) -> None:
    violations = crowded(modules)
    assert not violations, report(violations)


def test_a_long_file_says_why(modules: Modules) -> None:
    folders = (*PACKAGES, "tests", "benchmarks", "tools")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    violations = long_files({str(path.relative_to(ROOT)): path.read_text("utf-8") for path in files})
    assert not violations, report(violations)


@pytest.mark.parametrize("name", TORCH_FREE)
def test_planning_modules_import_no_heavy_library(name: str, modules: Modules) -> None:
    if name not in modules:
        pytest.skip(f"{name} does not exist yet")
    violations = heavy_imports(name, modules)
    assert not violations, report(violations)


def test_importing_the_planning_modules_loads_no_heavy_library(modules: Modules) -> None:
    """What source cannot show: discovery at run time, and libraries that load torch on their own."""
    present = [name for name in TORCH_FREE if name in modules]
    script = (
        "import importlib, json, sys\n"
        f"for name in {present!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    if loaded:\n"
        "        break\n"
        "print(json.dumps([name, loaded]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    name, loaded = json.loads(ran.stdout.splitlines()[-1])
    assert not loaded, f"importing {name} loaded {loaded}; find out how with: python -X importtime -c 'import {name}'"


def test_product_code_runs_no_foreign_code(modules: Modules) -> None:
    violations = forbidden_calls(modules)
    assert not violations, report(violations)


# --- the rules can fail ---


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("backbones/registry.py", "from orchestrator.spec import Recipe"),
        ("backbones/registry.py", "def f():\n    import ray"),
        ("backbones/families.py", "from importlib import import_module\nimport_module('mlflow')"),
        ("orchestrator/plan.py", "from jobs import queue_policy"),
        ("orchestrator/tracking/spool.py", "from ...jobs import store"),
        ("jobs/report/contract.py", "import mlflow.tracking"),
    ],
)
def test_an_import_against_the_direction_is_found(path: str, source: str) -> None:
    assert direction_violations(written({path: source}))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("orchestrator/training.py", "from ray import train"),
        ("orchestrator/training.py", "import ray.train.torch as rt"),
        ("orchestrator/training.py", "import ray\nray.train.report({})"),
        ("jobs/dispatch/actor.py", "def f():\n    from ray.job_submission import JobSubmissionClient"),
        ("orchestrator/checkpoint.py", "from mlflow import MlflowClient"),
        ("orchestrator/tracking/writer.py", "import mlflow"),
        ("backbones/contract.py", "import flash_attn.bert_padding"),
    ],
)
def test_an_import_past_a_door_is_found(path: str, source: str) -> None:
    assert door_violations(written({path: source}))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("orchestrator/attempt/worker.py", "import ray.train"),
        ("orchestrator/tracking/trackers/mlflow.py", "import mlflow"),
        ("jobs/cluster/jobs_api.py", "from ray.job_submission import JobSubmissionClient"),
        ("backbones/attention.py", "import flash_attn"),
        ("jobs/compare.py", "import ray\nray.init()"),
    ],
)
def test_the_doors_themselves_stay_open(path: str, source: str) -> None:
    assert not door_violations(written({path: source}))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("jobs/queue/policy.py", "from jobs.report import html"),
        ("jobs/queue/policy.py", "def f():\n    from jobs.driver.launch import launch"),
        ("jobs/formats.py", "from jobs.queue import model"),
        ("jobs/results/judging/verdict.py", "import jobs.report.html"),
        ("jobs/cli/app.py", "from jobs.client import QueueClient"),
        ("jobs/compare.py", "from jobs.finetune import main"),
        ("jobs/leases.py", "import os"),
        ("orchestrator/errors.py", "from orchestrator.planning.plan import Plan"),
        ("orchestrator/training/step.py", "def f():\n    from orchestrator.attempt import worker"),
        ("orchestrator/planning/plan.py", "from ..training.loss import token_nats"),
        ("orchestrator/loops.py", "import os"),
    ],
)
def test_an_import_from_a_room_above_is_found_and_so_is_a_file_without_a_room(path: str, source: str) -> None:
    assert room_violations(written({path: source}))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("jobs/driver/launch.py", "from jobs.queue.queue import Queue"),
        ("jobs/driver/launch.py", "from jobs.driver import leases"),
        ("jobs/compare.py", "from jobs.cli.app import run_command"),
        ("orchestrator/attempt/worker.py", "from orchestrator.training import loss"),
        ("jobs/queue/policy.py", "from orchestrator.attempt import worker"),
    ],
)
def test_an_import_from_a_room_below_is_none(path: str, source: str) -> None:
    assert not room_violations(written({path: source}))


@pytest.mark.parametrize(
    "lazy", ["from jobs.queue import b", "def f():\n    from jobs.queue.b import g", "import jobs.queue.b as b"]
)
def test_a_circle_is_found_also_where_an_import_is_lazy(lazy: str) -> None:
    pair = {"jobs/queue/a.py": lazy, "jobs/queue/b.py": "from jobs.queue import a"}
    assert circles(written(pair))
    three = {"jobs/queue/a.py": lazy, "jobs/queue/b.py": "import jobs.queue.c", "jobs/queue/c.py": "from .a import f"}
    assert circles(written(three))
    assert not circles(written({"jobs/queue/a.py": lazy, "jobs/queue/b.py": "import os"}))


def test_a_crowd_at_the_top_of_jobs_is_found() -> None:
    doors = {f"jobs/{name}.py": "" for name in ("__init__", *DOORS_OF_JOBS)}
    others = {f"jobs/module{number}.py": "" for number in range(MOST_MODULES)}
    assert not crowded(written({**doors, **others}))
    assert crowded(written({**doors, **others, "jobs/one_more.py": ""}))


def test_a_long_file_without_a_reason_is_found() -> None:
    body = "\n" * MOST_LINES
    assert long_files({"jobs/a.py": f'"""A."""\n{body}'})
    assert not long_files({"jobs/a.py": f'"""A.\n\n{WHY_LONG}: one table.\n"""\n{body}'})
    assert not long_files({"jobs/a.py": body})


def test_a_heavy_import_is_found_through_our_own_modules_and_parent_packages() -> None:
    chain = written(
        {
            "orchestrator/plan.py": "from orchestrator import memory",
            "orchestrator/memory.py": "from .data import sizes",
            "orchestrator/data/__init__.py": "import transformers",
            "orchestrator/data/sizes.py": "try:\n    import torch.nn\nexcept ImportError:\n    pass",
        }
    )
    found = report(heavy_imports("orchestrator.plan", chain))
    assert "sizes.py:2 imports torch.nn, reached by orchestrator.plan -> orchestrator.memory" in found
    assert "__init__.py:1 imports transformers" in found


def test_lazy_and_type_checking_imports_are_not_heavy() -> None:
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import ray\n"
    guarded = lazy + "if not TYPE_CHECKING:\n    import ray"
    assert not heavy_imports("orchestrator.plan", written({"orchestrator/plan.py": lazy}))
    assert heavy_imports("orchestrator.plan", written({"orchestrator/plan.py": guarded}))


@pytest.mark.parametrize(
    "source",
    [
        "load(name, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "options['trust_remote_code'] = True",
        "def build(name, *, trust_remote_code: bool = True): ...",
        "import pickle as p\np.load(stream)",
        "from pickle import loads\nloads(data)",
        "torch.load(path, weights_only=False)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.UnsafeLoader)",
        "import yaml\nclass Mine(yaml.FullLoader): ...\nyaml.load(text, Mine)",
        "subprocess.run(command, shell=True)",
        "import os\nos.system(command)",
        "eval(text)",
        "import torch.distributed as dist\ndist.init_process_group('gloo')",
    ],
)
def test_a_forbidden_call_is_found(source: str) -> None:
    assert forbidden_calls(written({"jobs/cli.py": source}))


@pytest.mark.parametrize(
    "source",
    [
        "load(name, trust_remote_code=False)",
        "model.eval()",
        "import json\njson.loads(text)",
        "import yaml\nclass Base(yaml.SafeLoader): ...\nclass Mine(Base): ...\nyaml.load(text, Loader=Mine)",
        "import yaml\nyaml.safe_load(text)",
        "import torch.distributed as dist\ndist.init_process_group('fake', rank=0, world_size=8, store=store)",
    ],
)
def test_an_innocent_call_is_not_reported(source: str) -> None:
    assert not forbidden_calls(written({"jobs/cli.py": source}))
