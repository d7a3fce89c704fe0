"""Fused backbones in a plan: found beside the spec file, sized with their towers, refused where nothing sees."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pictures import shown

from backbones.registry import build, get_spec
from orchestrator.errors import SpecError
from orchestrator.planning.advice import advise
from orchestrator.planning.plan import Plan, load_comparison
from orchestrator.planning.sizes.flops import training_flops_per_token
from orchestrator.planning.sizes.units import Units
from orchestrator.spec_files.spec import Adaptation


def plan_of(folder: Path, backbone: str, images: bool, **recipe: Any) -> Plan:
    for offset, name in enumerate(("train", "validation")):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as stream:
            for number in range(8 * offset, 8 * offset + 8):
                question: dict[str, Any] = {"role": "user", "content": f"What {number}?"}
                if images:
                    question["images"] = [shown(folder, number)]
                stream.write(json.dumps({"messages": [question, {"role": "assistant", "content": "A cat."}]}) + "\n")
    settings = {
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "global_batch_size": 2,
        "budget": {"kind": "steps", "amount": 1},
    }
    spec = {
        "name": "fused",
        "backbones": [backbone],
        "seeds": 1,
        "storage": str(folder / "s"),
        "recipe": settings | recipe,
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump({**spec, "placement": {"workers": 1}}))
    return load_comparison(folder / "compare.yaml")


def test_a_language_model_beside_the_spec_file_can_be_put_behind_towers(tmp_path: Path) -> None:
    language = build("tiny-llama2")
    language.llm.save_pretrained(tmp_path / "mine")
    language.tokenizer.save_pretrained(tmp_path / "mine")

    (cell,) = plan_of(tmp_path, "fused:tiny-siglip+hf:./mine", images=True).cells

    assert cell.backbone.backbone_id == "fused:tiny-siglip+hf:./mine"
    assert cell.backbone.reference == f"fused:tiny-siglip+hf:{(tmp_path / 'mine').resolve()}+gelu-mlp"
    assert cell.backbone.folder == (tmp_path / "mine").resolve()


@pytest.mark.parametrize(
    ("adaptation", "path"), [({"kind": "connector"}, "kind"), ({"kind": "full", "vision": "full"}, "vision")]
)
def test_towers_and_connectors_learn_only_where_there_are_some(
    adaptation: dict[str, str], path: str, tmp_path: Path
) -> None:
    assert plan_of(tmp_path, "fused:tiny-siglip+tiny-llama2", images=True, adaptation=adaptation).cells
    with pytest.raises(SpecError, match=rf"recipe\.adaptation\.{path}.*fused:TOWERS\+tiny-llama2"):
        plan_of(tmp_path, "tiny-llama2", images=False, adaptation=adaptation)


def test_towers_are_no_part_of_decoder_layers_in_what_is_predicted() -> None:
    language, fused = get_spec("smollm2-135m"), get_spec("fused:dinosiglip-224px+smollm2-135m")
    assert fused.vision is not None
    seen = fused.vision.connector_parameters + sum(tower.parameters for tower in fused.vision.towers)
    assert fused.parameters == language.parameters + seen

    assert training_flops_per_token(fused, 512) == training_flops_per_token(language, 512)
    alone, behind = (Units(spec, Adaptation()) for spec in (language, fused))
    assert behind.layer == alone.layer
    connector = fused.vision.connector_parameters
    assert behind.learning - alone.learning == connector
    assert Units(fused, Adaptation(kind="connector")).learning == connector
    assert Units(fused, Adaptation(kind="full", vision="full")).learning == fused.parameters
    assert Units(fused, Adaptation(kind="lora")).learning == Units(language, Adaptation(kind="lora")).learning


@pytest.mark.parametrize(
    ("adaptation", "is_warned"),
    [
        ({"kind": "lora"}, True),
        ({"kind": "last_layer"}, True),
        ({"kind": "last_layer", "vision": "full"}, False),
        ({"kind": "connector"}, False),
    ],
)
def test_a_plan_warns_of_a_new_projector_that_would_stay_as_it_was_drawn(
    adaptation: dict[str, str], is_warned: bool, tmp_path: Path
) -> None:
    said = advise(plan_of(tmp_path, "fused:tiny-siglip+tiny-llama2", images=True, adaptation=adaptation))
    assert any("has a new projector" in sentence for sentence in said) == is_warned
