"""The closed form of a training step's FLOPs, against PyTorch's own counter of matrix products."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.adaptation import Lora, apply_adaptation
from backbones.inputs import Example
from backbones.registry import build, get_spec
from orchestrator.planning.sizes.flops import training_flops_per_image, training_flops_per_token
from orchestrator.planning.sizes.units import Units
from orchestrator.spec_files.spec import Adaptation

LENGTH = 128


@pytest.mark.parametrize("backbone_id", ["tiny-llama2", "tiny-mistral"])
@pytest.mark.parametrize("adaptation", ["full", "last_layer", "lora"])
def test_a_step_multiplies_as_often_as_the_formula_says(backbone_id: str, adaptation: str) -> None:
    backbone = build(backbone_id, attention="eager")
    apply_adaptation(backbone, adaptation, Lora(rank=1) if adaptation == "lora" else None)
    ids = torch.randint(0, 300, (1, LENGTH), generator=torch.Generator().manual_seed(0))

    with FlopCounterMode(display=False) as counter:
        backbone(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    predicted = training_flops_per_token(backbone.spec, LENGTH, adaptation) * LENGTH
    assert counter.get_total_flops() == pytest.approx(predicted, rel=0.03)


@pytest.mark.parametrize("backbone_id", ["tiny-smolvlm", "tiny-paligemma"])
@pytest.mark.parametrize(("kind", "vision"), [("full", "frozen"), ("full", "full"), ("connector", "frozen")])
def test_an_image_multiplies_as_often_as_the_formula_says(backbone_id: str, kind: str, vision: str) -> None:
    backbone = build(backbone_id, attention="eager")
    apply_adaptation(backbone, kind, vision=vision)  # type: ignore[arg-type]
    spec, codec = backbone.spec, backbone.codec
    assert spec.vision is not None
    encoded = codec.encode_conversation([("user", "What? " * 20), ("assistant", "A cat.")], [4, 0])
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    inputs = backbone.collate([[Example(np.array(encoded.input_ids), np.array(encoded.is_target), pixels)]])

    with FlopCounterMode(display=False) as counter:
        backbone(**inputs.on(torch.device("cpu")).arguments, use_cache=False).logits.sum().backward()

    length = inputs.input_ids_BT.shape[1]
    text = training_flops_per_token(spec, length, kind) * length
    assert counter.get_total_flops() == pytest.approx(text + 4 * training_flops_per_image(spec, kind, vision), rel=0.05)


@pytest.mark.parametrize("backbone_id", ["tiny-smolvlm", "tiny-qwen3-vl", "tiny-gemma3-vl", "tiny-llama2"])
@pytest.mark.parametrize(
    "adaptation", [{}, {"vision": "full"}, {"kind": "connector"}, {"kind": "last_layer", "vision": "full"}]
)
def test_what_learns_is_counted_as_it_is_adapted(backbone_id: str, adaptation: dict[str, str]) -> None:
    if get_spec(backbone_id).vision is None and adaptation:
        return
    wanted = Adaptation.model_validate(adaptation)
    learning = apply_adaptation(build(backbone_id), wanted.kind, wanted.lora, wanted.vision)
    assert Units(get_spec(backbone_id), wanted).learning == pytest.approx(learning, rel=0.01)
