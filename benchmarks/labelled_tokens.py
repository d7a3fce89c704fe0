"""Labelled tokens a second, in training: this project, and TRL's SFTTrainer padded and packed.

    pip install --no-deps --target TRL_FOLDER trl==1.16.0
    python -m benchmarks.labelled_tokens --trl TRL_FOLDER --kit KIT --rounds 3 --json labelled.json

Only answers are labelled, as in any finetune on questions and answers. All sides train the same Llama (hidden size 512,
vocabulary of 32 thousand, four layers, random weights) in fp32 on one thread, each in a process of its own, in turns,
on the same tokens with the same labels: GSM8K from the kit, tokenized here, handed to TRL as `input_ids` and
`completion_mask`. TRL's defaults of bf16 and gradient checkpointing are off for it, as they are here; its AdamW is
fused, as ours is. `padded` has as many examples a step as `ours` has on average, `packed` as many rows.

The rate is 0, so every side's update is made and changes nothing: over the whole epoch all must count the same labelled
tokens and sum up the same nats, which is asserted. A figure leaves out the first step.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cli import ROOT, machine

SIDES = ("ours", "padded", "packed")
LENGTH, ROWS = 512, 2  # tokens of a packed row, and rows of a step
SHAPE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trl", type=Path, required=True, help="where TRL was installed")
    arguments.add_argument("--kit", type=Path, default=ROOT.parent / "shared" / "kit")
    arguments.add_argument("--examples", type=int, default=60, help="of the epoch")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--json", type=Path, help="where to write every single measurement")
    options = arguments.parse_args()
    facts = machine()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        job = in_a_process(prepare_work, folder, options.kit, options.examples)
        rounds = []
        for number in range(options.rounds):
            sides = SIDES[number % 3 :] + SIDES[: number % 3]
            rounds.append({side: measure(side, folder, job, options.trl) for side in sides})
    check_same_work(rounds)
    facts["load_after"] = os.getloadavg()[0]
    print(render(facts, rounds))
    if options.json:
        document = {"machine": facts, "shape": SHAPE, "examples": options.examples, "rounds": rounds}
        options.json.write_text(json.dumps(document, indent=2), encoding="utf-8")


def prepare_work(folder: Path, kit: Path, examples: int) -> Any:
    """A cell of the model and the data, and the same for TRL: the model with its PAD row, and the tokens."""
    import shutil

    import torch
    import yaml
    from transformers import LlamaConfig, LlamaForCausalLM

    from backbones.registry import build, load_codec
    from orchestrator.cell_job import CellJob
    from orchestrator.data.parity import compare_tokenizers, save_selection
    from orchestrator.data.prepare import load_tokenized, prepare
    from orchestrator.planning.plan import load_comparison

    torch.manual_seed(0)
    plain = folder / "plain"
    LlamaForCausalLM(LlamaConfig(vocab_size=32000, **SHAPE)).save_pretrained(plain)
    for file in (kit / "tokenizers" / "llama2").glob("tokenizer*.json"):
        shutil.copy(file, plain)
    with_pad = build(f"hf:{plain}", max_length=LENGTH, seed=0)
    with_pad.llm.save_pretrained(folder / "model")
    with_pad.tokenizer.save_pretrained(folder / "model")
    with open(kit / "data" / "instruct" / "gsm8k_train.jsonl", encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream][: examples + 2]
    write_rows(folder / "train.jsonl", lines[:-2])
    write_rows(folder / "validation.jsonl", lines[-2:])
    recipe = {
        "data": {name: str(folder / f"{name}.jsonl") for name in ("train", "validation")},
        "sequence_length": LENGTH,
        "global_batch_size": ROWS,
        "micro_batch_size": ROWS,
        "budget": {"kind": "steps", "amount": 1000},
        "precision": "fp32",
        "activation_checkpointing": False,
    }
    spec = {
        "name": "labelled",
        "backbones": [f"hf:{folder / 'model'}"],
        "seeds": [0],
        "storage": str(folder / "storage"),
    }
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump(spec | {"recipe": recipe, "placement": {"workers": 1}}), encoding="utf-8")
    plan = load_comparison(file)
    cell = plan.cells[0]
    name = cell.backbone.backbone_id
    codec = load_codec(cell.backbone, max_length=LENGTH)
    prepared = prepare(name, codec, plan.train, plan.validation, folder / "prepared")
    save_selection(folder / "selection.npz", compare_tokenizers([prepared], LENGTH, plan.job.recipe.data.parity), name)
    data = load_tokenized(prepared.train_file)
    tokens = [data.example(index) for index in range(len(data))]
    assert max(len(ids) for ids, _, _ in tokens) <= LENGTH
    listed = [
        {"input_ids": ids.tolist(), "completion_mask": learned.astype(int).tolist()} for ids, learned, _ in tokens
    ]
    (folder / "tokens.json").write_text(json.dumps(listed), encoding="utf-8")
    return CellJob(
        cell=cell,
        attempt=1,
        folder=plan.cell_folder(cell),
        prepared=prepared,
        selection_file=str(folder / "selection.npz"),
        flops_per_token=plan.forecasts[0].flops_per_token,
        deadline=time.time() + 3600,
    )


def write_rows(file: Path, some: list[dict[str, str]]) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        for one in some:
            turns = [("user", one["question"]), ("assistant", one["answer"])]
            stream.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")


def measure(side: str, folder: Path, job: Any, trl: Path) -> dict[str, Any]:
    """Labelled tokens and losses of every step of an epoch, and when each step ended, in a process of its own."""
    return in_a_process(ours, folder, job) if side == "ours" else in_a_process(theirs, side, folder, job, trl)


def ours(folder: Path, job: Any) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from orchestrator.data.feed import StepWork
    from orchestrator.parallel import Mesh
    from orchestrator.training.step import micro_batches, train_step
    from orchestrator.training.trainee import build_trainee

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    trainee = build_trainee(job, Mesh.build(torch.device("cpu")))
    taken = Steps()
    for rows in epoch(trainee.feed, len(trainee.feed.kept)):
        examples = [index for row in rows for index in row]
        learned = [trainee.feed.data.example(index)[1][1:].sum() for index in examples]
        work = StepWork(rows, len(examples), tokens=0, targets=int(sum(learned)), learnable_bytes=1)
        batches = micro_batches(trainee, work, ROWS)
        outcome = train_step(job.cell, trainee, work, rate=0.0, batches=batches)
        trainee.optimizers.zero_grad()
        taken.note(work.targets, outcome.loss)
    return taken.found


def epoch(feed: Any, examples: int) -> list[tuple[tuple[int, ...], ...]]:
    """The rows of the first epoch, `ROWS` at a time."""
    rows: list[tuple[int, ...]] = []
    for work in feed.steps():
        rows += work.rows
        while sum(map(len, rows)) > examples:
            rows.pop()
        if sum(map(len, rows)) == examples:
            return [tuple(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
    raise AssertionError("the feed has no end")


def theirs(side: str, folder: Path, job: Any, trl: Path) -> dict[str, Any]:
    sys.path.insert(0, str(trl))
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(1)
    examples = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    packed_rows = -(-sum(len(one["input_ids"]) for one in examples) // LENGTH)
    size = ROWS if side == "packed" else round(len(examples) * ROWS / packed_rows)
    config = SFTConfig(
        output_dir=str(folder / side),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=size,
        num_train_epochs=1,
        learning_rate=0.0,
        max_grad_norm=job.cell.recipe.optimizer.max_grad_norm,
        optim="adamw_torch_fused",
        max_length=LENGTH,
        completion_only_loss=True,
        packing=side == "packed",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    trainer = SFTTrainer(model, args=config, train_dataset=Dataset.from_list(examples), processing_class=tokenizer)
    taken, counts, collate = Steps(), [], trainer.data_collator

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        counts.append(int((batch["labels"][:, 1:] != -100).sum()))
        return batch

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                taken.note(counts[len(taken.found["labelled"])], logs["loss"])

    trainer.data_collator = counted
    trainer.add_callback(Watch())
    trainer.train()
    return taken.found


class Steps:
    """What became of each step, and the clocks at its end."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {"labelled": [], "loss": [], "wall_s": [], "cpu_s": []}

    def note(self, labelled: int, loss: float) -> None:
        values = (labelled, loss, time.perf_counter(), time.process_time())
        for name, value in zip(self.found, values, strict=True):
            self.found[name].append(value)


def in_a_process(function: Any, *arguments: Any) -> Any:
    """Its result, from a process of its own: what one side imports and allocates does not reach the next."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def check_same_work(rounds: list[dict[str, Any]]) -> None:
    """Raises AssertionError unless all sides had the same labelled tokens and the same nats on them."""
    for taken in rounds:
        labelled = {side: sum(one["labelled"]) for side, one in taken.items()}
        nats = {
            side: sum(a * b for a, b in zip(one["labelled"], one["loss"], strict=True)) for side, one in taken.items()
        }
        assert len(set(labelled.values())) == 1, labelled
        assert max(nats.values()) - min(nats.values()) < 1e-4 * nats["ours"], nats


def rate(one: dict[str, list[float]], clock: str) -> float:
    """Labelled tokens a second, from the end of the first step to the end of the last."""
    return sum(one["labelled"][1:]) / (one[clock][-1] - one[clock][0])


def render(facts: dict[str, Any], rounds: list[dict[str, Any]]) -> str:
    """A Markdown table of medians, and the ratio to the better TRL setting in each round."""
    load = f"load {facts['load_before']:.1f} to {facts['load_after']:.1f}"
    table = [f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {load}; one thread a side", ""]
    table += ["| side | labelled tokens a CPU second | a second |", "|---|---:|---:|"]
    for side in SIDES:
        by_cpu, by_wall = (median(rate(taken[side], clock) for taken in rounds) for clock in ("cpu_s", "wall_s"))
        table.append(f"| {side} | {by_cpu:.1f} | {by_wall:.1f} |")
    table.append("")
    for clock, name in (("cpu_s", "CPU time"), ("wall_s", "time")):
        ratios = [
            rate(taken["ours"], clock) / max(rate(taken[side], clock) for side in ("padded", "packed"))
            for taken in rounds
        ]
        each = ", ".join(f"{one:.2f}" for one in ratios)
        table.append(f"ours to the better TRL setting, by {name}: {median(ratios):.2f} x; of each round: {each}")
    return "\n".join(table)


if __name__ == "__main__":
    main()
