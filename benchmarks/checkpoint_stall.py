"""How long training stands still for a checkpoint, beside a synchronous `dcp.save` of the same state to the same disk.

    python -m benchmarks.checkpoint_stall --rounds 7 --json stall.json

One FSDP2 model with AdamW on two gloo ranks of this machine, about 140 MB of weights and moments. In each round, in
turns: some steps with nothing behind them, DCP's own save, and ours: its stall (until the call returns, and what the
next update waits for the copy), as many steps while the bytes are copied and written, and the seconds until the
manifest says COMMITTED. A time is that of the slower rank. DCP's side gets the state dictionary for nothing and makes
no digests; ours pays for both, the digests behind the training.

`--also thread process` adds `dcp.async_save` with its own staging, in a thread and in a process: the stall, the steps
behind it, and the seconds until its files are whole, without digests or a manifest.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cli import machine
from benchmarks.loading import in_a_process, make_checkpoint, recipe

RANKS = 2
SHAPE = {"hidden_size": 384, "intermediate_size": 1088, "num_hidden_layers": 6, "num_attention_heads": 6}
ASYNC = ("thread", "process")
Round = dict[str, float]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--steps", type=int, default=3, help="after each save, and before it with nothing behind")
    arguments.add_argument("--also", choices=ASYNC, nargs="*", default=[])
    arguments.add_argument("--folder", type=Path, help="on the disk to write to; by default where temporary files go")
    arguments.add_argument("--json", type=Path, help="where to write every single measurement")
    chosen = arguments.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        in_a_process(make_checkpoint, Path(scratch) / "model", SHAPE)
        found = measure(Path(scratch), chosen.rounds, chosen.steps, chosen.also)
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, found))
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": facts, **found}, indent=2), encoding="utf-8")


def measure(scratch: Path, rounds: int, steps: int, also: Sequence[str]) -> dict[str, Any]:
    """What the ranks measured, in processes of their own."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    processes = [
        context.Process(target=run_rank, args=(rank, scratch, rounds, steps, also, results)) for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a rank failed; its traceback stands above")
    found: dict[str, Any] = results.get(timeout=60)
    return found


def run_rank(rank: int, scratch: Path, rounds: int, steps: int, also: Sequence[str], results: Any) -> None:
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    from backbones.registry import get_spec
    from orchestrator.parallel import Mesh
    from orchestrator.spec_files.spec import Optimizer
    from orchestrator.training.checkpoints.checkpoint import learned_state, state_bytes
    from orchestrator.training.checkpoints.saver import CheckpointSaver
    from orchestrator.training.model.optimizer import build_optimizers
    from orchestrator.training.model.sharding import build_sharded

    torch.set_num_threads(1)
    store = dist.FileStore(str(scratch / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=300))
    mesh = Mesh.build(torch.device("cpu"))
    backbone, _ = build_sharded(get_spec(f"hf:{scratch / 'model'}"), recipe(), mesh, seed=0)
    optimizers = build_optimizers(backbone.llm, Optimizer())
    whole, share = state_bytes(backbone, Optimizer().state_bytes)

    def train(before_update: Callable[[], None] = lambda: None) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            backbone.llm(torch.randint(1088, (2, 256)), use_cache=False).logits.float().logsumexp(-1).mean().backward()
            before_update()
            optimizers.step(1e-4)
            optimizers.zero_grad()
        return time.perf_counter() - started

    def save_synchronously() -> float:
        state = learned_state(backbone, optimizers)
        mesh.barrier()
        started = time.perf_counter()
        dcp.state_dict_saver.save(state, checkpoint_id=scratch / "synchronous")
        return time.perf_counter() - started

    def save_by_dcp(kind: str) -> Round:
        """As ours, by what DCP has for it."""
        mesh.barrier()
        started = time.perf_counter()
        response: Any = dcp.state_dict_saver.async_save(
            learned_state(backbone, optimizers),
            checkpoint_id=scratch / kind,
            process_group=group,
            async_checkpointer_type=AsyncCheckpointerType[kind.upper()],
            async_stager=stagers[kind],
        )
        done: list[float] = []
        response.add_done_callback(lambda _: done.append(time.perf_counter()))
        times = {f"{kind}_stall_s": time.perf_counter() - started, f"{kind}_steps_behind_s": train()}
        response.result()
        mesh.barrier()
        if mesh.is_main:
            shutil.rmtree(scratch / kind)
        return times | {f"{kind}_committed_s": done[0] - started}

    def one_round(number: int) -> Round:
        times = {"quiet_steps_s": train(), "synchronous_s": save_synchronously()}
        mesh.barrier()
        if mesh.is_main:
            shutil.rmtree(scratch / "synchronous")
        mesh.barrier()
        saver.save(number, backbone, optimizers, {})
        times["steps_behind_s"] = train(saver.copied)
        saver.wait()
        (one,) = saver.committed()
        times |= {"stall_s": one.stall_s, "committed_s": one.stall_s + one.committed_after_s}
        for kind in also:
            times |= save_by_dcp(kind)
        mesh.barrier()
        parts = mesh.gathered(times)
        return {name: max(part[name] for part in parts) for name in times}

    stagers = {kind: DefaultStager(StagingOptions(False, kind == "process", False, False)) for kind in also}
    group = dist.new_group(backend="gloo") if also else None
    train()
    with closing(CheckpointSaver(scratch / "ours", 1, 1, mesh, share)) as saver:
        measured = [one_round(number) for number in range(rounds + 1)]
    if mesh.is_main:
        results.put({"state_bytes": whole, "steps": steps, "first": measured[0], "rounds": measured[1:]})
    mesh.barrier()


def render(facts: dict[str, Any], found: dict[str, Any]) -> str:
    """A Markdown table: medians over the rounds, and ratios of what stood next to each other."""
    load = f"load {facts['load_before']:.1f} to {facts['load_after']:.1f}"
    rounds: list[Round] = found["rounds"]
    lines = [
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {load}; {RANKS} ranks, "
        f"{found['state_bytes'] / 1e6:.0f} MB of state, {len(rounds)} rounds in turns",
        "",
        "| | median s | min to max s | of a synchronous save |",
        "|---|---:|---:|---:|",
    ]
    others = [kind for kind in ASYNC if f"{kind}_stall_s" in rounds[0]]
    labels = {"synchronous_s": "dcp.save", "stall_s": "stall", "committed_s": "until committed"}
    labels |= {f"{kind}_stall_s": f"async_save in a {kind}: stall" for kind in others}
    labels |= {f"{kind}_committed_s": f"async_save in a {kind}: until written" for kind in others}
    for name, label in labels.items():
        times = [one[name] for one in rounds]
        share = median(one[name] / one["synchronous_s"] for one in rounds)
        lines.append(f"| {label} | {median(times):.3f} | {min(times):.3f} to {max(times):.3f} | {share:.3f} |")
    lines.append("")
    for side in ("", *(f"{kind}_" for kind in others)):
        slower = median(one[f"{side}steps_behind_s"] / one["quiet_steps_s"] for one in rounds)
        whose = f"async_save in a {side[:-1]}" if side else "ours"
        lines.append(f"{found['steps']} steps while the bytes are written, {whose}: {slower:.2f} x those before.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
