"""Every registered family, as a small random model of its own class: laid out on meta, sharded and filled, it is still
the model that stock transformers loads; packing changes no loss; and only what an adaptation names learns.

One start of the ranks for all families; each test looks at what they found.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from gang import run_ranks
from small_models import FAMILY_REPRESENTATIVES, make_small_folder, small_spec
from torch.nn import functional
from transformers import AutoModelForCausalLM

from backbones.inputs import Example, make_inputs
from backbones.registry import get_spec, register
from orchestrator.parallel import Mesh
from orchestrator.spec_files.spec import Recipe
from orchestrator.training.loss import token_nats
from orchestrator.training.model.sharding import build_sharded

FAMILIES = list(FAMILY_REPRESENTATIVES)
# How rows fall to one rank or four is a repeated proof: by `make chaos`.
WORLDS = (2, *(pytest.param(world, marks=pytest.mark.chaos) for world in (1, 4)))
LENGTHS = (40, 9, 30)  # longer than the windows of 16 tokens, and shorter
LORA_RANK = 2
Looks = Callable[[int], dict[str, dict[str, Any]]]


def recipe(adaptation: str = "full", attention: str = "auto") -> Recipe:
    """fp32, where the model's own arithmetic is the only difference that could show."""
    lora = {"rank": LORA_RANK} if adaptation == "lora" else {}
    return Recipe.model_validate(
        {
            "data": {"train": "-", "validation": "-"},
            "budget": {"kind": "steps", "amount": 1},
            "sequence_length": 256,
            "precision": "fp32",
            "attention": attention,
            "activation_checkpointing": False,
            "adaptation": {"kind": adaptation, **lora},
        }
    )


def look_at_all(folders: dict[str, Path], adaptations: bool) -> dict[str, dict[str, Any]]:
    """On every rank: what became of each family."""
    return {family: look_at(family, folder, adaptations) for family, folder in folders.items()}


def look_at(family: str, folder: Path, adaptations: bool) -> dict[str, Any]:
    spec = register(small_spec(get_spec(FAMILY_REPRESENTATIVES[family][0]), f"small-{family}", folder))
    examples = [torch.randint(3, 200, (size,), generator=torch.Generator().manual_seed(size)) for size in LENGTHS]
    backbone, layers = build(spec.backbone_id)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        ours = backbone(input_ids=examples[0][None], use_cache=False).logits
        theirs = stock(input_ids=examples[0][None], use_cache=False).logits
    rows = min(ours.shape[-1], theirs.shape[-1])
    found = {
        "units": sum("FSDP" in type(module).__name__ for module in backbone.llm.modules()),
        "layer_class": type(layers[0]).__name__,
        "layers": backbone.llm.config.num_hidden_layers,
        "weights_read": backbone.weights_read,
        "kernel": backbone.attention.kernel,
        "difference": float((ours[..., :rows] - theirs[..., :rows]).abs().max() / theirs[..., :rows].abs().max()),
        "labelled": labelled_errors(backbone, examples) if adaptations else None,
        "whole": sum(parameter.numel() for parameter in backbone.llm.parameters()),
        "packing": None,
    }
    if adaptations:
        found["packing"] = {one: packing_error(spec.backbone_id, one, examples) for one in kernels(backbone.llm)}
        found |= {kind: learned_names(spec.backbone_id, kind, examples[0]) for kind in ("last_layer", "lora")}
    return found


def build(backbone_id: str, **settings: str) -> Any:
    backbone, layers = build_sharded(get_spec(backbone_id), recipe(**settings), Mesh.build(torch.device("cpu")), seed=5)
    backbone.llm.eval()
    return backbone, layers


def kernels(llm: Any) -> list[str]:
    return ["eager", "sdpa"] if llm._supports_sdpa else ["eager"]


def packing_error(backbone_id: str, kernel: str, examples: list[torch.Tensor]) -> float:
    """Relative difference between the nats of examples in one row and of each alone."""
    backbone, _ = build(backbone_id, attention=kernel)
    assert backbone.llm.config._attn_implementation == kernel
    pairs = [Example(ids.numpy(), torch.ones(len(ids), dtype=torch.bool).numpy()) for ids in examples]

    def nats(rows: Any) -> float:
        with torch.no_grad():
            return float(token_nats(backbone, make_inputs(rows, backbone.pad_token_id), torch.device("cpu")).sum())

    alone = math.fsum(nats([[pair]]) for pair in pairs)
    return abs(nats([pairs]) - alone) / alone


def labelled_errors(backbone: Any, examples: list[torch.Tensor]) -> dict[str, float]:
    """Largest difference from the whole logits: of nats, and of this rank's gradients, relative to the largest."""
    pairs = [Example(ids.numpy(), (torch.arange(len(ids)) % 3 > 0).numpy()) for ids in examples]
    inputs = make_inputs([pairs[:2], pairs[2:]], backbone.pad_token_id)
    placed = inputs.on(torch.device("cpu"))
    backbone.llm.reshard()  # the root shows its gathered weights after a forward pass without a backward one
    learning = list(backbone.llm.parameters())

    def gradients(nats: torch.Tensor) -> list[torch.Tensor]:
        nats.sum().backward()
        found = [parameter.grad.to_local() for parameter in learning]
        backbone.llm.zero_grad()
        return found

    logits = backbone(**placed.arguments, use_cache=False).logits.flatten(0, 1)
    labels = torch.from_numpy(inputs.labels_BT).flatten()
    whole = functional.cross_entropy(logits, labels, reduction="none")[placed.positions_N]
    expected = gradients(whole)
    nats = backbone.nats(placed, chunks=3)
    compared = zip(gradients(nats), expected, strict=True)
    return {
        "nats": float(((nats - whole).abs() / whole).max()),
        "gradients": max(float((a - b).abs().max() / b.abs().max()) for a, b in compared if b.numel()),
    }


def learned_names(backbone_id: str, kind: str, ids: torch.Tensor) -> dict[str, list[str]]:
    """Parameters that may learn, and those that a backward pass gave a gradient."""
    backbone, _ = build(backbone_id, adaptation=kind)
    backbone(input_ids=ids[None], labels=ids[None], use_cache=False).loss.backward()
    named = dict(backbone.llm.named_parameters())
    return {
        "may": [name for name, parameter in named.items() if parameter.requires_grad],
        "did": [name for name, parameter in named.items() if parameter.grad is not None],
        "all": list(named),
        "modules": sorted({name.split(".lora_")[0].rpartition(".")[2] for name in named if ".lora_" in name}),
    }


@pytest.fixture(scope="module")
def folders(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        family: make_small_folder(get_spec(backbone_id), root / family, kit / "tokenizers" / tokenizer)
        for family, (backbone_id, tokenizer) in FAMILY_REPRESENTATIVES.items()
    }


@pytest.fixture(scope="module")
def looks(folders: dict[str, Path]) -> Looks:
    """What rank 0 found, by the number of ranks, which are started where a test asks."""
    return cache(lambda world: run_ranks(world, look_at_all, folders, world == 2)[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("world", WORLDS)
def test_a_family_is_sharded_by_layers_and_loads_what_stock_transformers_loads(
    looks: Looks, family: str, world: int
) -> None:
    look, spec = looks(world)[family], get_spec(FAMILY_REPRESENTATIVES[family][0])

    assert look["units"] == look["layers"] + 1
    assert look["layer_class"].removeprefix("FSDP") == spec.decoder_layer_cls
    assert look["weights_read"] == "each rank its own rows"
    assert look["difference"] < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_labelled_positions_alone_have_the_nats_and_gradients_of_the_whole_logits(looks: Looks, family: str) -> None:
    errors = looks(2)[family]["labelled"]

    assert errors["nats"] < 1e-6
    assert errors["gradients"] < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_changes_no_loss_on_any_kernel_that_runs_here(looks: Looks, family: str) -> None:
    packing = looks(2)[family]["packing"]

    assert set(packing) == ({"eager"} if family == "gemma2" else {"eager", "sdpa"})
    assert max(packing.values()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_alone_learns(looks: Looks, family: str) -> None:
    names = looks(2)[family]["last_layer"]

    assert set(names["did"]) == set(names["may"]) < set(names["all"])
    in_layers = {name for name in names["may"] if ".layers." in name or ".h." in name}
    assert in_layers == {name for name in names["all"] if ".layers.2." in name or ".h.2." in name}
    outside = set(names["may"]) - in_layers
    assert all("embed" in name or "lm_head" in name or "wte" in name for name in outside) and outside


TARGETS = {
    "phi": ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"],
    "phi3": ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"],
    "neox": ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
}
LLAMA_TARGETS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_alone_learn_on_every_matrix_of_the_layers(looks: Looks, family: str) -> None:
    names = looks(2)[family]["lora"]

    assert names["modules"] == TARGETS.get(family, LLAMA_TARGETS)
    assert set(names["did"]) == set(names["may"]) == {name for name in names["all"] if ".lora_" in name}
