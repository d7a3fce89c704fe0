"""What a backbone's identity depends on: cells of earlier versions are found by it."""

from dataclasses import replace

import pytest

from backbones import get_spec
from orchestrator.identity import backbone_identity

# Before `extra_tokens` was a field of a spec.
EARLIER = {
    "llama2-7b-pure": "bdf486660d647050e8461960f412c74f1074db9b9ebba8c56a15156ced879733",
    "qwen2.5-0.5b": "258cf55cee236411c92766b99d8690714ed51fed3b6cbd402d5f2a8a1d750960",
    "tiny-qwen": "1d14b23d2e6b4a3a3f810e6b33be85d81916046da7d9d6487dc928cd51496f5e",
}


@pytest.mark.parametrize("backbone_id", EARLIER)
def test_a_backbone_without_extra_tokens_is_who_it_was(backbone_id: str) -> None:
    assert backbone_identity(get_spec(backbone_id)) == EARLIER[backbone_id]


@pytest.mark.parametrize("backbone_id", EARLIER)
def test_each_number_of_extra_tokens_is_another_backbone(backbone_id: str) -> None:
    specs = [replace(get_spec(backbone_id), extra_tokens=number) for number in (0, 1, 256)]
    assert len({backbone_identity(spec) for spec in specs}) == 3
