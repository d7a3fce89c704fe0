"""The facts that the registry states, as far as they can be checked without a network."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, replace

import pytest
import torch

from backbones import backbone_ids, get_spec
from backbones.causal_lm import find_class, make_config
from backbones.laid_out import lay_out
from backbones.spec import BackboneSpec

SPECS = [get_spec(backbone_id) for backbone_id in backbone_ids()]
BASE_ONLY = {"gpt2", "neox"}
ADDS_BOS = {"llama2", "llama3", "mistral", "gemma2", "gemma3", "paligemma2"}
TINY_WITH_BOS = {"tiny-llama2", "tiny-mistral", "tiny-gemma3-vl", "tiny-paligemma"}
LEGACY_BUILDERS = {
    "PurePromptBuilder",
    "LLaMa2ChatPromptBuilder",
    "VicunaV15ChatPromptBuilder",
    "MistralInstructPromptBuilder",
    "PhiPromptBuilder",
    "QwenPromptBuilder",
}


def _sizes() -> list[object]:
    """One spec of every set of sizes: base and instruct models share theirs."""
    distinct = {(spec.llm_cls, spec.architecture, spec.config, spec.vision): spec for spec in SPECS}
    return [pytest.param(spec, id=spec.backbone_id) for spec in distinct.values()]


@pytest.mark.parametrize("spec", _sizes())
def test_the_stated_parameters_and_layers_are_those_of_the_class(spec: BackboneSpec) -> None:
    with torch.device("meta"):
        llm = find_class(spec)._from_config(make_config(spec))
    assert sum(parameter.numel() for parameter in llm.parameters()) == spec.parameters
    classes = Counter(type(module).__name__ for module in llm.modules())
    assert classes[spec.decoder_layer_cls or ""] == spec.architecture.num_layers
    assert any(
        len(module) == spec.architecture.num_layers and type(module[0]).__name__ == spec.decoder_layer_cls
        for module in llm.modules()
        if isinstance(module, torch.nn.ModuleList)
    )
    assert llm.get_input_embeddings().weight.shape == (spec.architecture.vocab_size, spec.architecture.hidden_size)
    tied = llm.get_output_embeddings().weight is llm.get_input_embeddings().weight
    assert tied == spec.architecture.tied_embeddings


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.vision], ids=lambda spec: spec.backbone_id)
def test_the_stated_towers_connector_and_tokens_are_those_of_the_class(spec: BackboneSpec) -> None:
    assert spec.vision is not None
    backbone, (tower,) = lay_out(spec), spec.vision.towers
    counted: Counter[str] = Counter()
    for name, parameter in backbone.llm.named_parameters():
        counted[backbone.part_of(name)] += parameter.numel()
    assert counted["vision"] == tower.parameters
    assert counted["connector"] == spec.vision.connector_parameters
    assert [(tower, len(layers)) for tower, layers in backbone.vision_layers] == [(tower, tower.num_layers)]
    config, side = backbone.llm.config, spec.vision.image_size // tower.patch_size
    merged = config.vision_config.spatial_merge_size if "Qwen" in spec.llm_cls else getattr(config, "scale_factor", 1)
    tokens = (side // merged) ** 2
    assert spec.vision.tokens_per_image == getattr(config, "mm_tokens_per_image", tokens)
    assert side % merged == 0 and tower.hidden_size % tower.num_heads == 0


def test_models_of_one_size_state_one_number_of_parameters() -> None:
    stated = defaultdict(set)
    for spec in SPECS:
        stated[spec.llm_cls, spec.architecture, spec.vision].add(spec.parameters)
    assert all(len(numbers) == 1 for numbers in stated.values())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.backbone_id)
def test_a_spec_is_complete_hashable_and_json(spec: BackboneSpec) -> None:
    assert hash(spec) == hash(replace(spec))
    assert json.loads(json.dumps(asdict(spec)))["backbone_id"] == spec.backbone_id
    assert spec.context_length >= 1024
    assert spec.licence
    assert spec.requires_bos == (spec.family in ADDS_BOS or spec.backbone_id in TINY_WITH_BOS)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.backbone_id)
def test_a_pin_is_a_commit_and_its_absence_is_flagged(spec: BackboneSpec) -> None:
    assert spec.revision is None or re.fullmatch("[0-9a-f]{40}", spec.revision)
    assert spec.is_pinned == (spec.revision is not None or spec.family == "tiny")
    assert not replace(spec, hf_hub_path="org/name", revision="main").is_pinned


def test_a_commit_belongs_to_one_repository() -> None:
    commits = defaultdict(set)
    for spec in SPECS:
        if spec.revision:
            commits[spec.revision].add(spec.hf_hub_path)
    assert [paths for paths in commits.values() if len(paths) > 1] == []


def test_a_repository_is_registered_once_but_for_another_prompt_variant_or_more_tokens() -> None:
    variants = [(spec.hf_hub_path, spec.prompt_variant, spec.extra_tokens, spec.llm_cls) for spec in SPECS]
    assert len(variants) == len(set(variants))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.backbone_id)
def test_chat_models_speak_their_own_template_and_base_models_the_pure_format(spec: BackboneSpec) -> None:
    if spec.prompt_variant == "legacy" or spec.backbone_id.endswith("-fixed"):
        assert spec.prompt_builder in LEGACY_BUILDERS
    elif spec.family != "tiny":
        name = spec.hf_hub_path.lower()
        base = spec.family in BASE_ONLY or not re.search(r"instruct|-it$|phi-4|smollm3-3b$|qwen3-[\d.]+b$", name)
        own = "PaliGemmaPromptBuilder" if spec.family == "paligemma2" else "PurePromptBuilder"
        assert spec.prompt_builder == (own if base else "ChatTemplatePromptBuilder")
