"""How long `backbone list` and `backbone plan` take, beside starting Python and importing transformers.

    python -m benchmarks.cli --runs 15 --json times.json

The commands take turns, so that what else the machine does falls on all of them alike; each is run once before, to
fill the disk cache. Ratios are medians of the ratios of the runs that stood next to each other.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
BACKBONE = str(Path(sys.executable).parent / "backbone")
BASELINE = "python -c pass"
COMMANDS = {
    BASELINE: [sys.executable, "-c", "pass"],
    "backbone list": [BACKBONE, "list"],
    "backbone plan jobs/specs/demo.yaml": [BACKBONE, "plan", "jobs/specs/demo.yaml"],
    'python -c "import transformers"': [sys.executable, "-c", "import transformers"],
    'python -c "import torch, transformers, ray"': [sys.executable, "-c", "import torch, transformers, ray"],
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=11, help="runs of each command")
    arguments.add_argument("--json", type=Path, help="where to write every single time")
    options = arguments.parse_args()
    facts = machine()
    for command in COMMANDS.values():
        seconds_of(command)
    rounds = [{name: seconds_of(command) for name, command in COMMANDS.items()} for _ in range(options.runs)]
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, rounds))
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "seconds": rounds}, indent=2), encoding="utf-8")


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def machine() -> dict[str, str | float]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "processor": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def render(facts: dict[str, str | float], rounds: list[dict[str, float]]) -> str:
    """A Markdown table: median, range, and the ratio to starting Python."""
    load = f"load {facts['load_before']:.1f} to {facts['load_after']:.1f}"
    title = f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, Python {facts['python']}, {load}"
    table = [f"{title}; {len(rounds)} interleaved runs", "", "| command | median s | min to max s | x `pass` |"]
    table.append("|---|---:|---:|---:|")
    for name in COMMANDS:
        times = [one[name] for one in rounds]
        ratio = median(one[name] / one[BASELINE] for one in rounds)
        spread = f"{min(times):.3f} to {max(times):.3f}"
        table.append(f"| `{name}` | {median(times):.3f} | {spread} | {ratio:.1f} |")
    return "\n".join(table)


if __name__ == "__main__":
    main()
