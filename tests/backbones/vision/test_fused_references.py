"""`fused:` references: what they resolve to, and what is said where they do not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from backbones.reference import InvalidReferenceError
from backbones.registry import UnknownBackboneError, backbone_ids, get_spec, load_codec, register
from backbones.vision.model import tower_config
from backbones.vision.towers import EYES
from orchestrator.identity import backbone_identity


def test_it_is_the_language_backbone_behind_the_towers() -> None:
    spec, language = get_spec("fused:dinosiglip-224px+llama2-7b-pure"), get_spec("llama2-7b-pure")

    assert (spec.architecture, spec.prompt_builder, spec.source) == (
        language.architecture,
        language.prompt_builder,
        language.source,
    )
    assert spec.vision is not None and spec.fusion is not None
    assert spec.fusion.language == language and spec.fusion.projector == "fused-gelu-mlp"
    assert (spec.vision.image_size, spec.vision.tokens_per_image, spec.vision.place) == (224, 256, "bos")
    assert [tower.hidden_size for tower in spec.vision.towers] == [1024, 1152]
    # OpenVLA-7B's projector: 2176 -> 8704 -> 4096 -> 4096.
    assert spec.vision.connector_parameters == 2177 * 8704 + 8705 * 4096 + 4097 * 4096
    assert spec.parameters == 6_738_415_616 + 303_233_024 + 427_680_704 + spec.vision.connector_parameters
    assert len(spec.vision.mean) == len(spec.vision.std) == 6


@pytest.mark.parametrize(
    ("reference", "projector"),
    [
        ("fused:tiny-siglip+tiny-llama2", "gelu-mlp"),
        ("fused:tiny-dinosiglip+tiny-llama2", "fused-gelu-mlp"),
        ("fused:tiny-dinosiglip+tiny-llama2+linear", "linear"),
    ],
)
def test_the_projector_is_upstreams_unless_it_is_named(reference: str, projector: str) -> None:
    spec = get_spec(reference)

    assert spec.fusion is not None and spec.fusion.projector == projector
    assert get_spec(spec.reference) == get_spec(f"{reference.removesuffix('+linear')}+{projector}")
    assert spec.backbone_id == reference


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("fused:tiny-siglipp+tiny-llama2", InvalidReferenceError, "did you mean tiny-siglip?"),
        ("fused:tiny-siglip+tiny-lama2", UnknownBackboneError, "Did you mean `tiny-llama2`"),
        ("fused:tiny-siglip+tiny-llama2+gelu-mpl", InvalidReferenceError, "did you mean gelu-mlp?"),
        ("fused:tiny-siglip", InvalidReferenceError, "write fused:TOWERS+BACKBONE"),
        ("fused:tiny-siglip+", InvalidReferenceError, "write fused:TOWERS+BACKBONE"),
        ("fused:tiny-siglip+fused:tiny-siglip+tiny-llama2", InvalidReferenceError, "sees by itself"),
        ("fused:tiny-siglip+hf:./no-such-folder", InvalidReferenceError, "there is no folder"),
    ],
)
def test_what_cannot_be_fused_is_refused_with_the_remedy(reference: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as raised:
        get_spec(reference)
    assert says in str(raised.value)


def test_a_folder_without_safetensors_is_refused_as_a_language_backbone_too(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')

    with pytest.raises(InvalidReferenceError, match=r"has no \*\.safetensors file"):
        get_spec(f"fused:tiny-siglip+hf:{tmp_path}")


def test_no_id_may_look_like_a_reference() -> None:
    spec = get_spec("tiny-llama2")
    with pytest.raises(ValueError, match="'fused:' names models outside the registry"):
        register(replace(spec, backbone_id="fused:mine"))


@pytest.mark.parametrize("eyes", EYES)
def test_the_sizes_of_towers_are_those_of_their_classes(eyes: str) -> None:
    for tower in EYES[eyes]:
        with torch.device("meta"):
            built = AutoModel.from_config(tower_config(tower))
        layers = [module for module in built.modules() if type(module).__name__ == tower.sizes.layer_cls]
        assert sum(parameter.numel() for parameter in built.parameters()) == tower.sizes.parameters
        assert len(layers) == tower.sizes.num_layers


def test_other_eyes_or_another_projector_make_another_content() -> None:
    references = [
        "tiny-llama2",
        "fused:tiny-siglip+tiny-llama2",
        "fused:tiny-dinov2+tiny-llama2",
        "fused:tiny-siglip+tiny-llama2+linear",
        "fused:tiny-siglip+tiny-mistral",
    ]
    assert len({backbone_identity(get_spec(reference)) for reference in references}) == len(references)
    named = get_spec("fused:tiny-siglip+tiny-llama2+gelu-mlp")
    assert backbone_identity(named) == backbone_identity(get_spec("fused:tiny-siglip+tiny-llama2"))


@pytest.mark.parametrize("language", ["tiny-llama2", "tiny-mistral", "tiny-qwen"])
def test_images_stand_behind_the_first_token_and_change_no_other(language: str) -> None:
    spec = get_spec(f"fused:tiny-siglip+{language}")
    codec, plain = load_codec(spec, max_length=512), load_codec(get_spec(language), max_length=512)
    turns = [("user", "What is it?"), ("assistant", "A cup.")]

    seen, read = codec.encode_conversation(turns, [1, 0]), plain.encode_conversation(turns)

    placeholder = max(codec.tokenizer.get_vocab().values()) + 1
    assert seen.input_ids == [read.input_ids[0], *[placeholder] * 16, *read.input_ids[1:]]
    assert seen.targets == read.targets[:1] + bytes(16) + read.targets[1:]
    assert codec.encode_conversation(turns).input_ids == read.input_ids
    assert codec.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    assert codec.fingerprint != plain.fingerprint


def test_the_registry_lists_no_reference() -> None:
    assert not [backbone_id for backbone_id in backbone_ids() if ":" in backbone_id]
