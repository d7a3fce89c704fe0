"""A job on this machine in a process of its own, which outlives whoever follows it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from jobs.dispatch.client import Submission
from jobs.dispatch.planning import entry_arguments
from jobs.driver.kinds.table import KINDS
from orchestrator.errors import InputError, JobError
from orchestrator.layout import JobFolder
from orchestrator.planning.plan import Plan
from orchestrator.tracking.sender import has_driver

LOOK_S = 0.2
LAST_LINES = 12


def run_here(plan: Plan, submission: Submission) -> Path:
    """Starts the entry point of the plan's kind, or follows a driver that runs already. The folder of its report.

    Raises JobError where it ends without a report, and InputError where the entry point refuses what it was given.
    """
    files, before = plan.files, _written_at(plan)
    process = None if has_driver(plan.folder) else _start(plan, submission)
    if process is None:
        print(f"{plan.job_id} runs already on this machine; following it", flush=True)
    try:
        code = _follow(plan, process)
    except KeyboardInterrupt:
        print(_how_to_come_back(plan, submission, process))
        raise
    if _written_at(plan) == before:
        raise _ended_without_report(plan, files.output, code)
    return plan.folder


def _start(plan: Plan, submission: Submission) -> "subprocess.Popen[bytes]":
    """In a session of its own, so that neither Ctrl-C nor the end of a notebook's kernel reaches it."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", KINDS[plan.kind].entry_point, str(submission.spec)]
    with open(plan.files.output, "wb") as output:
        return subprocess.Popen(
            [*command, *entry_arguments(submission.question)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )


def _follow(plan: Plan, process: "subprocess.Popen[bytes] | None") -> int | None:
    """Prints what the driver prints until it is over; its exit code, where it is a child of ours."""
    files = plan.files
    place = 0 if process is not None or not files.output.exists() else files.output.stat().st_size
    while True:
        over = not has_driver(plan.folder) if process is None else process.poll() is not None
        place = _print_from(files, place)
        if over:
            return None if process is None else process.returncode
        time.sleep(LOOK_S)


def _print_from(files: JobFolder, place: int) -> int:
    if not files.output.exists():
        return place
    with open(files.output, "rb") as output:
        output.seek(place)
        text = output.read()
    whole = text[: text.rfind(b"\n") + 1]
    print(whole.decode(errors="replace"), end="", flush=True)
    return place + len(whole)


def _written_at(plan: Plan) -> int | None:
    """When the report was last written; every launch that ends in order writes it."""
    file = plan.files.benchmark if plan.kind == "benchmark" else plan.files.report
    return file.stat().st_mtime_ns if file.exists() else None


def _ended_without_report(plan: Plan, output: Path, code: int | None) -> Exception:
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines() if output.exists() else []
    last = "\n".join(line for line in lines[-LAST_LINES:] if line.strip())
    if code == InputError.exit_code:
        return InputError(last.removeprefix("error: "))
    how = "" if code is None else f" with exit code {code}"
    return JobError(
        f"{plan.job_id} ended{how} and wrote no report; the same call continues it. {output} ends with:\n{last}"
    )


def _how_to_come_back(plan: Plan, submission: Submission, process: "subprocess.Popen[bytes] | None") -> str:
    again = "make the same call again"
    if submission.benchmark is not None:  # the call by itself would measure anew
        again += f" with occurrence='{submission.benchmark.occurrence}'"
    stop = "" if process is None else f"; `kill -INT {process.pid}` ends it at its next checkpoint"
    return (
        f"\n{plan.job_id} goes on without this cell and writes to {plan.files.output}. To come back, {again}; "
        f"load_report('{plan.folder}') gives the result once it is over{stop}"
    )
