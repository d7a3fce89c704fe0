"""What becomes of a submitted spec on the head: a plan, and its code, kept on shared storage for all its drivers."""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from jobs.dispatch.wire import Question, ScheduleQuestion, Template
from jobs.driver.cell_jobs import find_infeasible
from jobs.driver.kinds.benchmark import load_benchmark
from jobs.driver.kinds.decision import load_decision
from jobs.driver.requests import job_request
from jobs.driver.rounds import Rounds
from jobs.queue.rows import JobRequest
from orchestrator.errors import SpecError
from orchestrator.layout import Storage
from orchestrator.planning.plan import Plan, load_plan

EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files make the same zip


def plan_submission(question: Question) -> JobRequest:
    """The job that a client's question asks for; the working directory holds the code. Raises SpecError."""
    from backbones.registry import load_plugin

    for plugin in question["plugins"]:
        load_plugin(plugin)
    plan = _load(question)
    if plan.infeasible and not question["skip_infeasible"]:
        raise SpecError(plan.infeasible)
    request = job_request(plan, Rounds(plan, find_infeasible(plan)).advance())
    priority = question["priority"]
    return replace(
        request,
        owner=question["owner"],
        priority=request.priority if priority is None else priority,
        spec_file=question["spec"],
        arguments=tuple(entry_arguments(question)),
        code=str(keep_code(Path.cwd(), Storage(plan.storage).code)),
        occurrence=question.get("occurrence"),
    )


def _load(question: Question) -> Plan:
    spec = Path(question["spec"])
    if benchmark := question.get("benchmark"):
        return load_benchmark(spec, **benchmark)
    if decide := question.get("decide"):
        return load_decision(spec, decide["max_seeds"], question.get("occurrence"))
    return load_plan(spec, question.get("occurrence"))


def plan_schedule(question: ScheduleQuestion) -> tuple[str, Template, str, str, dict[str, str]]:
    """What a schedule needs: name, what to submit at each tick, cron, time zone, rules. The spec is planned once."""
    own = ("name", "cron", "timezone", "rules")
    template = cast(Template, {key: value for key, value in question.items() if key not in own})
    template["code"] = plan_submission(template).code
    return question["name"], template, question["cron"], question["timezone"], dict(question["rules"])


def entry_arguments(question: Question) -> Iterator[str]:
    """The options of the entry point that repeat what was asked for."""
    for plugin in question["plugins"]:
        yield from ("--plugin", plugin)
    if question["skip_infeasible"]:
        yield "--skip-infeasible"
    if benchmark := question.get("benchmark"):
        yield from ("--warmup", str(benchmark["warm_up"]), "--steps", str(benchmark["measured"]))
        yield from ("--occurrence", benchmark["occurrence"])
        return
    if (decide := question.get("decide")) and decide["max_seeds"] is not None:
        yield from ("--max-seeds", str(decide["max_seeds"]))
    if not question["certificate"]:
        yield "--no-certificate"
    if question.get("keep_finished"):
        yield "--keep-finished"
    if question.get("occurrence"):
        yield from ("--occurrence", question["occurrence"])


def keep_code(folder: Path, archive: Path) -> Path:
    """Zips a folder into the archive, under its content's digest; the same content is kept once."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode())
        digest.update(content)
    kept = archive / f"{digest.hexdigest()[:20]}.zip"
    if not kept.exists():
        archive.mkdir(parents=True, exist_ok=True)
        unfinished = archive / f"{kept.name}.{os.getpid()}"
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as bundle:
            for path in files:
                entry = zipfile.ZipInfo(str(path.relative_to(folder)), EPOCH)
                entry.external_attr = path.stat().st_mode << 16
                bundle.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
        unfinished.replace(kept)
    return kept
