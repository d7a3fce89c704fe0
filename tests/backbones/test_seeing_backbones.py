"""Backbones that see: which part learns under each of OpenVLA's stages, and what `collate` refuses."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from backbones import AttentionUnavailableError, CodecError, apply_adaptation, build
from backbones.adaptation import AdaptationError, Lora
from backbones.inputs import Example

TINY = ("tiny-smolvlm", "tiny-qwen3-vl", "tiny-paligemma")
# OpenVLA's stage: our adaptation, and the parts of which something learns
STAGES = {
    "align": ("connector", "frozen", {"connector"}),
    "vla-train": ("full", "frozen", {"language", "connector"}),
    "vla-full-train": ("full", "full", {"language", "connector", "vision"}),
    "last-layer": ("last_layer", "frozen", {"language"}),
    "vla-sandwich-train": ("last_layer", "full", {"language", "connector", "vision"}),
}


@cache
def seeing(backbone_id: str) -> Any:
    return build(backbone_id, max_length=256, compute_dtype=torch.float32)


def example(backbone: Any, question: str = "What?", images: int = 1) -> Example:
    encoded = backbone.codec.encode_conversation([("user", question), ("assistant", "A cat.")], [images, 0])
    side = backbone.vision.image_size
    pixels = np.random.default_rng(images).integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    return Example(np.array(encoded.input_ids), np.array(encoded.is_target), pixels)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("backbone_id", TINY)
def test_the_parts_of_a_stage_learn_and_no_other(backbone_id: str, stage: str) -> None:
    backbone, (kind, vision, parts) = seeing(backbone_id), STAGES[stage]

    trainable = apply_adaptation(backbone, kind, vision=vision)  # type: ignore[arg-type]

    learning = [(name, one) for name, one in backbone.llm.named_parameters() if one.requires_grad]
    assert {backbone.part_of(name) for name, _ in learning} == parts
    assert sum(one.numel() for _, one in learning) == trainable
    for part, whole in (
        ("vision", backbone.vision.towers[0].parameters),
        ("connector", backbone.vision.connector_parameters),
    ):
        assert sum(one.numel() for name, one in learning if backbone.part_of(name) == part) == (part in parts) * whole
    in_layers = {
        name.split(".layers.")[1].split(".")[0]
        for name, _ in learning
        if "language" in backbone.part_of(name) and ".layers." in name
    }
    assert in_layers == ({"1"} if kind == "last_layer" else {"0", "1"} if kind == "full" else set())


@pytest.mark.parametrize("backbone_id", TINY)
def test_gradients_reach_what_learns_and_pass_no_frozen_tower(backbone_id: str) -> None:
    backbone = build(backbone_id, max_length=256, compute_dtype=torch.float32)
    apply_adaptation(backbone, "full")
    backbone.enable_gradient_checkpointing()
    seen: list[bool] = []
    for layer in backbone.vision_layers[0][1]:
        layer.register_forward_hook(
            lambda _, __, out: seen.append((out[0] if isinstance(out, tuple) else out).requires_grad)
        )

    inputs = backbone.collate([[example(backbone)]]).on(torch.device("cpu"))
    backbone.nats(inputs, 1).sum().backward()

    assert seen == [False] * backbone.vision.towers[0].num_layers
    named = dict(backbone.llm.named_parameters())
    assert {name for name, one in named.items() if one.grad is not None} == {
        name for name, one in named.items() if one.requires_grad
    }


@pytest.mark.parametrize("backbone_id", TINY)
def test_lora_adapts_the_decoder_layers_alone(backbone_id: str) -> None:
    backbone = build(backbone_id, max_length=256)
    trainable = apply_adaptation(backbone, "lora", Lora(rank=2))
    adapted = [name for name, _ in backbone.llm.named_parameters() if ".lora_" in name]
    assert adapted and {backbone.part_of(name) for name in adapted} == {"language"}
    assert sum(one.numel() for one in backbone.llm.parameters() if one.requires_grad) == trainable
    matrices = sum(isinstance(module, torch.nn.Linear) for module in build(backbone_id).decoder_layers.modules())
    assert len(adapted) == 2 * matrices


def test_what_a_kind_leaves_alone_is_not_asked_to_see() -> None:
    with pytest.raises(AdaptationError, match="adaptation lora leaves the vision tower as it is"):
        apply_adaptation(build("tiny-smolvlm"), "lora", vision="full")
    with pytest.raises(AdaptationError, match="nothing of tiny-qwen would learn"):
        apply_adaptation(build("tiny-qwen"), "connector")


def test_images_and_their_tokens_must_agree() -> None:
    backbone = seeing("tiny-smolvlm")
    good = example(backbone)
    with pytest.raises(CodecError, match="an example has 2 images and 4 of their tokens, not 8"):
        backbone.collate([[good._replace(images=np.repeat(good.images, 2, axis=0))]])
    with pytest.raises(CodecError, match="an example has 0 images and 4 of their tokens, not 0"):
        backbone.collate([[good._replace(images=None)]])
    with pytest.raises(CodecError, match="an example learns the tokens of its images"):
        backbone.collate([[good._replace(is_learned=np.ones_like(good.is_learned))]])
    with pytest.raises(
        ValueError, match=r"images are uint8 \(16, 16, 3\), but this backbone looks at uint8 \(32, 32, 3\)"
    ):
        backbone.collate([[good._replace(images=good.images[:, ::2, ::2])]])
    with pytest.raises(CodecError, match="tiny-qwen reads text alone, and an example has images"):
        build("tiny-qwen").collate([[good]])


@pytest.mark.parametrize("backbone_id", ["tiny-paligemma", "tiny-gemma3-vl"])
def test_a_mask_that_would_span_examples_is_refused(backbone_id: str) -> None:
    backbone = seeing(backbone_id)
    with pytest.raises(
        CodecError, match=f"{backbone_id}: its examples cannot share a row; set recipe.packing to false"
    ):
        backbone.collate([[example(backbone), example(backbone)]])


def test_transformers_still_loses_the_second_image_of_a_packed_row_of_gemma_3() -> None:
    """When this fails, transformers packs Gemma 3 right, and its spec can say so."""
    backbone = build("tiny-gemma3-vl", max_length=256, compute_dtype=torch.float32)
    backbone.llm.eval()
    examples = [example(backbone, "What is it?"), example(backbone, "Which of the two is it, and why is it so?")]

    def nats(rows: list[list[Example]]) -> torch.Tensor:
        with torch.no_grad():
            return backbone.nats(backbone.collate(rows).on(torch.device("cpu")), 1)

    alone = torch.cat([nats([[one]]) for one in examples])
    object.__setattr__(backbone.spec.vision, "packs", True)
    try:
        assert float((nats([examples]) - alone).abs().max()) > 1e-3
    finally:
        object.__setattr__(backbone.spec.vision, "packs", False)


def test_a_kernel_that_cannot_look_both_ways_is_refused() -> None:
    with pytest.raises(AttentionUnavailableError, match="varlen cannot run here: not both towers of tiny-smolvlm"):
        seeing("tiny-smolvlm").use_attention("varlen", torch.bfloat16)
    assert build("tiny-smolvlm").attention.kernel == "sdpa"
    assert build("tiny-paligemma").attention.kernel == "eager"


def test_text_without_an_image_is_read_too() -> None:
    for backbone_id in TINY:
        backbone = seeing(backbone_id)
        encoded = backbone.codec.encode_conversation([("user", "What?"), ("assistant", "A cat.")])
        inputs = backbone.collate([[Example(np.array(encoded.input_ids), np.array(encoded.is_target))]])
        assert "pixel_values" not in inputs.extras
        assert bool(torch.isfinite(backbone.nats(inputs.on(torch.device("cpu")), 1)).all())
