"""Every family that sees, at tiny size on two ranks: the layers of both towers are units, and loss and gradients are
those of the stock class on one process, which makes its positions and masks by itself from its own processor's pixels.

One start of the ranks for all families; each test looks at what they found.
"""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gang import run_ranks
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from backbones.inputs import Example
from backbones.registry import build, get_spec
from orchestrator.parallel import Mesh
from orchestrator.spec_files.spec import Recipe
from orchestrator.training.loss import summed_nats
from orchestrator.training.model.optimizer import build_optimizers
from orchestrator.training.model.sharding import build_sharded, found_contract

TINY = ("tiny-smolvlm", "tiny-idefics3", "tiny-qwen2.5-vl", "tiny-qwen3-vl", "tiny-gemma3-vl", "tiny-paligemma")
CPU = torch.device("cpu")


def recipe(**adaptation: Any) -> Recipe:
    """fp32, where arithmetic in another order is the only difference that could show."""
    return Recipe.model_validate(
        {
            "data": {"train": "-", "validation": "-"},
            "budget": {"kind": "steps", "amount": 1},
            "precision": "fp32",
            "activation_checkpointing": True,
            "adaptation": {"kind": "full", **adaptation},
        }
    )


def examples_of(backbone: Any) -> list[Example]:
    """Four of different lengths, one with two images."""
    draw, size = np.random.default_rng(0), backbone.vision.image_size
    said = [("What is it?", 1), ("Which of the two is the larger one, and why?", 2), ("Where?", 1), ("Whose cat?", 1)]
    examples = []
    for question, images in said:
        turns = [("user", question), ("assistant", f"A cat, I think: {question}")]
        encoded = backbone.codec.encode_conversation(turns, [images, 0])
        pixels = draw.integers(0, 256, (images, size, size, 3), dtype=np.uint8)
        examples.append(Example(np.array(encoded.input_ids), np.array(encoded.is_target), pixels))
    return examples


# --- The stock class, with what its own processor would give it -------------------------------------------------------


def look_at(backbone: Any, images: np.ndarray) -> dict[str, torch.Tensor]:
    """What the image processor of transformers makes of the same images."""
    vision = backbone.vision
    common = {"image_mean": list(vision.mean), "image_std": list(vision.std), "return_tensors": "pt"}
    square = {"height": vision.image_size, "width": vision.image_size}
    edge = {"longest_edge": vision.image_size}
    match type(backbone.llm).__name__:
        case "SmolVLMForConditionalGeneration" | "Idefics3ForConditionalGeneration" as name:
            processor = SmolVLMImageProcessorPil if name.startswith("Smol") else Idefics3ImageProcessorPil
            made = processor(size=edge, max_image_size=edge, do_image_splitting=False)([list(images)], **common)
        case "Qwen2_5_VLForConditionalGeneration" | "Qwen3VLForConditionalGeneration":
            pixels = vision.image_size**2
            processor = Qwen2VLImageProcessorPil(
                patch_size=vision.towers[0].patch_size, size={"shortest_edge": pixels, "longest_edge": pixels}
            )
            made = processor(list(images), **common)
        case "Gemma3ForConditionalGeneration":
            made = Gemma3ImageProcessorPil(size=square)(list(images), **common)
        case _:
            made = SiglipImageProcessorPil(size=square)(list(images), **common)
    return {name: made[name] for name in ("pixel_values", "pixel_attention_mask", "image_grid_thw") if name in made}


def types_of(backbone: Any, example: Example) -> dict[str, torch.Tensor]:
    """Token types as the processors write them: 1 for an image's, or, for PaliGemma, for the answer's."""
    seen = torch.from_numpy(example.input_ids == backbone.image_tokens.placeholder).long()[None]
    match type(backbone.llm).__name__:
        case "Qwen2_5_VLForConditionalGeneration" | "Qwen3VLForConditionalGeneration":
            return {"mm_token_type_ids": seen}
        case "Gemma3ForConditionalGeneration":
            return {"token_type_ids": seen}
        case "PaliGemmaForConditionalGeneration":
            answer = example.input_ids.tolist().index(
                backbone.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
            )
            return {"token_type_ids": (torch.arange(len(example.input_ids)) > answer).long()[None]}
    return {}


def stock_nats(llm: Any, backbone: Any, example: Example) -> torch.Tensor:
    """Summed over the labelled positions; the stock forward makes positions and masks from these inputs alone."""
    ids = torch.from_numpy(example.input_ids)[None]
    assert example.images is not None
    logits = llm(input_ids=ids, **look_at(backbone, example.images), **types_of(backbone, example)).logits[0]
    learned = torch.from_numpy(example.is_learned)[1:]
    return functional.cross_entropy(logits[:-1][learned], ids[0, 1:][learned], reduction="sum")


# --- On every rank ----------------------------------------------------------------------------------------------------


def look_at_all() -> dict[str, dict[str, Any]]:
    return {backbone_id: look_at_family(backbone_id) for backbone_id in TINY}


def look_at_family(backbone_id: str) -> dict[str, Any]:
    whole = build(backbone_id, max_length=256, seed=5, compute_dtype=torch.float32)
    stock = getattr(transformers, whole.spec.llm_cls)(whole.llm.config).eval()
    stock.load_state_dict(whole.llm.state_dict())
    examples = examples_of(whole)
    expected = torch.stack([stock_nats(stock, whole, example) for example in examples]).sum()
    expected.backward()

    backbone, layers = build_sharded(get_spec(backbone_id), recipe(vision="full"), mesh := Mesh.build(CPU), seed=5)
    backbone.llm.eval()
    mine = examples[mesh.dp_rank :: mesh.dp_size]
    found = {"units": units(backbone), "contract": contract(backbone, layers)}
    for way, rows in {"rows": [[example] for example in mine], "packed": [mine]}.items():
        if way == "packed" and not whole.vision.packs:
            continue
        nats = summed_nats(backbone, backbone.collate(rows), CPU)
        (nats * mesh.dp_size).backward()  # FSDP takes the mean over ranks
        total = mesh.sum_over_data(one := nats.detach().clone()) or one
        found[way] = {
            "nats": abs(float(total - expected) / float(expected)),
            "gradients": dict(gradient_errors(backbone.llm, stock)),
        }
        backbone.llm.zero_grad()
    return found


def units(backbone: Any) -> list[str]:
    return sorted(type(module).__name__ for module in backbone.llm.modules() if "FSDP" in type(module).__name__)


def contract(backbone: Any, layers: list[Any]) -> dict[str, Any]:
    return found_contract(backbone, layers, build_optimizers(backbone.llm, recipe().optimizer), "fp32")


def gradient_errors(llm: Any, stock: Any) -> Any:
    """Largest difference of each gradient, relative to its largest value.

    Some are zero but for rounding: attention does not change with the bias of its keys.
    """
    theirs = dict(stock.named_parameters())
    least = 1e-2 * max(float(one.grad.abs().max()) for one in theirs.values() if one.grad is not None)
    for name, parameter in llm.named_parameters():
        wanted = theirs[name].grad
        if parameter.grad is None or wanted is None:
            yield name, 0.0 if parameter.grad is None and (wanted is None or not wanted.any()) else float("inf")
            continue
        given = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        yield name, float((given - wanted).abs().max() / wanted.abs().max().clamp(min=least))


@pytest.fixture(scope="module")
def looks() -> dict[str, dict[str, Any]]:
    """What rank 0 found."""
    return run_ranks(2, look_at_all)[0]


@pytest.mark.parametrize("backbone_id", TINY)
def test_every_layer_of_both_towers_is_a_unit(looks: dict[str, dict[str, Any]], backbone_id: str) -> None:
    spec = get_spec(backbone_id)
    assert spec.vision is not None
    (tower,) = spec.vision.towers
    layers = [f"FSDP{spec.decoder_layer_cls}"] * spec.architecture.num_layers
    towers = [f"FSDP{tower.layer_cls}"] * tower.num_layers
    assert looks[backbone_id]["units"] == sorted([*layers, *towers, f"FSDP{spec.llm_cls}"])
    contract = looks[backbone_id]["contract"]
    assert contract["decoder_layer"] == spec.decoder_layer_cls
    assert contract["vision_layers"] == f"{tower.num_layers} {tower.layer_cls}"
    assert contract["parameters"] == contract["trainable_parameters"] == spec.parameters


@pytest.mark.parametrize("backbone_id", TINY)
def test_loss_and_gradients_are_those_of_the_stock_class(looks: dict[str, dict[str, Any]], backbone_id: str) -> None:
    ways = {way: looks[backbone_id][way] for way in ("rows", "packed") if way in looks[backbone_id]}
    assert set(ways) == ({"rows", "packed"} if get_spec(backbone_id).vision.packs else {"rows"})  # type: ignore[union-attr]
    for way, found in ways.items():
        assert found["nats"] < 1e-5, way
        wrong = {name: error for name, error in found["gradients"].items() if not error < 1e-5}
        assert not wrong, (way, wrong)
