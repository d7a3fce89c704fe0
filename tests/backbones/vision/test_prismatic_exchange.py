"""The same towers, projector and language model as OpenVLA's: bit for bit in names, to rounding in what they compute.

What upstream computes is stored in upstream.json; `upstream_vlm.py` makes it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from upstream_vlm import COLUMNS, LANGUAGE, PROJECTORS, STORED, inputs, values_of

from backbones.adaptation import apply_adaptation
from backbones.prismatic import load_checkpoint, save_checkpoint
from backbones.registry import build
from backbones.vision.backbone import FusedBackbone
from backbones.vision.modules import written_modules
from backbones.vision.timm_names import TowerNamesError, from_timm, to_timm
from backbones.vision.weights import resample_positions

UPSTREAM: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
# Upstream's stages as adaptations: (kind, vision).
STAGES = {
    "align": ("connector", "frozen"),
    "vla-train": ("full", "frozen"),
    "vla-full-train": ("full", "full"),
    "vla-last-layer-train": ("last_layer", "frozen"),
    "vla-sandwich-train": ("last_layer", "full"),
}


def fused(eyes: str) -> FusedBackbone:
    backbone = build(f"fused:{eyes}+{LANGUAGE}")
    assert isinstance(backbone, FusedBackbone)
    return backbone


def upstream_checkpoint(eyes: str, path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """A file with the weights that upstream's model had."""
    shapes = UPSTREAM[eyes]["shapes"]
    language = {f"llm.{name}": list(tensor.shape) for name, tensor in build(LANGUAGE).llm.state_dict().items()}
    model = {
        key: {name: values_of(f"{key}.{name}", tuple(shape)) for name, shape in named.items()}
        for key, named in {**shapes, "llm_backbone": language}.items()
    }
    torch.save({"model": model}, path)
    return model


@pytest.mark.parametrize("eyes", PROJECTORS)
def test_a_checkpoint_of_upstreams_computes_what_it_computed_there(eyes: str, tmp_path: Path) -> None:
    upstream_checkpoint(eyes, tmp_path / "step.pt")
    backbone, stored = fused(eyes), UPSTREAM[eyes]
    drawn = sum(float(tensor.double().abs().sum()) for tensor in backbone.llm.projector.state_dict().values())
    load_checkpoint(backbone, tmp_path / "step.pt")
    backbone.llm.eval()
    ids, labels, pixels = inputs(len(backbone.llm.vision_towers))

    def behind_first(rows: torch.Tensor, value: int) -> torch.Tensor:
        return torch.cat([rows[:, :1], rows.new_full((len(rows), 16), value), rows[:, 1:]], dim=1)

    output = backbone(
        input_ids=behind_first(ids, backbone.llm.config.image_token_id),
        labels=behind_first(labels, -100),
        pixel_values=pixels,
        use_cache=False,
    )
    output.loss.backward()

    assert drawn == pytest.approx(stored["projector_drawn"], rel=1e-12)
    with torch.no_grad():
        features = backbone.llm.patch_features(pixels)[0, ::4]
    torch.testing.assert_close(features, torch.tensor(stored["features"]), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(output.logits[..., COLUMNS], torch.tensor(stored["logits"]), atol=2e-6, rtol=1e-5)
    assert float(output.loss.detach()) == pytest.approx(stored["loss"], rel=1e-6)
    gradient = next(backbone.llm.projector.parameters()).grad
    assert gradient is not None and float(gradient.double().norm()) == pytest.approx(
        stored["projector_gradient"], rel=1e-4
    )


@pytest.mark.parametrize("eyes", PROJECTORS)
def test_a_checkpoint_goes_through_and_comes_back_bit_for_bit(eyes: str, tmp_path: Path) -> None:
    model = upstream_checkpoint(eyes, tmp_path / "theirs.pt")
    backbone = fused(eyes)
    load_checkpoint(backbone, tmp_path / "theirs.pt")
    save_checkpoint(backbone, tmp_path / "ours.pt")

    again = torch.load(tmp_path / "ours.pt", weights_only=True)["model"]
    for key, named in model.items():
        assert again[key].keys() == named.keys()
        assert all(torch.equal(again[key][name], tensor) for name, tensor in named.items()), key


def test_frozen_towers_may_be_missing_from_a_file_and_nothing_else(tmp_path: Path) -> None:
    model = upstream_checkpoint("tiny-siglip", tmp_path / "step.pt")
    backbone = fused("tiny-siglip")
    before = {name: tensor.clone() for name, tensor in backbone.llm.vision_towers.state_dict().items()}
    torch.save({"model": {key: model[key] for key in ("projector", "llm_backbone")}}, tmp_path / "trained.pt")
    load_checkpoint(backbone, tmp_path / "trained.pt")
    after = backbone.llm.vision_towers.state_dict()

    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(backbone.llm.projector.state_dict()["projector.0.bias"], model["projector"]["projector.0.bias"])
    torch.save({"model": {"llm_backbone": model["llm_backbone"]}}, tmp_path / "language.pt")
    with pytest.raises(ValueError, match="holds model/llm_backbone and model/projector"):
        load_checkpoint(backbone, tmp_path / "language.pt")
    with pytest.raises(RuntimeError, match=r"this backbone has no tower for|there is no"):
        load_checkpoint(fused("tiny-dinosiglip"), _with_projector_of("tiny-dinosiglip", model, tmp_path / "other.pt"))


def _with_projector_of(eyes: str, model: dict[str, dict[str, torch.Tensor]], path: Path) -> Path:
    torch.save({"model": {**model, "projector": fused(eyes).llm.projector.state_dict()}}, path)
    return path


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_of_upstreams_trains_what_it_trains_there(stage: str) -> None:
    """But for what has no gradient there: last blocks and what follows them."""
    kind, vision = STAGES[stage]
    stored, backbone = UPSTREAM["tiny-dinosiglip"], fused("tiny-dinosiglip")
    apply_adaptation(backbone, kind, vision=vision)
    for parameter in backbone.llm.parameters():
        parameter.data.fill_(float(parameter.requires_grad))
    modules = written_modules(backbone.llm)
    learning = {f"{key}.{name}" for key, named in modules.items() for name, tensor in named.items() if tensor.any()}
    learning |= {
        f"llm_backbone.llm.{name}"
        for name, parameter in backbone.llm.language_model.named_parameters()
        if parameter.requires_grad
    }

    without = {f"vision_backbone.{name}" for name in stored["without_gradient"]}
    assert learning == set(stored["learning"][stage]) - without


@pytest.mark.parametrize("family", ["siglip", "dinov2"])
def test_other_towers_state_dicts_are_refused_by_name(family: Any) -> None:
    tower = fused("tiny-siglip" if family == "siglip" else "tiny-dinov2").llm.vision_towers[0]
    stored = to_timm(family, tower.state_dict())
    assert from_timm(family, stored).keys() == tower.state_dict().keys()
    with pytest.raises(TowerNamesError, match=r"there is no blocks\.1\.norm1\.weight"):
        from_timm(family, {name: tensor for name, tensor in stored.items() if name != "blocks.1.norm1.weight"})
    with pytest.raises(TowerNamesError, match=r"no part of a .* tower: extra"):
        from_timm(family, {**stored, "extra": torch.zeros(1)})


def test_positions_are_resampled_for_another_image_size() -> None:
    grid = torch.arange(37.0)[:, None].expand(37, 37).reshape(1, 37 * 37, 1)
    stored = torch.cat([torch.full((1, 1, 1), -5.0), grid], dim=1)

    made = resample_positions(stored, torch.Size((1, 257, 1)))

    assert made[0, 0, 0] == -5.0  # the class token's
    rows = made[0, 1:].reshape(16, 16)
    torch.testing.assert_close(rows, rows[:, :1].expand(16, 16), atol=1e-5, rtol=0)
    # A linear ramp stays one: patch centres of 37 rows seen from 16, away from the edge.
    expected = (torch.arange(16) + 0.5) * 37 / 16 - 0.5
    torch.testing.assert_close(rows[3:13, 0], expected[3:13], atol=5e-3, rtol=0)
    assert resample_positions(stored, stored.shape) is stored
