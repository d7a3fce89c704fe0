"""CPU time that a training step costs beside its arithmetic: our loop, and a bare FSDP2 loop.

    python -m benchmarks.step_overhead --rounds 5 --json overhead.json

Two gloo ranks on this machine train a tiny model on the same rows. `ours` is the stage `train` of a cell as a worker
runs it, recorder and all. `bare` is what one would write by hand and tune: the same sharded model and the same nats of
labelled positions, rows that lie collated in memory, torch's `clip_grad_norm_`, fused AdamW, one reduction of the loss,
and nothing else. `lean` is the same but for norm and clipping, which it does as `ours` does, on local shards: what
`ours` takes beyond it is collating, packing, recording and looking for orders. The sides take turns in the same
processes. A figure is the process's CPU time, all its threads, from one step to the next on rank 0, so that waiting for
the other rank counts for nothing; the first steps of each round are left out. All sides end at the same loss, or it is
no comparison.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.cli import machine

SIDES = ("bare", "lean", "ours")
WARM_UP = 5  # steps of each round
RANKS = 2


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=40, help="of each side in a round")
    arguments.add_argument("--json", type=Path, help="where to write every single time")
    options = arguments.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        job = make_job(Path(folder), options.steps)
        ranks = [
            context.Process(target=run_rank, args=(rank, Path(folder), job, options.rounds)) for rank in range(RANKS)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            raise SystemExit("a rank failed; its traceback stands above")
        rounds = json.loads((Path(folder) / "rounds.json").read_text(encoding="utf-8"))
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, rounds))
    if options.json:
        document = {"machine": facts, "warm_up_steps": WARM_UP, "rounds": rounds}
        options.json.write_text(json.dumps(document, indent=2), encoding="utf-8")


def make_job(folder: Path, steps: int) -> Any:
    """A cell of a tiny Llama on the built-in data: 8 rows of 64 tokens a step, one micro-batch a rank."""
    import yaml

    from backbones.registry import load_codec
    from orchestrator.cell_job import CellJob
    from orchestrator.data.parity import compare_tokenizers, save_selection
    from orchestrator.data.prepare import prepare
    from orchestrator.planning.plan import load_comparison

    recipe = {
        "data": {"train": "builtin:stdlib", "validation": "builtin:stdlib", "format": "messages"},
        "sequence_length": 64,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "budget": {"kind": "steps", "amount": steps},
        "precision": "fp32",
        "activation_checkpointing": False,
        "evaluate": {"every": 1.0},
        "checkpoint": {"every": 1.0},
    }
    placement = {"workers": RANKS}
    spec = {"name": "overhead", "backbones": ["tiny-llama2"], "seeds": [0], "storage": str(folder / "storage")}
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump(spec | {"recipe": recipe, "placement": placement}), encoding="utf-8")
    plan = load_comparison(file)
    cell = plan.cells[0]
    name = cell.backbone.backbone_id
    prepared = prepare(name, load_codec(cell.backbone, max_length=64), plan.train, plan.validation, folder / "prepared")
    save_selection(folder / "selection.npz", compare_tokenizers([prepared], 64, plan.job.recipe.data.parity), name)
    return CellJob(
        cell=cell,
        attempt=1,
        folder=plan.cell_folder(cell),
        prepared=prepared,
        selection_file=str(folder / "selection.npz"),
        flops_per_token=plan.forecasts[0].flops_per_token,
        deadline=time.time() + 3600,
    )


def run_rank(rank: int, folder: Path, job: Any, rounds: int) -> None:
    import torch
    import torch.distributed as dist

    from orchestrator.parallel import Mesh

    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=300))
    mesh = Mesh.build(torch.device("cpu"), job.cell.placement.parallel)
    found = []
    for number in range(rounds):
        sides = SIDES if number % 2 else SIDES[::-1]
        loops = {"ours": ours, "bare": bare, "lean": partial(bare, clips_locally=True)}
        found.append({side: loops[side](mesh, job, number) for side in sides})
        losses = [found[-1][side]["losses"][-1] for side in SIDES]
        assert max(losses) - min(losses) < 1e-4 * losses[0], f"the sides do not train the same: {losses}"
    if rank == 0:
        (folder / "rounds.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


class Clock:
    """A recorder that notes the CPU time of every step on its way to the spool."""

    def __init__(self, recorder: Any) -> None:
        self.recorder, self.times, self.losses = recorder, [], []

    def step(self, metrics: Any) -> None:
        self.recorder.step(metrics)
        self.times.append(time.process_time())
        self.losses.append(metrics.loss)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recorder, name)


def ours(mesh: Any, job: Any, number: int) -> dict[str, list[float]]:
    """The stages `load` and `train` of a cell in a folder of its own."""
    from dataclasses import replace

    from orchestrator.tracking.recorder import open_recorder
    from orchestrator.training import stages
    from orchestrator.training.run import CellRun

    job = replace(job, folder=job.folder.with_name(f"round-{number}"))
    if mesh.is_main:
        job.folder.mkdir(parents=True)
    mesh.barrier()
    clock = Clock(open_recorder(job.spool_folder, 1, mesh.is_main))
    run = CellRun(job, mesh, clock)
    stages.load(run)
    stages.train(run)
    clock.close()
    return {"losses": clock.losses, "cpu_ms": differences(clock.times)}


def bare(mesh: Any, job: Any, number: int, *, clips_locally: bool = False) -> dict[str, list[float]]:
    """The same model, rows and rates in a loop by hand."""
    import torch
    import torch.distributed as dist

    from orchestrator.training.ahead import PreparedSteps
    from orchestrator.training.rate import learning_rate
    from orchestrator.training.trainee import build_trainee

    trainee, recipe = build_trainee(job, mesh), job.cell.recipe
    steps = int(recipe.budget.amount)
    ready = list(itertools.islice(PreparedSteps(trainee, 0, job.cell.micro_batch_size), steps))
    llm, groups = trainee.backbone.llm, trainee.optimizers.torch_optimizers[0].param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    settings = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
    optimizer = torch.optim.AdamW(settings, betas=recipe.optimizer.betas, fused=True)
    times, losses = [], []
    for step, (work, batches) in enumerate(ready):
        total = torch.zeros(())
        for batch in batches:
            nats = llm.labelled_nats(batch.positions_N, batch.targets_N, 1, **batch.arguments).sum()
            (nats * (RANKS / work.targets)).backward()
            total += nats.detach()
        if clips_locally:
            sums = torch.stack([total.double(), trainee.optimizers.squared_gradients()])
            dist.all_reduce(sums)
            total, squares = sums
            trainee.optimizers.clip(squares.sqrt().item(), recipe.optimizer.max_grad_norm)
        else:
            dist.all_reduce(total)
            norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.optimizer.max_grad_norm).full_tensor()
            assert torch.isfinite(norm)
        losses.append(total.item() / work.targets)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optimizer, (step + 0.5) / steps)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time())
    return {"losses": losses, "cpu_ms": differences(times)}


def differences(times: list[float]) -> list[float]:
    """Milliseconds from each step to the next, without the first ones."""
    steps = [(after - before) * 1000 for before, after in itertools.pairwise(times)]
    return steps[WARM_UP:]


def render(facts: dict[str, Any], rounds: list[dict[str, dict[str, list[float]]]]) -> str:
    """A Markdown table of medians and spreads, and the overhead of each round."""
    load = f"load {facts['load_before']:.1f} to {facts['load_after']:.1f}"
    table = [f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {load}; {RANKS} ranks", ""]
    table += ["| loop | CPU ms a step, p50 | p10 | p90 |", "|---|---:|---:|---:|"]
    for side in SIDES:
        times = [one for taken in rounds for one in taken[side]["cpu_ms"]]
        low, *_, high = quantiles(times, n=10)
        table.append(f"| {side} | {median(times):.2f} | {low:.2f} | {high:.2f} |")
    table.append("")
    for side in ("bare", "lean"):
        apart = [median(taken["ours"]["cpu_ms"]) - median(taken[side]["cpu_ms"]) for taken in rounds]
        each = ", ".join(f"{one:.2f}" for one in apart)
        table.append(f"overhead over {side}: {median(apart):.2f} ms; of each round: {each}")
    return "\n".join(table)


if __name__ == "__main__":
    main()
