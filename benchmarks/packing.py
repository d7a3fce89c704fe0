"""Packing beside TRL's: how many sequences a second, how full rows get, and how even the ranks' work is.

    pip install --no-deps --target PEERS trl==1.16.0 datasets==5.2.0 multiprocess==0.70.19 dill==0.4.1
    PYTHONPATH=.:PEERS HF_HUB_OFFLINE=1 python -m benchmarks.packing --rounds 5 --json packing.json

Both sides get the same documents and take turns. `pack` plans the rows of every block of documents; `feed` makes the
whole steps of the first epoch: shuffled, packed, dealt to ranks, with their counts; `rows` also joins the token ids of
every row, which is the work that TRL's `pack_dataset(strategy="bfd")` does on a `Dataset`. Seconds are of the clock and
of this process's processors.

Imbalance is that of the squared lengths of documents over the ranks of a step: the costliest rank's share of the mean,
averaged over steps. TRL deals nothing, so its rows are shuffled and taken as they come. `least` is what no deal of our
rows can beat, and what no packing of these documents can fill more than. `real` is the instructions of a folder with
`data/instruct` and `tokenizers`, where one is given.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.cli import machine
from orchestrator.data.feed import Feed, StepWork
from orchestrator.data.order import examples_of_a_block
from orchestrator.data.packing import pack
from orchestrator.data.prepare import TokenizedDataset

ROWS, RANKS = 64, 8  # of a step
CAPACITY = 2048
SIDES = ("pack", "feed", "rows", "trl")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--documents", type=int, default=50_000, help="of the log-normal lengths")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--kit", type=Path, help="a folder with data/instruct/*.jsonl and tokenizers/qwen3")
    arguments.add_argument("--json", type=Path, help="where to write every single measurement")
    options = arguments.parse_args()
    facts = machine()
    corpora = {"log-normal": log_normal(options.documents)}
    if options.kit is not None:
        corpora["real"] = real(options.kit)
    measured = {name: measure(lengths, options.rounds) for name, lengths in corpora.items()}
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, measured))
    if options.json:
        document = {"machine": facts, "capacity": CAPACITY, "rows": ROWS, "ranks": RANKS, "corpora": measured}
        options.json.write_text(json.dumps(document, indent=2), encoding="utf-8")


def log_normal(count: int) -> np.ndarray:
    """Lengths as conversations have them: 200 tokens on average, half of them under 130."""
    drawn = np.random.default_rng(0).lognormal(np.log(200) - 0.9**2 / 2, 0.9, count)
    return np.clip(drawn.astype(np.int64), 8, CAPACITY)


def real(kit: Path) -> np.ndarray:
    """Tokens of every row of the instructions, all its texts together."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(kit / "tokenizers" / "qwen3" / "tokenizer.json"))
    lines = [line for file in sorted((kit / "data" / "instruct").glob("*.jsonl")) for line in file.open()]
    texts = ["\n".join(value for value in json.loads(line).values() if isinstance(value, str)) for line in lines]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    return np.clip(np.array(lengths, np.int64), 2, CAPACITY)


def measure(lengths: np.ndarray, rounds: int) -> dict[str, Any]:
    """Every time of both sides, in turns, and what their rows are like."""
    tokens = int(lengths.sum())
    feed, dataset = make_feed(lengths), make_dataset(lengths)
    rows = rows_of_an_epoch(feed)
    whole, block = rows // ROWS, examples_of_a_block(CAPACITY, len(lengths))
    made: dict[str, Any] = {}
    sides: dict[str, Callable[[], Any]] = {
        "pack": lambda: [pack(lengths[start : start + block], CAPACITY) for start in range(0, len(lengths), block)],
        "feed": lambda: first_epoch(feed, whole),
        "rows": lambda: [[joined(feed, row) for row in work.rows] for work in first_epoch(feed, whole)],
        "trl": lambda: pack_by_trl(dataset),
    }
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            wall, cpu = time.perf_counter(), time.process_time()
            made[side] = sides[side]()
            seconds[side].append((time.perf_counter() - wall, time.process_time() - cpu))
    theirs = [np.array(row) for row in made["trl"]["seq_lengths"]]
    shuffled = [theirs[place] for place in np.random.default_rng(0).permutation(len(theirs))]
    their_steps = [shuffled[start : start + ROWS] for start in range(0, len(shuffled) - ROWS + 1, ROWS)]
    return {
        "documents": len(lengths),
        "tokens": tokens,
        "seconds_wall_and_cpu": seconds,
        "fill": {
            "ours": tokens / (rows * CAPACITY),
            "trl": tokens / (len(theirs) * CAPACITY),
            "least": tokens / (-(-tokens // CAPACITY) * CAPACITY),
        },
        "imbalance": {
            "ours": imbalance(rows_of(made["feed"], lengths)),
            "ours undealt": imbalance(rows_of(first_epoch(replace(feed, ranks=1), whole), lengths)),
            "trl": imbalance(their_steps),
            "least": least_imbalance(rows_of(made["feed"], lengths)),
        },
    }


def make_feed(lengths: np.ndarray) -> Feed:
    """Of documents that hold their own positions, all of them targets."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(offsets[-1], dtype=np.int32)
    learned = np.ones(len(ids), np.bool_)
    data = TokenizedDataset(ids, learned, learned, offsets, lengths, np.ones(len(lengths), np.bool_))
    return Feed(data, np.arange(len(lengths)), "digest", 0, ROWS, CAPACITY, packing=True, ranks=RANKS)


def make_dataset(lengths: np.ndarray) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(offsets[-1], dtype=np.int32)
    parts = [ids[start:stop] for start, stop in pairwise(offsets)]
    return datasets.Dataset.from_dict({"input_ids": parts})


def pack_by_trl(dataset: Any) -> Any:
    from trl.data_utils import pack_dataset

    return pack_dataset(dataset, CAPACITY, strategy="bfd", map_kwargs={"keep_in_memory": True})


def rows_of_an_epoch(feed: Feed) -> int:
    seen, rows = 0, 0
    for work in replace(feed, global_batch_size=1, ranks=1).steps():
        rows, seen = rows + 1, seen + work.examples
        if seen == len(feed.kept):
            break
    return rows


def first_epoch(feed: Feed, whole: int) -> list[StepWork]:
    """Its whole steps: all documents but those of the last few rows."""
    return list(islice(feed.steps(), whole))


def joined(feed: Feed, row: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([ids for ids, _ in feed.examples([row])[0]])


def rows_of(works: list[StepWork], lengths: np.ndarray) -> list[list[np.ndarray]]:
    """The lengths in each row of each step."""
    return [[lengths[list(row)] for row in work.rows] for work in works]


def imbalance(steps: list[list[np.ndarray]]) -> float:
    """The squared lengths of the costliest rank over the mean of all, averaged over steps."""
    costs = np.array([[int((row.astype(np.int64) ** 2).sum()) for row in rows] for rows in steps])
    shares = costs.reshape(len(costs), RANKS, -1).sum(axis=2)
    return float((shares.max(axis=1) / shares.mean(axis=1)).mean())


def least_imbalance(steps: list[list[np.ndarray]]) -> float:
    """What no deal can beat: a row is computed whole, so some rank has at least the costliest one."""
    costs = np.array([[int((row**2).sum()) for row in rows] for rows in steps])
    return float(np.maximum(1.0, costs.max(axis=1) / (costs.sum(axis=1) / RANKS)).mean())


def render(facts: dict[str, Any], measured: dict[str, Any]) -> str:
    """A Markdown table; ratios are medians over the rounds of what stood next to each other."""
    load = f"load {facts['load_before']:.1f} to {facts['load_after']:.1f}"
    table = [f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {load}", ""]
    table += ["| corpus | | sequences/s | x TRL (clock) | x TRL (processor) | fill % | imbalance |"]
    table += ["|---|---|---:|---:|---:|---:|---:|"]
    for name, found in measured.items():
        seconds = found["seconds_wall_and_cpu"]
        for side in SIDES:
            wall, cpu = (
                median(theirs[kind] / ours[kind] for ours, theirs in zip(seconds[side], seconds["trl"], strict=True))
                for kind in (0, 1)
            )
            rate = found["documents"] / median(one[0] for one in seconds[side])
            whose = "trl" if side == "trl" else "ours"
            full, uneven = 100 * found["fill"][whose], found["imbalance"][whose]
            table.append(f"| {name} | {side} | {rate:,.0f} | {wall:.1f} | {cpu:.1f} | {full:.2f} | {uneven:.3f} |")
        for key in ("ours undealt", "least"):
            full = f"{100 * found['fill'][key]:.2f}" if key in found["fill"] else ""
            table.append(f"| {name} | {key} | | | | {full} | {found['imbalance'][key]:.3f} |")
    return "\n".join(table)


if __name__ == "__main__":
    main()
