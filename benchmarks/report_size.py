"""How long the report of a large comparison takes, and how large its page is.

    python -m benchmarks.report_size --rounds 5 --json report-size.json

Comparisons are made up: backbones with five seeds each, 28 evaluations and 200 losses a run, every pair of backbones,
held-out items by as many columns as are shown.
The document is written, loaded and rendered; rendering is what counts, in seconds of the clock and of the processor,
after a small report has loaded the libraries. The sizes take turns. The slope is that of log seconds of the processor
over log cells, from a quarter of the cells to all, and must be at most 1.05; a page of 1,000 cells must be below 5 MB.
"""

import argparse
import json
import math
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cli import machine
from jobs.report.html import render_report
from jobs.results.costs.spent import Rate, total
from jobs.results.documents import load_report

SEEDS, EVALUATIONS, LOSSES = 5, 28, 200
MOST_SECONDS, MOST_BYTES, MOST_SLOPE = 3.0, 5_000_000, 1.05


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cells", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--json", type=Path, help="where to write every single time")
    options = arguments.parse_args()
    facts = machine()
    sizes = [options.cells // 4, options.cells // 2, options.cells]
    measured = measure(sizes, options.rounds)
    facts["load_after"] = os.getloadavg()[0]
    summary = summarised(measured)
    print(render(facts, measured, summary))
    if options.json:
        document = {"machine": facts, "summary": summary, "rounds": measured}
        options.json.write_text(json.dumps(document, indent=2), encoding="utf-8")


def measure(sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """One record for each rendering."""
    records = []
    with tempfile.TemporaryDirectory() as folder:
        files = {cells: Path(folder) / f"{cells}.json" for cells in (2 * SEEDS, *sizes)}
        for cells, file in files.items():
            file.write_text(json.dumps(made_up(cells)), encoding="utf-8")
        render_report(load_report(files[2 * SEEDS]))
        for number in range(rounds):
            for cells in sizes:
                started = time.perf_counter()
                document = load_report(files[cells])
                loaded, busy = time.perf_counter(), time.process_time()
                page = render_report(document)
                records.append(
                    {
                        "round": number,
                        "cells": cells,
                        "load_s": loaded - started,
                        "render_s": time.perf_counter() - loaded,
                        "render_cpu_s": time.process_time() - busy,
                        "page_bytes": len(page.encode()),
                        "report_json_bytes": files[cells].stat().st_size,
                    }
                )
    return records


def summarised(measured: list[dict[str, Any]]) -> dict[str, float]:
    sizes = sorted({record["cells"] for record in measured})
    busy = {size: median(one["render_cpu_s"] for one in measured if one["cells"] == size) for size in sizes}
    largest = [one for one in measured if one["cells"] == sizes[-1]]
    return {
        "cells": sizes[-1],
        "render_s": median(one["render_s"] for one in largest),
        "render_cpu_s": busy[sizes[-1]],
        "slope": math.log(busy[sizes[-1]] / busy[sizes[0]]) / math.log(sizes[-1] / sizes[0]),
        "page_bytes": max(one["page_bytes"] for one in largest),
    }


def render(facts: dict[str, Any], measured: list[dict[str, Any]], summary: dict[str, float]) -> str:
    """A Markdown table, and what was asked for beside what was found."""
    lines = [
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, load {facts['load_before']:.1f} to "
        f"{facts['load_after']:.1f}",
        "",
        "| cells | load s | render s | of the processor s | page MB | report.json MB |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for size in sorted({record["cells"] for record in measured}):
        mine = [one for one in measured if one["cells"] == size]
        load, wall, busy = (median(one[key] for one in mine) for key in ("load_s", "render_s", "render_cpu_s"))
        megabytes = [mine[0][key] / 1e6 for key in ("page_bytes", "report_json_bytes")]
        lines.append(f"| {size} | {load:.2f} | {wall:.2f} | {busy:.2f} | {megabytes[0]:.2f} | {megabytes[1]:.2f} |")
    lines.append("")
    lines.append(
        f"slope {summary['slope']:.2f} (at most {MOST_SLOPE}); {summary['render_s']:.2f} s (at most {MOST_SECONDS}); "
        f"{summary['page_bytes'] / 1e6:.2f} MB (at most {MOST_BYTES / 1e6:.0f})"
    )
    return "\n".join(lines)


def made_up(cells: int) -> dict[str, Any]:
    """A document of `report.json` with so many finished runs."""
    backbones = [f"hf:example/backbone-{number:03d}@{number:040x}" for number in range(cells // SEEDS)]
    runs = [_run(place, name, seed) for seed in range(SEEDS) for place, name in enumerate(backbones)]
    scores = {
        name: {str(run["seed"]): run["metrics"]["val_bits_per_byte"] for run in runs if run["backbone_id"] == name}
        for name in backbones
    }
    order = sorted(backbones, key=lambda name: sum(scores[name].values()))
    means = {name: sum(scores[name].values()) / SEEDS for name in backbones}
    ranking = [
        {
            "rank": rank,
            "backbone_id": name,
            "score": means[name],
            "seed_std": 0.002,
            "seeds": scores[name],
            "difference_to_best": means[name] - means[order[0]],
            "worse_than_best": rank > 1,
        }
        for rank, name in enumerate(order, 1)
    ]
    pairs = [_pair(a, b, means[b] - means[a], means[b]) for rank, a in enumerate(order) for b in order[rank + 1 :]]
    return {
        "format": 2,
        "costs": total(runs, "GPU", Rate(2.5, "USD")),
        "comparison": {
            "name": "large",
            "id": "large-0123456789",
            "kind": "comparison",
            "spec": {"name": "large", "recipe": {"budget": {"kind": "bytes", "amount": 2e9}}},
            "spec_yaml": "name: large\n",
            "command": "backbone compare large.yaml",
            "created": "2026-11-27T00:00:00+00:00",
        },
        "environment": {"python": "3.11", "platform": "Linux", "packages": {"torch": "2.13.0"}, "hardware": "8 x H100"},
        "data": {
            **dict.fromkeys(("train_examples", "validation_examples", "train_bytes", "validation_bytes"), 1_000_000),
            "train_hash": "0" * 64,
            "validation_hash": "1" * 64,
            "parity": "intersection",
            "kept": 900_000,
            "backbones": {name: {"examples_cut": 12, "tokens_per_byte": 0.24} for name in backbones},
        },
        "certificates": {},
        "cells": runs,
        "ranking": ranking,
        "verdict": {
            "outcome": "undecided",
            "winner": None,
            "sentence": "Undecided.",
            "alpha": 0.05,
            "margin": 0.005,
            "pairs": pairs,
            "notes": [],
            "noise": {"seed_std": 0.002, "groups": 200},
        },
        "history": None,
        "held_out": _held_out(order, means),
    }


def _held_out(order: list[str], means: dict[str, float]) -> dict[str, Any]:
    """As much as a document may have of it: six columns of twelve values, and items with long texts."""
    values = [
        {"value": f"value-{number}", "items": 80, "share": 1 / 12, "scores": means, "contribution": 0.0001}
        for number in range(12)
    ]
    columns = {f"column-{number}": "value-0" for number in range(6)}
    facts = {"hash": "0" * 32, "group": "file.jsonl", "columns": columns, "bytes": 900, "bits_per_byte": means}
    items = [{"item": number, **facts, "text": "<&> some text " * 29} for number in range(5)]
    slices = [{"column": name, "values": values, "driver": "value-0"} for name in columns]
    return {
        "leading": order[:2],
        "difference": means[order[1]] - means[order[0]],
        "slices": slices,
        "apart": [items, items],
        "hardest": items,
        "note": None,
    }


def _run(place: int, name: str, seed: int) -> dict[str, Any]:
    draw = random.Random(f"{name}/{seed}")
    floor = 0.8 + 0.0005 * place + draw.gauss(0, 0.002)
    shares = [point / (EVALUATIONS - 1) for point in range(EVALUATIONS)]
    points = [
        {
            "step": round(900 * share),
            "progress": share,
            "bytes_seen": round(2e9 * share),
            "tokens_seen": round(5e8 * share),
            "train_time_s": 3600 * share,
            "val_bits_per_byte": floor + 0.5 * math.exp(-6 * share) + draw.gauss(0, 0.0005),
            "val_loss": 2.0,
        }
        for share in shares
    ]
    metrics = {"tokens_per_second_per_device": 5000.0 + place, "step_time_s": 1.9, "mfu": 0.45}
    metrics |= {"bytes_per_second_per_device": 2e4 + 300 * (place % 29), "peak_memory_gib": 30.0 + place % 41}
    last = points[-1]["val_bits_per_byte"]
    return {
        "cell_id": f"backbone-{place:03d}-s{seed}-0123456789",
        "backbone_id": name,
        "seed": seed,
        "status": "SUCCEEDED",
        "attempts": 1,
        "mlflow_run_id": f"{place:016x}{seed:016x}",
        "failure": None,
        "restarts": [],
        "folder": f"/shared/backbone/cells/backbone-{place:03d}-s{seed}-0123456789",
        "spent": {"seconds": 4000.0, "device_hours": 4000.0 * (1 + place % 37 / 10) / 450, "cost": 22.2},
        "metrics": {**metrics, "val_bits_per_byte": last, "val_bits_per_byte_before": 1.3, "train_time_s": 3600.0},
        "evaluations": points,
        "loss_curve": [[1 + step * 4, 2.4 * floor + draw.gauss(0, 0.06)] for step in range(LOSSES)],
        "contract": {
            "parameter_dtype": "float32",
            "compute_dtype": "bfloat16",
            "attention": {"kernel": "varlen", "requested": "auto"},
            "parameters": 7_000_000_000 + place,
            "tokenizer_rows": {"base": 32000 + place, "added": 1, "padded": 63},
            "global_batch_size": 64,
            "micro_batch_size": 4,
            "workers": 8,
            "device": "NVIDIA H100 80GB HBM3",
        },
    }


def _pair(a: str, b: str, difference: float, score: float) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "difference": difference,
        "relative": difference / score,
        "standard_error": 0.0021,
        "degrees_of_freedom": 7.4,
        "interval": [difference - 0.0049, difference + 0.0049],
        "p_value": 0.012,
        "p_value_holm": 0.4,
        "equivalent": False,
    }


if __name__ == "__main__":
    main()
