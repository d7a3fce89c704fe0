"""The closed form of a training step's FLOPs, against PyTorch's own counter of matrix products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.adaptation import Lora, apply_adaptation
from backbones.registry import build
from orchestrator.planning.sizes.flops import training_flops_per_token

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
