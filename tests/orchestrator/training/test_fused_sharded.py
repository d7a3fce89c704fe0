"""Fused backbones on two ranks: each layer of towers and decoder is a unit, loss and gradients are those of one
process, and what is filled, checkpointed, trained and exported is the same model again.

One start of the ranks for all; each test looks at what they found.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from gang import run_ranks
from PIL import Image as pillow
from small_jobs import make_job
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    Dinov2WithRegistersConfig,
    SiglipConfig,
    SiglipModel,
)

from backbones.adaptation import apply_adaptation
from backbones.inputs import Example
from backbones.registry import build, get_spec
from backbones.spec import BackboneSpec
from backbones.vision.backbone import FusedBackbone
from backbones.vision.towers import EYES
from backbones.vision.weights import resample_positions
from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import ExportRequest
from orchestrator.data.prepare import load_tokenized
from orchestrator.parallel import Mesh
from orchestrator.spec_files.spec import Recipe
from orchestrator.training.checkpoints.checkpoint import learned_state
from orchestrator.training.loss import summed_nats
from orchestrator.training.measurement import find_measurement, load_item_scores
from orchestrator.training.model.optimizer import build_optimizers
from orchestrator.training.model.sharding import build_sharded

FUSED = "fused:tiny-dinosiglip+tiny-llama2"
CPU = torch.device("cpu")
SEED = 3
LOOKED_AT = (
    "vision_towers.0.embeddings.position_embeddings",
    "vision_towers.0.layernorm.weight",
    "vision_towers.1.embeddings.position_embedding.weight",
)
STAGES = {
    "align": {"kind": "connector"},
    "vla-full-train": {"kind": "full", "vision": "full"},
    "vla-sandwich-train": {"kind": "last_layer", "vision": "full"},
}


def recipe(**adaptation: Any) -> Recipe:
    """fp32, where arithmetic in another order is the only difference that could show."""
    return Recipe.model_validate(
        {
            "data": {"train": "-", "validation": "-"},
            "budget": {"kind": "steps", "amount": 1},
            "precision": "fp32",
            "activation_checkpointing": True,
            "adaptation": adaptation,
        }
    )


def rows_of(backbone: FusedBackbone) -> list[list[Example]]:
    """A row for each rank: two packed examples, one with two images, and a single one."""
    draw = np.random.default_rng(0)
    said = [("What is it?", 1), ("Which of the two is larger?", 2), ("Where, and since when?", 1)]
    examples = []
    for question, count in said:
        encoded = backbone.codec.encode_conversation([("user", question), ("assistant", f"A: {question}")], [count, 0])
        images = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        examples.append(Example(np.array(encoded.input_ids), np.array(encoded.is_target), images))
    return [examples[:2], examples[2:]]


# --- On every rank ----------------------------------------------------------------------------------------------------


def look(folders: dict[str, Path], shared: Path) -> dict[str, Any]:
    mesh = Mesh.build(CPU)
    found: dict[str, Any] = {stage: train(mesh, adaptation) for stage, adaptation in STAGES.items()}
    found["units"] = count_units(mesh)
    found["filled"] = fill_from_folders(mesh, folders)
    found["resumed"] = resume(mesh, shared)
    return found


def train(mesh: Mesh, adaptation: dict[str, str]) -> dict[str, float]:
    """How far loss and gradients over the rows of both ranks are from those of one process."""
    backbone, _ = build_sharded(get_spec(FUSED), recipe(**adaptation), mesh, seed=SEED)
    alone = build(FUSED, seed=SEED)
    apply_adaptation(alone, adaptation["kind"], vision=adaptation.get("vision", "frozen"))  # type: ignore[arg-type]
    rows = rows_of(alone)
    expected = summed_nats(alone, alone.collate(rows), CPU)
    expected.backward()

    loss = summed_nats(backbone, backbone.collate([rows[mesh.dp_rank]]), CPU)
    loss.backward()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    theirs = dict(alone.llm.named_parameters())
    learning = {name: one for name, one in backbone.llm.named_parameters() if one.requires_grad}
    assert {name for name, one in theirs.items() if one.requires_grad} == learning.keys()
    errors = []
    for name, parameter in learning.items():
        assert parameter.grad is not None, f"{name} learns, but has no gradient"
        ours = parameter.grad.full_tensor() * mesh.dp_size  # FSDP averages
        gradient = theirs[name].grad
        assert gradient is not None
        errors.append(float((ours - gradient).norm() / gradient.norm().clamp(min=1e-6)))
    return {"loss": abs(float(total) / float(expected) - 1), "gradients": max(errors), "learning": len(learning)}


def count_units(mesh: Mesh) -> dict[str, Any]:
    backbone, layers = build_sharded(get_spec(FUSED), recipe(kind="full"), mesh, seed=SEED)
    towers = [layer for _, tower in backbone.vision_layers for layer in tower]
    units = [module for module in backbone.llm.modules() if isinstance(module, FSDPModule)]
    return {
        "decoder": [isinstance(layer, FSDPModule) for layer in layers],
        "towers": [isinstance(layer, FSDPModule) for layer in towers],
        "all": len(units),
    }


def fill_from_folders(mesh: Mesh, folders: dict[str, Path]) -> dict[str, Any]:
    """Tensors that differ between what the ranks read, each its own rows, and what one process loads whole."""
    spec = from_folders(folders)
    sharded, _ = build_sharded(spec, recipe(kind="full"), mesh, seed=SEED)
    whole = build(spec, seed=SEED)
    theirs = whole.llm.state_dict()
    ours = {name: tensor.full_tensor() for name, tensor in sharded.llm.state_dict().items()}
    assert ours.keys() == theirs.keys()
    return {
        "differ": [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])],
        "read": sharded.weights_read,
        "towers": {name: tensor.numpy() for name, tensor in theirs.items() if name in LOOKED_AT},
    }


def resume(mesh: Mesh, folder: Path) -> list[str]:
    """Tensors that are not what was saved after a step, in a model that loaded it."""
    trained, _ = build_sharded(get_spec(FUSED), recipe(kind="full", vision="full"), mesh, seed=SEED)
    optimizers = build_optimizers(trained.llm, recipe().optimizer)
    summed_nats(trained, trained.collate([rows_of(trained)[mesh.dp_rank]]), CPU).backward()
    for optimizer in optimizers.torch_optimizers:
        optimizer.step()
    dcp.save(learned_state(trained, optimizers), checkpoint_id=folder)
    again, _ = build_sharded(get_spec(FUSED), recipe(kind="full", vision="full"), mesh, seed=SEED)
    others = build_optimizers(again.llm, recipe().optimizer)
    state = learned_state(again, others)
    dcp.load(state, checkpoint_id=folder)
    again.llm.load_state_dict(state["model"], strict=False)
    before, after = trained.llm.state_dict(), again.llm.state_dict()
    return [name for name in before if not torch.equal(before[name].to_local(), after[name].to_local())]


# --- The test process -------------------------------------------------------------------------------------------------


def from_folders(folders: dict[str, Path]) -> BackboneSpec:
    spec = get_spec(f"fused:tiny-dinosiglip+hf:{folders['language']}")
    assert spec.fusion is not None
    towers = tuple(replace(tower, hf_hub_path=str(folders[tower.family])) for tower in spec.fusion.towers)
    return replace(spec, fusion=replace(spec.fusion, towers=towers))


def write_folders(folder: Path) -> dict[str, Path]:
    """A language model and two towers as the hub has them: SigLIP beside its text model, and both of larger images."""
    language = build("tiny-llama2", seed=9)
    language.llm.save_pretrained(folder / "language")
    language.tokenizer.save_pretrained(folder / "language")
    dino, siglip = EYES["tiny-dinosiglip"]
    common = {"patch_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        AutoModel.from_config(
            Dinov2WithRegistersConfig(hidden_size=dino.sizes.hidden_size, mlp_ratio=2, num_register_tokens=2, **common)
        ).save_pretrained(folder / "dinov2")
        SiglipModel(
            SiglipConfig(
                text_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64},
                vision_config={"hidden_size": siglip.sizes.hidden_size, "intermediate_size": 64, **common},
            )
        ).save_pretrained(folder / "siglip")
    return {name: folder / name for name in ("language", "dinov2", "siglip")}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fused")
    folders = write_folders(folder)
    return {"ranks": run_ranks(2, look, folders, folder / "checkpoint"), "folders": folders}


@pytest.mark.parametrize("stage", STAGES)
def test_loss_and_gradients_are_those_of_one_process(stage: str, found: dict[str, Any]) -> None:
    for rank in found["ranks"]:
        assert rank[stage]["loss"] <= 1e-5
        assert rank[stage]["gradients"] <= 1e-5


def test_each_layer_of_both_towers_and_of_the_decoder_is_a_unit(found: dict[str, Any]) -> None:
    units = found["ranks"][0]["units"]
    assert units == {"decoder": [True] * 3, "towers": [True] * 6, "all": 10}


def test_each_rank_reads_its_own_rows_of_language_model_and_towers(found: dict[str, Any]) -> None:
    filled = found["ranks"][1]["filled"]
    assert filled["differ"] == [] and filled["read"] == "each rank its own rows"
    classes, positions, norm, squares = _towers(found["folders"])
    dino_positions, dino_norm, siglip_positions = (torch.from_numpy(filled["towers"][name]) for name in LOOKED_AT)
    assert torch.equal(dino_positions[:, :1], classes) and torch.equal(dino_norm, norm)
    assert dino_positions.shape == (1, 17, 24) != positions.shape
    torch.testing.assert_close(siglip_positions, resample_positions(squares, torch.Size((16, 32))))


def _towers(folders: dict[str, Path]) -> tuple[torch.Tensor, ...]:
    dino = AutoModel.from_pretrained(folders["dinov2"]).state_dict()
    siglip = SiglipModel.from_pretrained(folders["siglip"]).state_dict()
    positions = dino["embeddings.position_embeddings"]
    squares = siglip["vision_model.embeddings.position_embedding.weight"]
    return positions[:, :1], positions, dino["layernorm.weight"], squares


def test_a_checkpoint_brings_back_what_learned(found: dict[str, Any]) -> None:
    assert [rank["resumed"] for rank in found["ranks"]] == [[], []]


COLOURS = {(255, 0, 0): [0.9, -0.5], (0, 255, 0): [-0.9, 0.5], (0, 0, 255): [0.0, 1.0], (255, 255, 0): [0.5, -1.0]}


def write_pictures(file: Path, count: int, seed: int) -> str:
    """A robot is told the same each time: what it has to do is to be seen."""
    draw = np.random.default_rng(seed)
    (file.parent / "frames").mkdir(exist_ok=True)
    with open(file, "w", encoding="utf-8") as stream:
        for number in range(count):
            colour, action = list(COLOURS.items())[number % len(COLOURS)]
            pixels = np.clip(np.array(colour) + draw.integers(-40, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            image = f"frames/{file.stem}-{number}.png"
            pillow.fromarray(pixels).save(file.parent / image)
            exact = (np.array(action) + draw.uniform(0, 1e-4, 2)).tolist()
            row = {"episode": number // 4, "instruction": "Do it", "action": exact, "image": image}
            stream.write(json.dumps(row) + "\n")
    return str(file)


def test_it_learns_what_only_a_picture_says_and_is_the_same_backbone_as_an_export(tmp_path: Path) -> None:
    tmp_path.joinpath("data").mkdir()
    data = {
        "train": write_pictures(tmp_path / "data" / "train.jsonl", 64, seed=1),
        "validation": write_pictures(tmp_path / "data" / "held_out.jsonl", 14, seed=2),
        "format": "actions",
    }
    job = make_job(
        tmp_path / "job",
        "fused:tiny-dinosiglip+tiny-qwen",
        workers=2,
        sequence_length=128,
        data=data,
        adaptation={"kind": "full", "vision": "full"},
        budget={"kind": "steps", "amount": 30},
        optimizer={"learning_rate": 6e-3},
    )
    job = replace(job, export=ExportRequest(tmp_path / "export", {"name": "robot"}))
    run_ranks(2, run_cell, job, CPU)
    measured = find_measurement(job.folder)
    assert measured is not None and job.prepared is not None

    assert measured.metrics["val_action_accuracy"] > 0.9  # a blind one is right once in four times
    spec = get_spec(f"hf:{tmp_path / 'export'}")
    first = get_spec("fused:tiny-dinosiglip+tiny-qwen")
    assert (spec.parameters, spec.vision) == (first.parameters, first.vision)
    assert spec.reference == f"hf:{tmp_path / 'export'}" and spec.is_pinned
    again: Any = build(spec, seed=8)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "export").eval()
    assert stock.config.text_config.use_cache and stock.config.eyes == "tiny-dinosiglip"
    held_out = load_tokenized(job.prepared.validation_file)
    found = {"ours": 0.0, "stock": 0.0}
    for index in range(len(held_out)):
        ids, _, is_scored = held_out.example(index)
        placed = again.collate([[Example(ids, is_scored, held_out.images(index))]]).on(CPU)
        with torch.no_grad():
            found["ours"] += float(again.nats(placed, 1).sum())
            logits = stock(**placed.arguments).logits.flatten(0, 1)[placed.positions_N]
            found["stock"] += float(torch.nn.functional.cross_entropy(logits, placed.targets_N, reduction="sum"))
    scores = load_item_scores(job.folder)
    for nats in found.values():
        assert nats == pytest.approx(float(scores.nats.sum()), rel=1e-4)
