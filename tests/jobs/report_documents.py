"""Documents as a finished comparison or finetune leaves them in `report.json`: the input of the report."""

import math
import random
from typing import Any

from jobs.results.costs.spent import Rate, total

NAMES = ["llama2-7b-pure", "mistral-v0.1-7b-pure", "hf:Qwen/Qwen3-8B@0123456789abcdef0123456789abcdef01234567"]
SPEC_YAML = "name: which-backbone\nbackbones: [llama2-7b-pure, mistral-v0.1-7b-pure]\nseeds: 3\n"


def cell_document(index: int, backbone_id: str, seed: int, points: int = 11, steps: int = 200) -> dict[str, Any]:
    """A finished run whose curves fall as real ones do; `index` sets how good the backbone is."""
    noise = random.Random(f"{backbone_id}/{seed}")
    floor, before = 0.82 + 0.011 * index + noise.gauss(0, 0.0012), 1.31 + 0.04 * index
    speed = max(5200.0 - 310 * index, 240.0)
    evaluations = []
    for point in range(points):
        progress = point / (points - 1)
        bits = floor + (before - floor) * math.exp(-6 * progress) + (noise.gauss(0, 0.0008) if point else 0)
        bytes_seen = round(progress * 2e9)
        evaluations.append(
            {
                "step": round(progress * 900),
                "progress": progress,
                "bytes_seen": bytes_seen,
                "tokens_seen": round(bytes_seen / 4.1),
                "train_time_s": bytes_seen / 4.1 / speed / 8,
                "val_bits_per_byte": bits,
                "val_loss": bits * 2.8,
            }
        )
    losses = [[1 + step * 900 // steps, 2.4 * bits_at(step / steps) + noise.gauss(0, 0.06)] for step in range(steps)]
    last = evaluations[-1]
    return {
        "cell_id": f"{index:x}{seed:x}9f3c2a71b0",
        "backbone_id": backbone_id,
        "seed": seed,
        "status": "SUCCEEDED",
        "attempts": 1,
        "mlflow_run_id": f"run-{index}-{seed}",
        "failure": None,
        "restarts": [],
        "folder": f"runs/which-backbone/{index}-{seed}",
        "metrics": {
            "val_bits_per_byte": last["val_bits_per_byte"],
            "val_bits_per_byte_before": before,
            "val_loss": last["val_loss"],
            "train_loss": losses[-1][1],
            "tokens_per_second_per_device": speed + noise.gauss(0, 15),
            "bytes_per_second_per_device": 4.1 * speed,
            "step_time_s": 1.93 + 0.11 * index,
            "peak_memory_gib": 61.3 + 2.7 * index + noise.random() / 10,
            "mfu": 0.47 - 0.02 * index,
            "gpu_hours": last["train_time_s"] * 8 / 3600,
            "train_time_s": last["train_time_s"],
            "steps": 900,
            "tokens_seen": last["tokens_seen"],
            "training_flops": last["tokens_seen"] * 4.2e10,
            "bytes_seen": last["bytes_seen"],
            "examples_seen": 57_600,
            "load_time_s": 48.2,
            "checkpoint_stall_s": 3.1,
            "parameters": 6_738_415_616 + index,
        },
        "evaluations": evaluations,
        "loss_curve": losses,
        "contract": contract_document(index),
        "spent": spent_document(last["train_time_s"] * 1.25 / (1 + 0.4 * index) + 300),
    }


def spent_document(seconds: float) -> dict[str, Any]:
    """On eight GPUs, at 2.50 USD an hour each."""
    return {"seconds": seconds, "device_hours": seconds * 8 / 3600, "cost": seconds * 8 / 3600 * 2.5}


def bits_at(progress: float) -> float:
    return 0.8 + 0.5 * math.exp(-6 * progress)


def contract_document(index: int) -> dict[str, Any]:
    return {
        "parameter_dtype": "float32",
        "compute_dtype": "bfloat16",
        "reduce_dtype": "float32",
        "optimizer_state_dtype": "float32",
        "attention": {"kernel": "sdpa", "requested": "auto", "reason": "flash-attn is not installed"},
        "fsdp_units": 33 + index,
        "decoder_layer": ["LlamaDecoderLayer", "MistralDecoderLayer", "Qwen3DecoderLayer"][index % 3],
        "global_batch_size": 64,
        "micro_batch_size": 4,
        "accumulation_steps": 2,
        "workers": 8,
        "decay_parameters": 226 + index,
        "no_decay_parameters": 65,
        "prompt_format": ["llama2 pure", "mistral pure", "chat template"][index % 3],
        "prompt_hash": f"{index}c0ffee",
        "tokenizer_rows": {"base": 32000 + 8 * index, "added": 1, "padded": 63, "total": 32064 + 8 * index},
        "activation_checkpointing": True,
        "adaptation": "full",
        "device": "NVIDIA H100 80GB HBM3",
        "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    }


def failed(cell: dict[str, Any], status: str, reason: str) -> dict[str, Any]:
    nothing = {"metrics": {}, "evaluations": [], "loss_curve": [], "contract": {}, "mlflow_run_id": None}
    return cell | nothing | {"status": status, "failure": reason, "attempts": 3}


def ranking_document(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scores: dict[str, dict[str, float]] = {}
    for cell in cells:
        if cell["status"] == "SUCCEEDED":
            scores.setdefault(cell["backbone_id"], {})[str(cell["seed"])] = cell["metrics"]["val_bits_per_byte"]
    means = {name: sum(seeds.values()) / len(seeds) for name, seeds in scores.items()}
    order = sorted(means, key=lambda name: means[name])
    return [
        {
            "rank": rank,
            "backbone_id": name,
            "score": means[name],
            "seed_std": 0.0012 if len(scores[name]) > 1 else None,
            "seeds": scores[name],
            "difference_to_best": means[name] - means[order[0]],
            "worse_than_best": (rank > 1) if len(scores[name]) > 1 else None,
        }
        for rank, name in enumerate(order, 1)
    ]


def verdict_document(ranking: list[dict[str, Any]]) -> dict[str, Any]:
    tested = [row for row in ranking if row["seed_std"] is not None]
    pairs = []
    for rank, first in enumerate(tested):
        for second in tested[rank + 1 :]:
            difference = second["score"] - first["score"]
            pairs.append(
                {
                    "a": first["backbone_id"],
                    "b": second["backbone_id"],
                    "difference": difference,
                    "relative": difference / second["score"],
                    "standard_error": 0.0021,
                    "degrees_of_freedom": 7.4,
                    "interval": [difference - 0.0049, difference + 0.0049],
                    "p_value": 0.00004 if difference > 0.02 else 0.0123,
                    "p_value_holm": 0.00012 if difference > 0.02 else 0.0123,
                    "equivalent": False,
                }
            )
    best = ranking[0]["backbone_id"] if pairs else None
    return {
        "outcome": "winner" if best else "no verdict",
        "winner": best,
        "sentence": f"{best} wins: it needs 0.0112 bits per byte less than the next (95 % interval 0.0063 to 0.0161)."
        if best
        else "No verdict: fewer than two backbones finished with two seeds.",
        "pairs": pairs,
        "notes": ["The seeds of llama2-7b-pure vary more than those of the others; Welch's form was used."]
        if best
        else [],
        "alpha": 0.05,
        "margin": 0.005,
        "noise": {"seed_std": 0.0012, "seed_df": 6, "item_se": 0.0019, "groups": 212, "items": 4096},
    }


def comparison_document(names: list[str] = NAMES, seeds: int = 3, **sizes: int) -> dict[str, Any]:
    """The document of a finished comparison, as `report.json` holds it."""
    cells = [cell_document(index, name, seed, **sizes) for index, name in enumerate(names) for seed in range(seeds)]
    return finished({"cells": cells}, names)


def finished(document: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Adds what follows from the cells, and the facts around them."""
    ranking = ranking_document(document["cells"])
    return document | {
        "format": 2,
        "comparison": {
            "name": "which-backbone",
            "id": "which-backbone-5d41402abc",
            "kind": "comparison",
            "spec": {
                "name": "which-backbone",
                "recipe": {"sequence_length": 2048, "optimizer": {"betas": [0.9, 0.95]}},
            },
            "spec_yaml": SPEC_YAML,
            "command": "backbone compare jobs/specs/which-backbone.yaml",
            "created": "2026-03-14T09:26:53+00:00",
        },
        "environment": {
            "python": "3.11.7",
            "platform": "Linux-6.1-x86_64",
            "packages": {"torch": "2.13.0", "transformers": "5.23.0", "ray": "2.60.0"},
            "hardware": "8 x NVIDIA H100 80GB HBM3 on 1 node",
        },
        "data": {
            "train_examples": 815_579,
            "validation_examples": 4_096,
            "train_bytes": 2_345_678_901,
            "validation_bytes": 12_345_678,
            "train_hash": "sha256:1f2e3d4c",
            "validation_hash": "sha256:5b6a7988",
            "parity": "intersection",
            "kept": 812_345,
            "dropped": {"too_long": 3_210, "no_target": 12, "does_not_round_trip": 7, "in_validation": 5},
            "backbones": {
                name: {"examples_cut": 1_234 + index, "tokens_per_byte": 0.2437 + index / 100, "doubled_bos": 0}
                for index, name in enumerate(names)
            },
        },
        "ranking": ranking,
        "verdict": verdict_document(ranking),
        "costs": total(document["cells"], "GPU", Rate(2.5, "USD")),
    }


def finetune_document() -> dict[str, Any]:
    document = comparison_document(NAMES[:1], seeds=1)
    document["comparison"] |= {"kind": "finetune", "command": "backbone finetune f.yaml", "export": "exports/my-model"}
    del document["ranking"], document["verdict"]
    return document
