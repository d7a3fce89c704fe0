"""Answers that a trained cell writes to held-out instructions, its sharded model in place, and how good they are.

The prompt is what the model was trained to answer, token for token: a held-out item up to the first token that is
scored. The reference is what follows of that answer. Writing is greedy, so it needs no seed.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from backbones.contract import TrainableBackbone
from orchestrator.cell_job import generation_digest
from orchestrator.data.arrays import TokenizedDataset
from orchestrator.data.sources.containers import write_parquet
from orchestrator.layout import CellFolder
from orchestrator.parallel import Mesh
from orchestrator.tasks.turns import kernel_that_generates, shared_answers
from orchestrator.training.run import CellRun
from orchestrator.training.stages import obey

PREFIX = "generation/"  # of what trackers and reports call a metric


@dataclass(frozen=True)
class Question:
    """A held-out item as a prompt and the answer that it has; token ids."""

    item: int
    prompt: list[int]
    reference: list[int]
    end: int | None  # the token that ends the answer in training; None where none does


@dataclass(frozen=True)
class Written:
    """What the model wrote, without the token that ends it, and how long its batch took, in seconds."""

    ids: list[int]
    batch_s: float
    rows: int  # of the batch


def write_answers(run: CellRun) -> None:
    """Writes the answers and scores them; the figures join the measurement, the answers stand in a file of the cell.

    Raises CancelledError and TimedOutError between two batches; the checkpoint of the last step is there to go on from.
    """
    cell, trainee = run.job.cell, run.trainee
    asked = cell.recipe.evaluate.generation
    assert asked is not None
    run.recorder.phase("writing answers")
    run.pulse.rest("writing answers", run.position.seen.steps)
    room = cell.backbone.context_length - asked.max_new_tokens
    asked_of = find_questions(trainee.validation, trainee.scored, asked.items, room)

    written = generate(
        trainee.backbone, run.mesh, asked_of, asked.max_new_tokens, cell.micro_batch_size, partial(obey, run)
    )
    rows = score_answers(trainee.backbone.tokenizer.decode, asked_of, written, asked.metrics)
    run.metrics |= summarise(rows, asked.metrics)
    run.facts["generation"] = generation_digest(asked)
    if run.mesh.is_main:
        write_parquet(CellFolder(run.job.folder).answers, rows)


def find_questions(data: TokenizedDataset, scored: np.ndarray, most: int, room: int) -> list[Question]:
    """Evenly spaced over the scored items whose prompts have at most `room` tokens, at most so many."""
    questions = [found for item in scored.tolist() if len((found := _question(data, item)).prompt) <= room]
    return [questions[place * len(questions) // most] for place in range(most)] if len(questions) > most else questions


def _question(data: TokenizedDataset, item: int) -> Question:
    start, stop_at = data.offsets[item], data.offsets[item + 1]
    ids, scored = data.input_ids[start:stop_at], data.is_scored[start:stop_at]
    first = int(np.argmax(scored))
    rest = np.flatnonzero(~scored[first:])
    end = first + int(rest[0]) if len(rest) else len(ids)
    is_ended = end < len(ids) and bool(data.is_target[start + end])
    return Question(item, ids[:first].tolist(), ids[first:end].tolist(), int(ids[end]) if is_ended else None)


def generate(
    backbone: TrainableBackbone,
    mesh: Mesh,
    questions: Sequence[Question],
    max_new_tokens: int,
    rows: int,
    obey: Callable[[], None],
) -> list[Written]:
    """Greedily, so many rows at a time on each rank, batches of like length; on all ranks, in order. Collective."""
    model, pad = backbone.llm, backbone.tokenizer.pad_token_id
    ends = sorted({one.end for one in questions if one.end is not None})
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=ends or None, use_cache=True
    )
    order = sorted(range(len(questions)), key=lambda place: -len(questions[place].prompt))
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]

    def ask(places: Sequence[int]) -> list[Written]:
        prompts = [questions[place].prompt for place in places]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(one)) + one for one in prompts], device=mesh.device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=mesh.device)
        started = time.perf_counter()
        found = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, generation_config=config, synced_gpus=mesh.dims.world > 1
        )
        texts = found[:, width:].tolist()  # waits for the device
        elapsed = time.perf_counter() - started
        return [Written(_until(text, {*ends, pad}), elapsed, len(places)) for text in texts]

    model.eval()
    try:
        with kernel_that_generates(model), torch.no_grad():
            return shared_answers(mesh, batches, ask, obey)
    finally:
        model.train()


def _until(ids: list[int], ends: set[int]) -> list[int]:
    """What stands before the first of them."""
    place = next((number for number, one in enumerate(ids) if one in ends), len(ids))
    return ids[:place]


def score_answers(
    decode: Callable[..., Any], questions: Sequence[Question], written: Sequence[Written], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each question: texts, tokens, seconds, and each metric."""
    rows = []
    for question, answer in zip(questions, written, strict=True):
        prompt, reference, text = (
            str(decode(ids, skip_special_tokens=True)) for ids in (question.prompt, question.reference, answer.ids)
        )
        figures = {name: METRICS[name](text, reference) for name in metrics}
        counted = {"tokens": len(answer.ids), "batch_s": answer.batch_s, "rows": answer.rows}
        rows.append(
            {"item": question.item, "prompt": prompt, "reference": reference, "written": text, **counted, **figures}
        )
    return rows


def summarise(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> dict[str, float]:
    """Means of the metrics; seconds until a batch is written, the median of the items; tokens/s of a device."""
    if not rows:
        return {}
    busy = sum(row["batch_s"] / row["rows"] for row in rows)
    return {
        **{f"{PREFIX}{name}": fmean(row[name] for row in rows) for name in metrics},
        f"{PREFIX}latency_s": median(row["batch_s"] for row in rows),
        f"{PREFIX}tokens_per_second_per_device": sum(row["tokens"] for row in rows) / busy,
    }


def _exact_match(written: str, reference: str) -> float:
    """1 where both are the same but for surrounding white space."""
    return float(written.strip() == reference.strip())


def _contains(written: str, reference: str) -> float:
    """1 where the reference occurs in what was written."""
    return float(reference.strip() in written)


def _f1(written: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, whatever their case and order (SQuAD, arXiv:1606.05250)."""
    ours, theirs = (Counter(re.findall(r"\w+", text.lower())) for text in (written, reference))
    shared = sum((ours & theirs).values())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * shared / (sum(ours.values()) + sum(theirs.values()))


# The names are those of `recipe.evaluate.generation.metrics`.
METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": _exact_match, "contains": _contains, "f1": _f1}
