"""A family class as users of Prismatic and its forks write one, over our base class. No registry knows it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from backbones import WeightsError, build
from backbones.prismatic import HFCausalLLMBackbone, PromptBuilder, PurePromptBuilder

TINY_TOKENS = 2049  # of tiny-qwen, PAD included
EXTRA = 3


class _TheirBackbone(HFCausalLLMBackbone):
    """A table of theirs, the automatic class, tokens and rows that they add themselves, every member written out."""

    models: ClassVar[dict[str, dict[str, Any]]] = {}
    requires_bos = False  # upstream's SPECIAL_CASES

    def __init__(
        self,
        llm_backbone_id: str,
        llm_max_length: int = 2048,
        hf_token: str | None = None,
        inference_mode: bool = False,
        use_flash_attention_2: bool = True,
    ) -> None:
        super().__init__(
            llm_backbone_id,
            llm_max_length=llm_max_length,
            hf_token=hf_token,
            inference_mode=inference_mode,
            use_flash_attention_2=use_flash_attention_2,
            **self.models[llm_backbone_id],
        )
        self.tokenizer.add_special_tokens({"pad_token": "<PAD>"})
        self.tokenizer.add_tokens([f"<|mine_{number}|>" for number in range(EXTRA)])
        self.llm.config.pad_token_id = self.tokenizer.pad_token_id
        self.llm.resize_token_embeddings(len(self.tokenizer), pad_to_multiple_of=64)

    @property
    def prompt_builder_fn(self) -> type[PromptBuilder]:
        return PurePromptBuilder

    @property
    def transformer_layer_cls(self) -> type[nn.Module]:
        return Qwen3DecoderLayer

    @property
    def half_precision_dtype(self) -> torch.dtype:
        return torch.bfloat16

    @property
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        return self.llm.model.embed_tokens, self.llm.model.layers[-1], self.llm.lm_head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Qwen3 with the tokenizer that has no PAD yet."""
    tiny = build("tiny-qwen")
    tiny.llm.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny.spec.source, local_files_only=True).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(params=[AutoModelForCausalLM, Qwen3ForCausalLM], ids=["automatic", "named"])
def their_id(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    entry = {"llm_family": "theirs", "llm_cls": request.param, "hf_hub_path": str(folder)}
    monkeypatch.setitem(_TheirBackbone.models, "theirs-tiny", entry)
    return "theirs-tiny"


def test_it_is_built_with_the_stored_weights_of_the_models_own_class(their_id: str, folder: Path) -> None:
    backbone = _TheirBackbone(their_id, llm_max_length=64).eval()
    assert type(backbone.llm) is Qwen3ForCausalLM
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    ids = torch.tensor([backbone.tokenizer("In: Q\nOut: A")["input_ids"]])
    with torch.no_grad():
        ours, theirs = backbone(input_ids=ids).logits, stock(input_ids=ids).logits
    rows = min(ours.shape[-1], theirs.shape[-1])
    torch.testing.assert_close(ours[..., :rows], theirs[..., :rows], rtol=0, atol=1e-6)
    policy = backbone.get_fsdp_wrapping_policy()
    assert [m for m in backbone.modules() if policy(module=m, recurse=False, nonwrapped_numel=0)] == list(
        backbone.llm.model.layers
    )


def test_its_rows_are_counted_though_it_resized_them_itself(their_id: str) -> None:
    backbone = _TheirBackbone(their_id)
    tokens = len(backbone.tokenizer)
    assert backbone.effective_vocab_size == tokens == TINY_TOKENS + EXTRA
    rows = backbone.tokenizer_rows
    assert (rows.base, rows.added) == (TINY_TOKENS - 1, EXTRA + 1)
    assert rows.total == backbone.llm.get_input_embeddings().weight.shape[0] == rows.base + rows.added + rows.padded
    backbone.llm.resize_token_embeddings(rows.total + 64)
    assert (backbone.tokenizer_rows.padded, backbone.effective_vocab_size) == (rows.padded + 64, tokens)


def test_tokens_without_rows_are_refused(their_id: str) -> None:
    backbone = _TheirBackbone(their_id)
    rows = backbone.tokenizer_rows
    backbone.tokenizer.add_tokens([f"<|late_{number}|>" for number in range(rows.padded + 1)])
    with pytest.raises(WeightsError, match=f"ids up to {rows.total}, but the embedding has {rows.total} rows"):
        _ = backbone.effective_vocab_size


def test_for_inference_it_is_a_shell_that_a_checkpoint_fills(their_id: str) -> None:
    trained = _TheirBackbone(their_id)
    shell = _TheirBackbone(their_id, inference_mode=True)
    assert shell.llm.config.use_cache
    assert shell.state_dict().keys() == trained.state_dict().keys()
    shell.load_state_dict(trained.state_dict())
    assert all(torch.equal(shell.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())


def test_a_model_for_which_there_is_no_such_class_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    entry = {"llm_family": "theirs", "llm_cls": AutoModelForCausalLM, "hf_hub_path": str(folder)}
    monkeypatch.setitem(_TheirBackbone.models, "no-language", entry)
    with pytest.raises(WeightsError, match="model type vit, and AutoModelForCausalLM has no class for it"):
        _TheirBackbone("no-language")


@pytest.mark.parametrize("llm_cls", [AutoModel, AutoTokenizer, str])
def test_what_is_no_class_of_a_language_model_is_refused(
    llm_cls: type, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"llm_family": "theirs", "llm_cls": llm_cls, "hf_hub_path": str(folder)}
    monkeypatch.setitem(_TheirBackbone.models, "no-class", entry)
    with pytest.raises(WeightsError, match=f"llm_cls is {llm_cls.__name__}, .* or AutoModelForCausalLM"):
        _TheirBackbone("no-class")


def test_a_checkpoint_of_another_class_is_refused_with_the_automatic_class_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["Qwen3ForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    entry = {"llm_family": "theirs", "llm_cls": AutoModelForCausalLM, "hf_hub_path": str(folder)}
    monkeypatch.setitem(_TheirBackbone.models, "no-head", entry)
    with pytest.raises(
        WeightsError, match="Qwen3ForSequenceClassification, but the backbone loads it as Qwen3ForCausal"
    ):
        _TheirBackbone("no-head")
