"""Data of any size: memory and time of a first and a second plan, tokenizing, and what two ranks hold together.

    python -m benchmarks.data_of_any_size --plan-gigabytes 1 --tokenize-megabytes 64 --rounds 2 --json data.json

Planning: each plan is a process of its own, as `backbone plan` is. Memory is VmHWM of that process and the largest of
the processes that it starts, and the sum counts every one of these at that size. The page cache is left as it is.

Tokenizing: our preparation on two CPUs of one Ray (rows read and checked, ids, masks, arrays joined on disk) beside
`datasets.map(batched=True, num_proc=2)` with the usual function of a finetune (ids of prompt and answer, labels without
the prompt), in turns. Its conversion of the file to Arrow is timed apart; ours has no such step. Both sides are warm.

Ranks: two processes map the same arrays and read all of them; what each holds is the PSS of the mapped files and what
grew of its anonymous memory. Linux only. `--only large` makes those arrays of one file by two processes, minutes long.
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cli import machine

GIB, MIB = 1024**3, 1024**2
SPEC = """
name: data-of-any-size
backbones: [{backbone}]
seeds: 1
storage: {storage}
recipe:
  data: {{train: {train}, validation: {validation}}}
  sequence_length: 512
  global_batch_size: 8
  budget: {{kind: steps, amount: 10}}
placement: {{workers: 2}}
"""
PLAN = """
import json, resource, sys, time
from pathlib import Path
from orchestrator.planning.plan import load_comparison
started = time.perf_counter()
plan = load_comparison(Path(sys.argv[1]))
seconds = time.perf_counter() - started
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
facts = {"seconds": seconds, "vm_hwm_mib": int(status["VmHWM"].split()[0]) / 1024, "largest_child_mib": child / 1024}
print(json.dumps(facts | {"examples": len(plan.train), "blocks": len(plan.train.blocks), "digest": plan.train.digest}))
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--plan-gigabytes", type=float, default=0.1)
    arguments.add_argument("--tokenize-megabytes", type=int, default=32)
    arguments.add_argument("--large-megabytes", type=int, default=1000, help="of --only large")
    arguments.add_argument("--rank-tokens", type=int, default=50_000_000)
    arguments.add_argument("--rounds", type=int, default=2, help="of tokenizing")
    arguments.add_argument("--backbone", default="tiny-qwen")
    arguments.add_argument("--only", choices=("plan", "tokenize", "ranks", "large"))
    arguments.add_argument("--json", type=Path, help="where to write every single measurement")
    chosen = arguments.parse_args()
    facts = machine()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        if chosen.only in (None, "plan"):
            results["plan"] = measure_planning(Path(folder), chosen.plan_gigabytes, chosen.backbone)
        if chosen.only in (None, "tokenize"):
            megabytes, rounds = chosen.tokenize_megabytes, chosen.rounds
            results["tokenize"] = measure_tokenizing(Path(folder), megabytes, rounds, chosen.backbone)
        if chosen.only == "large":
            results["large"] = measure_large(Path(folder), chosen.large_megabytes, chosen.backbone)
        if chosen.only in (None, "ranks"):
            results["ranks"] = measure_ranks(Path(folder), chosen.rank_tokens)
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, results))
    if chosen.json:
        earlier = json.loads(chosen.json.read_text(encoding="utf-8")) if chosen.json.exists() else {}
        document = earlier | {part: {"machine": facts, **found} for part, found in results.items()}
        chosen.json.write_text(json.dumps(document, indent=2), encoding="utf-8")


def write_rows(file: Path, size: int) -> None:
    """Conversations of 0.2 to 2 kB, each with a number of its own; every fifth has a group."""
    draw = random.Random(0)
    words = "the ship sailed over a green sea and nobody knew where it would land before winter naïve 7 + =".split()  # noqa: SIM905
    tails = []
    for _ in range(2000):
        question, answer = (" ".join(draw.choices(words, k=draw.randint(10, most))) for most in (60, 300))
        tail = f'{question}"}}, {{"role": "assistant", "content": "{answer}"}}]'
        tails.append(tail + (f', "group": "g{draw.randrange(50)}"}}\n' if draw.random() < 0.2 else "}\n"))
    written = number = 0
    with open(file, "w", encoding="utf-8") as stream:
        while written < size:
            text = "".join(
                f'{{"messages": [{{"role": "user", "content": "{number + place}: {tail}'
                for place, tail in enumerate(tails)
            )
            written += stream.write(text)
            number += len(tails)


def write_spec(folder: Path, size: int, backbone: str) -> Path:
    write_rows(folder / "train.jsonl", size)
    with open(folder / "train.jsonl", encoding="utf-8") as stream:
        held_out = [next(stream) for _ in range(1000)]
    (folder / "validation.jsonl").write_text("".join(held_out), encoding="utf-8")
    text = SPEC.format(backbone=backbone, storage=folder / "runs", train="train.jsonl", validation="validation.jsonl")
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return folder / "spec.yaml"


def measure_planning(folder: Path, gigabytes: float, backbone: str) -> dict[str, Any]:
    spec = write_spec(folder, int(gigabytes * GIB), backbone)
    found: dict[str, Any] = {"bytes": (folder / "train.jsonl").stat().st_size}
    for turn in ("first", "second"):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", PLAN, str(spec)], check=True, capture_output=True, text=True)
        found[turn] = json.loads(done.stdout) | {"process_s": time.perf_counter() - started}
        most = found[turn]["vm_hwm_mib"] + (os.cpu_count() or 1) * found[turn]["largest_child_mib"]
        found[turn]["sum_mib"] = most
    assert found["first"]["digest"] == found["second"]["digest"]
    found["cache_bytes"] = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
    (folder / "train.jsonl").unlink()
    return found


def measure_tokenizing(folder: Path, megabytes: int, rounds: int, backbone: str) -> dict[str, Any]:
    import datasets
    import ray

    from backbones.registry import get_spec, load_codec
    from jobs.driver.preparation import prepare_data
    from orchestrator.planning.plan import load_comparison

    spec = write_spec(folder, megabytes * 10**6, backbone)
    datasets.disable_progress_bars()
    codec = load_codec(get_spec(backbone), max_length=512)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    size = (folder / "train.jsonl").stat().st_size
    found: dict[str, Any] = {"bytes": size, "ours_s": [], "map_s": [], "to_arrow_s": [], "ours_again_s": []}
    for number in range(-1, rounds):  # the first one warms both sides up, and is not counted
        text = spec.read_text(encoding="utf-8").replace("runs", f"runs{number}")
        (folder / "round.yaml").write_text(text, encoding="utf-8")
        plan = load_comparison(folder / "round.yaml")
        started = time.perf_counter()
        prepare_data(plan)
        ours, started = time.perf_counter() - started, time.perf_counter()
        prepare_data(plan)
        again, started = time.perf_counter() - started, time.perf_counter()
        cache = str(folder / f"arrow{number}")
        rows = datasets.load_dataset("json", data_files=str(folder / "train.jsonl"), cache_dir=cache)["train"]
        to_arrow, started = time.perf_counter() - started, time.perf_counter()
        encode = make_map_function(codec.tokenizer)
        rows.map(encode, batched=True, num_proc=2, remove_columns=rows.column_names, load_from_cache_file=False)
        theirs = time.perf_counter() - started
        if number >= 0:
            for name, value in (("ours_s", ours), ("map_s", theirs), ("to_arrow_s", to_arrow), ("ours_again_s", again)):
                found[name].append(value)
    ray.shutdown()
    found["ratio"] = median(theirs / ours for theirs, ours in zip(found["map_s"], found["ours_s"], strict=True))
    return found


def make_map_function(tokenizer: Any) -> Any:
    """The usual one: prompt and answer together, labels without the prompt."""
    end = tokenizer.eos_token

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        prompts = [f"In: {turns[0]['content']}\nOut: " for turns in batch["messages"]]
        texts = [f"{p}{turns[1]['content']}{end}" for p, turns in zip(prompts, batch["messages"], strict=True)]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        lengths = [len(one) for one in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
        labels = [[-100] * length + one[length:] for one, length in zip(ids, lengths, strict=True)]
        return {"input_ids": ids, "labels": labels}

    return encode


def measure_ranks(folder: Path, tokens: int) -> dict[str, Any]:
    import numpy as np

    from orchestrator.data.arrays import TokenizedDataset, save_arrays

    draw = np.random.default_rng(0)
    lengths = draw.integers(20, 500, 2 * tokens // 520)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    mask = draw.random(total) < 0.7
    ids = draw.integers(0, 32_000, total, dtype=np.int32)
    data = TokenizedDataset(ids, mask, mask, offsets, lengths * 4, np.array([], np.bool_))
    save_arrays(folder / "arrays", data, {})
    del data, ids, mask
    return held_by_two(folder / "arrays")


def measure_large(folder: Path, megabytes: int, backbone: str) -> dict[str, Any]:
    """One file, tokenized by two processes, and its arrays held by two ranks."""
    import ray

    from jobs.driver.preparation import prepare_data
    from orchestrator.planning.plan import load_comparison

    plan = load_comparison(write_spec(folder, megabytes * 10**6, backbone))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    started = time.perf_counter()
    preparation = prepare_data(plan)
    seconds = time.perf_counter() - started
    ray.shutdown()
    facts = {"bytes": (folder / "train.jsonl").stat().st_size, "seconds": seconds, "parity": preparation.facts}
    return facts | held_by_two(Path(preparation.prepared[backbone].train_file))


def held_by_two(arrays: Path) -> dict[str, Any]:
    """What two processes hold together of arrays that both have read whole."""
    copy = sum(file.stat().st_size for file in arrays.iterdir())
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    ranks = [context.Process(target=hold, args=(arrays, barrier, results)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    held = [results.get(timeout=300) for _ in ranks]
    for rank in ranks:
        rank.join()
    return {"one_copy_bytes": copy, "ranks": held, "ratio": sum(one["pss"] + one["grown"] for one in held) / copy}


def hold(folder: Path, barrier: Any, results: Any) -> None:
    """Maps the arrays, reads all of them, and says what it holds while the other holds them too."""
    from benchmarks.loading import anonymous_bytes
    from orchestrator.data.arrays import load_arrays

    before = anonymous_bytes()
    data = load_arrays(folder)
    read = sum(
        int(array.sum()) for array in (data.input_ids, data.is_target, data.is_scored, data.targets, data.lengths)
    )
    read += int(data.first_targets.sum()) + int(data.learnable_bytes.sum())
    barrier.wait()
    pss, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            is_ours = str(folder) in line
        elif is_ours and first == "Pss:":
            pss += int(line.split()[1]) * 1024
    results.put({"pss": pss, "grown": anonymous_bytes() - before, "read": read})
    barrier.wait()


def render(facts: dict[str, Any], results: dict[str, Any]) -> str:
    """A line for each figure."""
    lines = [f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, load {facts['load_before']:.1f} before"]
    if found := results.get("plan"):
        for turn in ("first", "second"):
            one = found[turn]
            lines.append(
                f"{turn} plan of {found['bytes'] / GIB:.2f} GiB: {one['seconds']:.2f} s ({one['process_s']:.2f} s with "
                f"Python), {one['vm_hwm_mib']:.0f} MiB, {one['sum_mib']:.0f} MiB with the processes it starts"
            )
    if found := results.get("tokenize"):
        ours, theirs = median(found["ours_s"]), median(found["map_s"])
        lines.append(
            f"tokenizing {found['bytes'] / 1e6:.0f} MB: ours {ours:.1f} s, datasets.map {theirs:.1f} s and "
            f"{median(found['to_arrow_s']):.1f} s to Arrow; map / ours {found['ratio']:.2f}; again in "
            f"{median(found['ours_again_s']):.2f} s"
        )
    if found := results.get("large"):
        counts = ", ".join(f"{name} {count}" for name, count in found["parity"]["dropped"].items())
        lines.append(
            f"{found['bytes'] / 1e9:.2f} GB tokenized by two processes in {found['seconds']:.0f} s; of "
            f"{found['parity']['rows_read']['train']} rows {found['parity']['kept']} kept; left out: {counts}"
        )
    for found in (results[part] for part in ("large", "ranks") if part in results):
        lines.append(f"two ranks hold {found['ratio']:.3f} of one copy of {found['one_copy_bytes'] / MIB:.0f} MiB")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
