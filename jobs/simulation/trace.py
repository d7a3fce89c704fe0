"""The two files that `backbone simulate` reads: a trace of jobs (JSON lines) and a cluster (YAML). Both are strict."""

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from jobs.queue.gangs import Demand, Node, Room
from jobs.queue.model import OwnerRules, QueuedCell, Settings
from jobs.simulation.simulate import TraceJob
from orchestrator.errors import SpecError, SpecProblem, spec_error
from orchestrator.spec_files.source import SpecSource, read_spec, shown
from orchestrator.spec_files.spec import Count, Name, Strict, seconds
from orchestrator.spec_files.validation import check

MAX_TRACE_BYTES = 100_000_000
MAX_NODES = 20_000
SHOWN_PROBLEMS = 20
WHERE = "see docs/queue.md"

Amount = Annotated[int, Field(ge=0, le=1_000_000)]
Seconds = Annotated[float, Field(gt=0, le=1e10)]


class TraceLine(Strict):
    """One job of a trace; times in seconds."""

    id: Name
    gpus: Count
    duration: Seconds
    owner: Name = "nobody"
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    submitted: Annotated[float, Field(ge=0, le=1e10)] = 0.0
    preemptible: bool = True
    estimate: Seconds | None = None
    gpus_per_worker: Count = 1
    cpus_per_worker: Amount = 0
    memory_gib_per_worker: Amount = 0
    accelerator: str | None = Field(default=None, min_length=1)


class NodeGroup(Strict):
    """Machines of one kind."""

    count: Annotated[int, Field(gt=0, le=MAX_NODES)] = 1
    gpus: Count
    cpus: Amount = 0
    memory_gib: Amount = 0
    accelerator: str | None = Field(default=None, min_length=1)


class Owner(Strict):
    """What one owner may use."""

    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    gpu_quota: Count | None = None
    gpu_hours: Annotated[float, Field(gt=0, le=1e12)] | None = None


class QueueRules(Strict):
    """The settings of the policy, as durations such as 30m or 4h."""

    ageing_window: str = "4h"
    checkpoint: str = "60s"
    share_half_life: str = "24h"
    preemption: bool = True

    @field_validator("ageing_window", "checkpoint", "share_half_life")
    @classmethod
    def _check_duration(cls, text: str) -> str:
        seconds(text)
        return text


class QueueSettings(Strict):
    """Who may use how much, and how the policy decides: of a described cluster, or of a real one's dispatcher."""

    owners: dict[str, Owner] = Field(default_factory=dict)
    policy: QueueRules = QueueRules()

    def settings(self) -> Settings:
        rules = self.policy
        return Settings(
            ageing_window_s=seconds(rules.ageing_window),
            checkpoint_s=seconds(rules.checkpoint),
            share_half_life_s=seconds(rules.share_half_life),
            preemption=rules.preemption,
            owners={name: OwnerRules(one.weight, one.gpu_quota, one.gpu_hours) for name, one in self.owners.items()},
        )


class Cluster(QueueSettings):
    """A cluster that is only described."""

    name: Name = "cluster"
    nodes: Annotated[tuple[NodeGroup, ...], Field(min_length=1, max_length=1000)]


@dataclass(frozen=True)
class DescribedCluster:
    """What the policy is given."""

    name: str
    nodes: tuple[Node, ...]
    settings: Settings


def load_cluster(path: Path) -> DescribedCluster:
    """Reads a cluster. Raises SpecError with every problem."""
    source = read_spec(path)
    cluster, problems = check(source, Cluster, {})
    if problems or cluster is None:
        raise _spec_error(problems)
    if (count := sum(group.count for group in cluster.nodes)) > MAX_NODES:
        raise SpecError((source.problem("nodes", f"'nodes' are {count:,} in all; describe at most {MAX_NODES:,}"),))
    nodes = [
        Node(f"{group.accelerator or 'node'}-{kind}-{number:04d}", group.gpus, group.cpus, group.memory_gib, label)
        for kind, group in enumerate(cluster.nodes)
        for label in [group.accelerator]
        for number in range(group.count)
    ]
    return DescribedCluster(cluster.name, tuple(nodes), cluster.settings())


def load_queue_settings(path: Path) -> Settings:
    """Reads the settings of a real cluster's queue: `owners` and `policy`. Raises SpecError with every problem."""
    found, problems = check(read_spec(path), QueueSettings, {})
    if problems or found is None:
        raise _spec_error(problems)
    return found.settings()


def load_trace(path: Path, cluster: DescribedCluster) -> list[TraceJob]:
    """Reads a trace of jobs that can all run on `cluster`. Raises SpecError with every problem."""
    file, problems, jobs = str(path), list[SpecProblem](), list[TraceJob]()
    first_line: dict[str, int] = {}
    fits: dict[Demand, bool] = {}
    for number, text in enumerate(_read_lines(path), start=1):
        if not text.strip():
            continue
        source, fault = _parse(file, number, text)
        if source is None:
            problems.append(SpecProblem(file, fault, "", number))
            continue
        line, found = check(source, TraceLine, {})
        problems += found
        if found or line is None:
            continue
        if line.id in first_line:
            message = f"'id' is {shown(line.id)}, as on line {first_line[line.id]}; give each job its own"
            problems.append(source.problem("id", message))
            continue
        first_line[line.id] = number
        if fault := _impossible(line, cluster, fits):
            problems.append(source.problem("gpus", fault))
            continue
        jobs.append(_job(line))
    if problems:
        raise _spec_error(problems)
    if not jobs:
        raise spec_error(file, f'holds no job; write one JSON object a line, such as {{"id": "a", ...}} ({WHERE})')
    return jobs


def _impossible(line: TraceLine, cluster: DescribedCluster, fits: dict[Demand, bool]) -> str:
    """Why the job could never start, or an empty string."""
    if line.gpus % line.gpus_per_worker:
        return f"'gpus' is {line.gpus}, which is no multiple of gpus_per_worker, {line.gpus_per_worker}; change one"
    demand = _demand(line)
    if demand not in fits:
        fits[demand] = Room(cluster.nodes).place(demand) is not None
    if not fits[demand]:
        return f"'gpus' is {line.gpus}, but {demand} does not fit on {cluster.name}, even empty; ask for less"
    quota = cluster.settings.rules(line.owner).gpu_quota
    if quota is not None and line.gpus > quota:
        return f"'gpus' is {line.gpus}, but the quota of {line.owner} is {quota}; ask for less or raise gpu_quota"
    return ""


def _demand(line: TraceLine) -> Demand:
    workers = line.gpus // line.gpus_per_worker
    return Demand(workers, line.gpus_per_worker, line.cpus_per_worker, line.memory_gib_per_worker, line.accelerator)


def _job(line: TraceLine) -> TraceJob:
    predicted_s = line.duration if line.estimate is None else line.estimate
    cell = QueuedCell(line.id, line.owner, _demand(line), predicted_s, line.submitted, line.priority, line.preemptible)
    return TraceJob(cell, line.duration)


def _parse(file: str, number: int, text: str) -> tuple[SpecSource | None, str]:
    """A line as a source whose every key stands on that line, or what is wrong with it."""
    twice: list[str] = []

    def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(pairs)

    try:
        data = json.loads(text, object_pairs_hook=no_key_twice)
    except (json.JSONDecodeError, RecursionError) as error:
        what = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        )
        return None, f"not valid JSON: {what}; write one JSON object a line"
    if not isinstance(data, dict):
        return None, f'is {shown(data)}; write one JSON object a line, such as {{"id": "a", ...}} ({WHERE})'
    if twice:
        return None, f"duplicate key '{twice[0]}'; keep one of them"
    for key, value in data.items():
        if isinstance(value, float) and not math.isfinite(value):
            return None, f"'{key}' is {value}; it must be a finite number"
    return SpecSource(file, text, data, dict.fromkeys(data, number) | {"": number}), ""


def _read_lines(path: Path) -> list[str]:
    file = str(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.jsonl")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a trace, JSON lines"
        raise spec_error(file, f"{'is a folder' if path.is_dir() else 'no such file'}; {hint}")
    try:
        if path.stat().st_size > MAX_TRACE_BYTES:
            raise spec_error(file, f"is larger than {MAX_TRACE_BYTES:,} bytes; split the trace")
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise spec_error(file, f"not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise spec_error(file, f"cannot be read: {error.strerror}; check its permissions") from error


def _spec_error(problems: Sequence[SpecProblem]) -> SpecError:
    """At most `SHOWN_PROBLEMS` of them, pointing to this format's page: a wrong trace is wrong on every line."""
    told = [
        replace(problem, message=problem.message.replace("`backbone schema` prints what it may hold", WHERE))
        for problem in problems[:SHOWN_PROBLEMS]
    ]
    if more := len(problems) - len(told):
        told.append(SpecProblem(told[0].file, f"and {more} more problems; correct these first"))
    return SpecError(tuple(told))
