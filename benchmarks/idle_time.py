"""The time in which nothing trains, from the first optimizer step of the demo to its last: this checkout and another.

    python -m benchmarks.idle_time --base 9e5abff --rounds 2 --json idle.json

Both sides run `jobs/specs/demo.yaml` (six cells, two workers) as a user would, each in a fresh storage, in turns; the
base is a worktree of that commit. Idle is the span between the start of the first step and the end of the last, less
what the steps themselves took, as the cells' spools say: starts of workers, loading, evaluations, checkpoints.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.cli import machine

REPOSITORY = Path(__file__).parents[1]
SPEC = "jobs/specs/demo.yaml"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--base", default="9e5abff", help="the commit to compare with")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--json", type=Path, help="where to write every single measurement")
    chosen = arguments.parse_args()
    facts = machine()
    taken: dict[str, list[dict[str, float]]] = {chosen.base: [], "here": []}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        _git("worktree", "add", "--detach", str(base), chosen.base)
        try:
            for number in range(chosen.rounds):
                for side, checkout in ((chosen.base, base), ("here", REPOSITORY)):
                    taken[side].append(measure(checkout, Path(folder) / f"{side}-{number}"))
        finally:
            _git("worktree", "remove", "--force", str(base))
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, taken))
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": facts, "demos": taken}, indent=2), encoding="utf-8")


def measure(checkout: Path, storage: Path) -> dict[str, float]:
    """Runs the demo of a checkout; seconds of the whole command, from first step to last, in steps, and the rest."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "BACKBONE_STORAGE": str(storage)}
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "jobs.compare", SPEC], cwd=checkout, env=environment, check=True)
    whole = time.monotonic() - began
    lines = [line for file in storage.glob("cells/*/spool/*.jsonl") for line in file.read_text().splitlines()]
    steps = [entry for entry in map(json.loads, lines) if entry["kind"] == "step"]
    first = min(entry["time_ms"] / 1000 - entry["fields"]["step_time_s"] for entry in steps)
    span = max(entry["time_ms"] for entry in steps) / 1000 - first
    training = sum(entry["fields"]["step_time_s"] for entry in steps)
    return {"command_s": whole, "span_s": span, "training_s": training, "idle_s": span - training}


def render(facts: dict[str, str | float], taken: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table of medians, and the ratio of the idle times."""
    load = f"load {facts['load_before']:.1f} to {facts['load_after']:.1f}"
    lines = [
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {load}; medians, in turns",
        "",
    ]
    lines += ["| demo of | command s | first step to last s | in steps s | idle s |", "|---|---:|---:|---:|---:|"]
    middle = {
        side: {name: median(one[name] for one in runs) for name in runs[0]} for side, runs in taken.items() if runs
    }
    lines += [
        f"| {side} | {one['command_s']:.0f} | {one['span_s']:.1f} | {one['training_s']:.1f} | {one['idle_s']:.1f} |"
        for side, one in middle.items()
    ]
    base, here = (one["idle_s"] for one in middle.values())
    return "\n".join([*lines, "", f"idle time: {here / base:.2f} of the base's"])


def _git(*words: str) -> None:
    subprocess.run(["git", "-C", str(REPOSITORY), *words], check=True, capture_output=True)


if __name__ == "__main__":
    main()
