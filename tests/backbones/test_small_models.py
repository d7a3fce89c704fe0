"""Every registered family, built from a folder with a small random model of its architecture."""

from pathlib import Path

import pytest
import torch
from small_models import FAMILY_REPRESENTATIVES, make_small_folder, small_spec
from transformers import AutoModelForCausalLM

from backbones import backbone_ids, build, get_spec, register

TEXT = "Once upon a time, there was a little girl who liked to read. Every day she read a book."


def test_every_family_has_a_representative() -> None:
    specs = map(get_spec, backbone_ids())
    families = {spec.family for spec in specs if spec.vision is None}  # what sees has a tiny id of its own
    assert families - {"tiny"} == set(FAMILY_REPRESENTATIVES)
    assert all(get_spec(backbone_id).family == family for family, (backbone_id, _) in FAMILY_REPRESENTATIVES.items())


@pytest.mark.parametrize("family", FAMILY_REPRESENTATIVES)
def test_a_small_model_of_the_family_is_built_and_equals_stock_transformers(
    kit: Path, tmp_path: Path, family: str
) -> None:
    representative, tokenizer = FAMILY_REPRESENTATIVES[family]
    spec = get_spec(representative)
    folder = make_small_folder(spec, tmp_path / "model", kit / "tokenizers" / tokenizer)
    register(small_spec(spec, f"small-{family}", folder))
    backbone = build(f"small-{family}", max_length=128).eval()
    assert type(backbone.llm).__name__ == spec.llm_cls
    assert backbone.transformer_layer_cls.__name__ == spec.decoder_layer_cls
    embedding, layer, head = backbone.last_layer_finetune_modules
    assert layer is backbone.decoder_layers[-1]
    assert (head.weight is embedding.weight) == spec.architecture.tied_embeddings
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    ids = torch.tensor([backbone.codec.encode_text(TEXT).input_ids])
    with torch.no_grad():
        ours, theirs = backbone(input_ids=ids).logits, stock(input_ids=ids).logits
    rows = min(ours.shape[-1], theirs.shape[-1])
    torch.testing.assert_close(ours[..., :rows], theirs[..., :rows], rtol=0, atol=1e-5)
    assert theirs.std() > 0.1


def test_the_same_call_writes_the_same_bytes(kit: Path, tmp_path: Path) -> None:
    spec = get_spec("gemma-3-270m")
    first, again = (make_small_folder(spec, tmp_path / name, kit / "tokenizers" / "stories512") for name in "ab")
    assert small_spec(spec, "a", first).weights_digest == small_spec(spec, "b", again).weights_digest
