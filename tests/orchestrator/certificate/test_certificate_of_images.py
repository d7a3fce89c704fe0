"""Certificates of backbones that see: what passes, and which proof finds a fault of images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from test_certificate import PROOFS, certify, failed, outcome

from backbones.inputs import Inputs
from backbones.registry import build, get_spec
from backbones.spec import BackboneSpec
from backbones.vision_language.gemma import RandomGemma3VLBackbone
from backbones.vision_language.idefics import RandomIdeficsBackbone
from backbones.vision_language.qwen_vl import RandomQwenVLBackbone

TINY = {"tiny-smolvlm": 2, "tiny-qwen3-vl": 1, "tiny-paligemma": 1, "fused:tiny-siglip+tiny-qwen": 2}  # ranks


class LearnsImages(RandomIdeficsBackbone):
    """It learns to say the tokens of images."""

    def collate(self, *arguments: Any, **named: Any) -> Inputs:
        inputs = super().collate(*arguments, **named)
        labels = inputs.labels_BT.copy()
        labels[:, :-1] = np.where(
            self.is_image_token(inputs.input_ids_BT[:, 1:]), inputs.input_ids_BT[:, 1:], labels[:, :-1]
        )
        return replace(inputs, labels_BT=labels)


class Blind(RandomGemma3VLBackbone):
    """What its tower sees comes to nothing, as transformers leaves a new model of this class."""

    def fit_embeddings(self) -> None:
        super().fit_embeddings()
        self.llm.get_submodule("model.multi_modal_projector").mm_input_projection_weight.data.zero_()


class OneAxis(RandomQwenVLBackbone):
    """Positions are those of text."""

    def arrange(self, inputs: Inputs, rows: Any) -> Inputs:
        return inputs


def faulty(backbone_id: str, fault: type) -> BackboneSpec:
    return replace(
        get_spec(backbone_id), backbone_id=f"faulty-{fault.__name__}", backbone_cls=f"{__name__}:{fault.__name__}"
    )


@pytest.mark.parametrize("backbone_id", TINY)
def test_every_tiny_backbone_that_sees_is_certified(backbone_id: str, tmp_path: Path) -> None:
    certificate = certify(get_spec(backbone_id), tmp_path, world=TINY[backbone_id])
    assert certificate.passed, outcome(certificate)
    assert [proof.name for proof in certificate.proofs] == [*PROOFS[:6], "images", *PROOFS[6:]]
    spec = get_spec(backbone_id)
    assert spec.vision is not None
    tower = spec.vision.towers[0]
    assert (
        f"a tower of {tower.num_layers} x {tower.layer_cls}, {tower.num_layers} of them"
        in outcome(certificate)["architecture"]
    )


@pytest.mark.parametrize(
    ("backbone_id", "fault", "proof"),
    [
        ("tiny-smolvlm", LearnsImages, "images"),
        ("tiny-gemma3-vl", Blind, "images"),
        ("tiny-qwen3-vl", OneAxis, "parity"),
    ],
)
def test_a_fault_of_a_class_that_sees_fails_the_proof_of_it(
    backbone_id: str, fault: type, proof: str, tmp_path: Path
) -> None:
    certificate = certify(faulty(backbone_id, fault), tmp_path)
    assert proof in failed(certificate), outcome(certificate)
    assert set(failed(certificate)) <= {proof, "packing", "overfit"}, outcome(certificate)


def test_image_tokens_that_are_miscounted_fail_the_proofs_of_what_is_seen(tmp_path: Path) -> None:
    spec = get_spec("tiny-smolvlm")
    assert spec.vision is not None
    certificate = certify(
        replace(spec, backbone_id="miscounted", vision=replace(spec.vision, tokens_per_image=5)), tmp_path
    )
    assert {"parity", "images"} <= set(failed(certificate)), outcome(certificate)
    assert "Image features and image tokens do not match, tokens: 15, features: 12" in outcome(certificate)["images"]


def test_a_folder_that_sees_is_certified_and_missing_weights_of_its_tower_fail_the_proof_of_the_weights(
    tmp_path: Path,
) -> None:
    backbone = build("tiny-smolvlm", seed=5)
    folder = tmp_path / "model"
    backbone.llm.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    spec = get_spec(f"hf:{folder}")
    whole = certify(spec, tmp_path / "whole")
    assert whole.passed, outcome(whole)
    assert outcome(whole)["weights"].endswith("each equal to the checkpoint's")
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("encoder.layers.1.mlp.fc1.weight")]
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    certificate = certify(replace(spec, backbone_id="without-a-weight"), tmp_path / "part")
    assert failed(certificate) == ["weights"]
    assert "encoder.layers.1.mlp.fc1.weight" in outcome(certificate)["weights"]
