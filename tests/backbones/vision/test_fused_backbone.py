"""A fused backbone in one process: what it is put together of, what it is given, and what it says of a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import FAMILY_REPRESENTATIVES, make_small_folder
from transformers import AutoModelForCausalLM

from backbones.adaptation import AdaptationError, apply_adaptation
from backbones.inputs import Example
from backbones.laid_out import lay_out
from backbones.registry import build, get_spec, load_codec
from backbones.vision.backbone import FusedBackbone

CPU = torch.device("cpu")
TURNS = [("user", "What is it?"), ("assistant", "A cup of tea.")]


def fused(reference: str = "fused:tiny-dinosiglip+tiny-llama2", **options: Any) -> FusedBackbone:
    backbone = build(reference, **options)
    assert isinstance(backbone, FusedBackbone)
    backbone.llm.eval()
    return backbone


def example(backbone: FusedBackbone, images: int, seed: int = 0, answer: str = "A cup of tea.") -> Example:
    turns = [("user", "What is it?"), ("assistant", answer)]
    encoded = backbone.codec.encode_conversation(turns, [images, 0])
    pixels = np.random.default_rng(seed).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    return Example(np.array(encoded.input_ids), np.array(encoded.is_target), pixels if images else None)


def nats(backbone: FusedBackbone, rows: list[list[Example]], chunks: int = 1, width: int | None = None) -> torch.Tensor:
    with torch.no_grad():
        return backbone.nats(backbone.attention.arrange(backbone.collate(rows, width)).on(CPU), chunks)


def test_the_language_model_is_what_it_is_without_eyes() -> None:
    alone, behind = build("tiny-llama2", seed=4), fused(seed=4)

    theirs, ours = alone.llm.state_dict(), behind.llm.language_model.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert behind.tokenizer_rows == alone.tokenizer_rows and behind.embed_dim == alone.embed_dim
    assert behind.codec.fingerprint == load_codec(behind.spec, max_length=2048).fingerprint
    text = example(behind, images=0)
    assert torch.equal(nats(behind, [[text]]), nats(alone, [[text]]))  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in behind.llm.parameters()) == behind.spec.parameters


def test_logits_of_labelled_positions_are_those_of_the_whole_logits_and_say_the_nats() -> None:
    backbone = fused(seed=4)
    placed = backbone.attention.arrange(backbone.collate([[example(backbone, 1)], [example(backbone, 1, seed=1)]])).on(
        CPU
    )
    with torch.no_grad():
        some = backbone.logits(placed)
        whole = backbone(**placed.arguments, use_cache=False).logits.flatten(0, 1)[placed.positions_N]
        expected = torch.nn.functional.cross_entropy(some, placed.targets_N, reduction="none")
        torch.testing.assert_close(some, whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(backbone.nats(placed, 2), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILY_REPRESENTATIVES)
def test_any_language_model_reads_patches_as_if_they_were_concatenated(family: str, kit: Path, tmp_path: Path) -> None:
    backbone_id, _ = FAMILY_REPRESENTATIVES[family]
    folder = make_small_folder(get_spec(backbone_id), tmp_path / family, kit / "tokenizers" / "stories512")
    backbone = fused(f"fused:tiny-dinosiglip+hf:{folder}")
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen = example(backbone, images=1)
    arguments = backbone.collate([[seen]]).on(CPU).arguments

    with torch.no_grad():
        ours = backbone(**arguments, use_cache=False).logits
        patches = backbone.llm.projector(backbone.llm.patch_features(arguments["pixel_values"]))
        text = torch.from_numpy(seen.input_ids[seen.input_ids != backbone.llm.config.image_token_id])[None]
        tokens = stock.get_input_embeddings()(text)
        theirs = stock(inputs_embeds=torch.cat([tokens[:, :1], patches, tokens[:, 1:]], dim=1), use_cache=False).logits

    torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reference", ["fused:tiny-siglip+tiny-qwen", "fused:tiny-dinosiglip+tiny-mistral"])
def test_neither_packing_nor_padding_nor_chunks_change_what_an_answer_costs(reference: str) -> None:
    backbone = fused(reference)
    examples = [example(backbone, 1, 1), example(backbone, 2, 2, "No."), example(backbone, 1, 3, "A long answer.")]

    alone = torch.cat([nats(backbone, [[one]]) for one in examples])
    for packed in (
        nats(backbone, [examples]),
        nats(backbone, [examples[:2], examples[2:]]),
        nats(backbone, [examples], chunks=3, width=256),
        torch.cat([nats(backbone, [[one]], width=200) for one in examples]),
    ):
        torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    joined = backbone.collate([examples[:2], examples[2:]]).as_one_row().on(CPU)
    with torch.no_grad():
        torch.testing.assert_close(backbone.nats(joined, 1), alone, atol=1e-5, rtol=1e-5)


def test_an_answer_depends_on_the_picture_and_on_which_of_two_comes_first() -> None:
    backbone = fused()
    one, other = example(backbone, 2, 1), example(backbone, 2, 2)
    assert one.images is not None
    swapped = one._replace(images=one.images[::-1].copy())

    values = [nats(backbone, [[it]]).sum() for it in (one, other, swapped)]
    assert len({round(float(value), 5) for value in values}) == 3


def test_each_tower_sees_the_image_normalised_as_it_was_trained() -> None:
    backbone = fused()
    seen = example(backbone, 1)
    inputs = backbone.collate([[example(backbone, 0), seen]], width=120)

    pixels, positions = inputs.extras["pixel_values"], inputs.extras["image_positions"]
    assert seen.images is not None and pixels.shape == (1, 6, 32, 32) and pixels.dtype == np.float32
    red = seen.images[0, ..., 0].astype(np.float64) / 255
    np.testing.assert_allclose(pixels[0, 0], (red - 0.485) / 0.229, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pixels[0, 3], (red - 0.5) / 0.5, rtol=1e-5, atol=1e-6)
    assert (inputs.input_ids_BT.reshape(-1)[positions] == backbone.llm.config.image_token_id).all()
    assert len(positions) == 16 and (inputs.labels_BT.reshape(-1)[positions] == -100).all()


def test_images_and_placeholders_that_do_not_come_out_even_are_refused() -> None:
    backbone = fused()
    seen = example(backbone, 1)
    assert seen.images is not None
    with pytest.raises(ValueError, match="an example has 2 images and 16 of their tokens, not 32"):
        backbone.collate([[seen._replace(images=np.concatenate([seen.images] * 2))]])
    with pytest.raises(ValueError, match="an example has 0 images and 16 of their tokens, not 0"):
        backbone.collate([[seen._replace(images=None), seen]])
    with pytest.raises(
        ValueError, match=r"images are uint8 \(16, 16, 3\), but this backbone looks at uint8 \(32, 32, 3\)"
    ):
        backbone.collate([[seen._replace(images=seen.images[:, ::2, ::2])]])
    arguments = backbone.collate([[seen]]).on(CPU).arguments
    with pytest.raises(ValueError, match="2 images have 32 patches, but the ids have 16 placeholders"):
        backbone(input_ids=arguments["input_ids"], pixel_values=arguments["pixel_values"].repeat(2, 1, 1, 1))


def test_it_generates_what_it_would_say_token_by_token() -> None:
    backbone = fused(inference_mode=True)
    prompt = torch.tensor([backbone.codec.encode_prompt(TURNS[:1], [1])])
    pixels = torch.from_numpy(backbone.collate([[example(backbone, 1)]]).extras["pixel_values"])

    said = backbone.llm.generate(prompt, pixel_values=pixels, max_new_tokens=5, min_new_tokens=5)
    ids = prompt
    for _ in range(5):
        with torch.no_grad():
            logits = backbone(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0, -1]
        allowed = logits.clone()
        config = backbone.llm.generation_config
        allowed[[*(config.suppress_tokens or []), backbone.tokenizer.eos_token_id]] = -torch.inf
        ids = torch.cat([ids, allowed.argmax()[None, None]], dim=1)
    assert said.tolist() == ids.tolist()
    assert backbone.llm.config.image_token_id in (config.suppress_tokens or [])


@pytest.mark.parametrize("eyes", ["dinosiglip-224px", "siglip-so400m-384", "dinov2-large-224"])
def test_it_can_be_laid_out_at_full_size_without_network(eyes: str) -> None:
    spec = get_spec(f"fused:{eyes}+llama2-7b-pure")
    laid_out = lay_out(spec)

    parameters = list(laid_out.llm.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    rows = 64 * 2 * spec.architecture.hidden_size  # PAD's, padded, in embedding and head
    assert sum(parameter.numel() for parameter in parameters) == spec.parameters + rows
    assert [len(layers) for _, layers in laid_out.vision_layers] == [  # type: ignore[attr-defined]
        tower.num_layers
        for tower in spec.vision.towers  # type: ignore[union-attr]
    ]


def test_adapters_go_into_the_decoder_alone() -> None:
    backbone = fused()
    apply_adaptation(backbone, "lora")
    adapted = {name for name, parameter in backbone.llm.named_parameters() if parameter.requires_grad}
    assert adapted and all(name.startswith("language_model.model.layers.") for name in adapted)
    with pytest.raises(AdaptationError):
        apply_adaptation(build("tiny-llama2"), "connector")


def test_the_kernel_is_the_language_models() -> None:
    backbone = fused()
    backbone.use_attention("eager")
    assert backbone.attention.kernel == "eager" == backbone.llm.language_model.config._attn_implementation
    assert {tower.config._attn_implementation for tower in backbone.llm.vision_towers} == {"sdpa"}
