"""A model that sees in a folder is the registered backbone again, and the image processor beside it sees the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from transformers import AutoImageProcessor, AutoProcessor

from backbones.errors import InvalidReferenceError
from backbones.inputs import Example
from backbones.laid_out import lay_out
from backbones.registry import build, get_spec
from orchestrator.data.images.files import resized

TINY = ("tiny-smolvlm", "tiny-idefics3", "tiny-qwen2.5-vl", "tiny-qwen3-vl", "tiny-gemma3-vl", "tiny-paligemma")
FUSED = ("fused:tiny-siglip+tiny-llama2", "fused:tiny-dinosiglip+tiny-qwen")
CPU = torch.device("cpu")


def saved(folder: Path, backbone_id: str) -> Any:
    """A tiny backbone, and a folder with what an export has of it."""
    backbone = build(backbone_id, seed=5, compute_dtype=torch.float32)
    for part in (backbone.llm, backbone.tokenizer, backbone.image_processor):
        assert part is not None
        part.save_pretrained(folder)
    if backbone.processor is not None:
        backbone.processor.save(folder)
    return backbone


def example_of(backbone: Any) -> Example:
    encoded = backbone.codec.encode_conversation([("user", "What is it?"), ("assistant", "A cat.")], [2, 0])
    size = backbone.vision.image_size
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    return Example(np.array(encoded.input_ids), np.array(encoded.is_target), images)


@pytest.mark.parametrize("backbone_id", TINY)
def test_a_folder_of_a_class_that_sees_is_the_registered_backbone_again(backbone_id: str, tmp_path: Path) -> None:
    first, wanted = saved(tmp_path, backbone_id), get_spec(backbone_id)

    spec = get_spec(f"hf:{tmp_path}")
    assert (spec.parameters, spec.vision, spec.requires_bos) == (wanted.parameters, wanted.vision, wanted.requires_bos)
    rows = first.tokenizer_rows.total
    assert spec.architecture == replace(wanted.architecture, vocab_size=rows)
    assert (spec.prompt_builder, spec.decoder_layer_cls) == (wanted.prompt_builder, wanted.decoder_layer_cls)
    again = build(spec, seed=8, compute_dtype=torch.float32)
    example = example_of(first)
    with torch.no_grad():
        ours, theirs = (one.nats(one.collate([[example]]).on(CPU), 1) for one in (again, first))
    assert torch.equal(ours, theirs)
    assert again.codec.fingerprint == first.codec.fingerprint


@pytest.mark.parametrize("backbone_id", [*TINY, *FUSED])
def test_the_image_processor_beside_a_model_gives_the_pixels_of_collate(backbone_id: str, tmp_path: Path) -> None:
    backbone = build(backbone_id)
    vision = backbone.vision  # type: ignore[attr-defined]
    backbone.llm.config.save_pretrained(tmp_path)
    assert backbone.image_processor is not None
    backbone.image_processor.save_pretrained(tmp_path)
    drawn = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    square = resized(drawn, vision.image_size, vision.resample)
    example = example_of(backbone)._replace(images=np.stack([square, square]))

    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil", local_files_only=True)
    # Qwen-VL's class keeps the ratio of the sides, whatever it is told.
    shown = pillow.fromarray(square if "qwen" in backbone_id.partition("+")[0] else drawn)
    pixels = processor([shown, shown], return_tensors="np")["pixel_values"]

    wanted = backbone.collate([[example]]).extras["pixel_values"]
    np.testing.assert_allclose(pixels, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backbone_id", ["tiny-smolvlm", "tiny-idefics3", "tiny-gemma3-vl", "tiny-paligemma"])
def test_the_processor_beside_a_model_gives_what_training_is_given_in_one_call(
    backbone_id: str, tmp_path: Path
) -> None:
    backbone = saved(tmp_path, backbone_id)
    vision, question = backbone.vision, "What is on it, in two words?"
    drawn = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    ids = backbone.codec.encode_prompt([("user", question)], [1])
    square = resized(drawn, vision.image_size, vision.resample)
    wanted = backbone.as_processed(Example(np.array(ids), np.zeros(len(ids), bool), square[None]))

    ask = AutoProcessor.from_pretrained(tmp_path, backend="pil", local_files_only=True)
    text = backbone.processor.prompt.replace("{question}", question)
    found = ask(text=text, images=[pillow.fromarray(drawn)], add_special_tokens=False, return_tensors="np")

    assert {"input_ids", "pixel_values"} <= wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6, err_msg=name)


def test_no_processor_is_written_where_none_gives_what_training_is_given() -> None:
    assert all(build(backbone_id).processor is None for backbone_id in ("tiny-qwen2.5-vl", "tiny-llama2", FUSED[0]))


@pytest.fixture
def smolvlm(tmp_path: Path) -> Path:
    saved(tmp_path, "tiny-smolvlm")
    return tmp_path


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_colours_filter_and_identity_are_those_of_the_folders_own_processor(smolvlm: Path) -> None:
    before = get_spec(f"hf:{smolvlm}").weights_digest
    edit(smolvlm / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], resample=2)

    after = get_spec(f"hf:{smolvlm}")
    assert after.vision is not None
    assert (after.vision.mean, after.vision.resample) == ((0.1, 0.2, 0.3), "bilinear")
    assert after.weights_digest != before


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"architectures": ["LlavaForConditionalGeneration"]}, "LlavaForCond.* those that see: SmolVLM"),
        ("config.json", {"scale_factor": 3}, "32 pixels a side has 4 x 4 patches, which squares of 3 x 3 do not"),
        ("config.json", {"vision_config": {"hidden_size": "wide"}}, "transformers cannot read .*config.json: "),
        ("config.json", {"image_token_id": 7}, "what is seen stand for token 7, but '<image>' is token"),
        ("tokenizer.json", {"added_tokens": []}, "the tokenizer has no token '<image>'"),
        ("tokenizer.json", {"model": []}, "tokenizer.json is no tokenizer"),
        ("preprocessor_config.json", {"resample": 9}, "resample .* 9"),
        ("preprocessor_config.json", {"image_std": [0.5]}, "image_std .*three"),
    ],
)
def test_a_folder_that_cannot_be_one_is_refused_with_the_reason(
    smolvlm: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit(smolvlm / file, **changes)
    with pytest.raises(InvalidReferenceError, match=message):
        get_spec(f"hf:{smolvlm}")


def hollow(folder: Path, backbone_id: str) -> None:
    """A real model's folder whose weights are a header and a hole: no block of them is on the disk."""
    backbone: Any = lay_out(get_spec(backbone_id))
    backbone.llm.config.save_pretrained(folder)
    header, end = {}, 0
    for name, parameter in backbone.llm.named_parameters():
        size = 4 * parameter.numel()
        header[name] = {"dtype": "F32", "shape": list(parameter.shape), "data_offsets": [end, end + size]}
        end += size
    written = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as stream:
        stream.write(len(written).to_bytes(8, "little") + written)
        stream.truncate(8 + len(written) + end)
    before, behind = backbone.spec.vision.frame
    placeholder = {"content": backbone.spec.vision.placeholder, "id": backbone.llm.config.image_token_id}
    added = [placeholder, *({"content": name, "id": 0} for name in (*before, *behind))]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}}, "added_tokens": added}))


@pytest.mark.parametrize(
    "backbone_id",
    ["smolvlm2-500m", "smolvlm2-2.2b", "qwen2.5-vl-3b", "qwen3-vl-2b", "gemma-3-4b-it", "paligemma2-3b-pt-224"],
)
def test_real_sizes_are_read_from_a_folder_as_they_are_registered(backbone_id: str, tmp_path: Path) -> None:
    hollow(tmp_path, backbone_id)
    wanted, spec = get_spec(backbone_id), get_spec(f"hf:{tmp_path}")

    rows = spec.architecture.vocab_size
    assert spec.architecture == replace(wanted.architecture, vocab_size=rows)
    assert spec.vision == wanted.vision
    added = (rows - wanted.architecture.vocab_size) * (2 - spec.architecture.tied_embeddings)
    assert spec.parameters == wanted.parameters + added * spec.architecture.hidden_size
