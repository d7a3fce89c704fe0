import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backbones import InvalidReferenceError, LLaMa2LLMBackbone, WeightsError, build, get_spec, load_codec, register
from backbones.hf_causal import HFCausalLLMBackbone

TINY = ["tiny-llama2", "tiny-mistral", "tiny-qwen"]
CLASSES = ["llama", "mistral", "qwen2", "phi3", "gemma"]


def _copy_model(source: Path, destination: Path) -> Path:
    destination.mkdir(exist_ok=True)
    for path in source.iterdir():
        (destination / path.name).write_bytes(path.read_bytes())
    return destination


@pytest.mark.parametrize("backbone_id", TINY)
def test_a_tiny_backbone_is_built_as_its_spec_says(backbone_id: str) -> None:
    backbone = build(backbone_id)
    spec = backbone.spec
    assert sum(parameter.numel() for parameter in backbone.parameters()) == spec.parameters
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert backbone.transformer_layer_cls.__name__ == spec.decoder_layer_cls
    assert len(backbone.decoder_layers) == spec.architecture.num_layers
    assert backbone.embed_dim == spec.architecture.hidden_size
    assert backbone.half_precision_dtype is torch.bfloat16
    assert backbone.tokenizer_rows.total == spec.architecture.vocab_size
    assert backbone.pad_token_id not in (backbone.tokenizer.eos_token_id, backbone.tokenizer.bos_token_id)
    assert backbone.llm.config.pad_token_id == backbone.llm.generation_config.pad_token_id == backbone.pad_token_id
    assert backbone.effective_vocab_size == len(backbone.get_tokenizer())
    assert all(name.startswith("llm.") for name in backbone.state_dict())


@pytest.mark.parametrize("backbone_id", TINY)
def test_forward_takes_ten_arguments_and_labels_give_a_gradient(backbone_id: str) -> None:
    backbone = build(backbone_id)
    ids = torch.arange(6).reshape(1, 6)
    output = backbone(
        input_ids=None,
        attention_mask=torch.ones_like(ids),
        position_ids=ids,
        past_key_values=None,
        inputs_embeds=backbone.embed_input_ids(ids),
        labels=ids,
        use_cache=False,
        output_attentions=False,
        output_hidden_states=True,
        return_dict=True,
    )
    assert output.logits.shape == (1, 6, backbone.tokenizer_rows.total)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (build("tiny-llama2", seed=seed).llm.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_a_backbone_can_be_laid_out_on_meta_for_a_checkpoint_to_fill() -> None:
    with torch.device("meta"):
        backbone = build("tiny-qwen", inference_mode=True)
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}
    assert backbone.llm.config.use_cache


def test_inputs_require_gradients_when_training_with_a_frozen_embedding() -> None:
    backbone = build("tiny-llama2").requires_grad_(False)
    assert backbone.embed_input_ids(torch.tensor([[1]])).requires_grad
    assert not backbone.llm.config.use_cache


def test_the_wrapping_policy_picks_exactly_the_decoder_layers() -> None:
    backbone = build("tiny-qwen")
    policy = backbone.get_fsdp_wrapping_policy()
    chosen = [m for m in backbone.modules() if policy(module=m, recurse=False, nonwrapped_numel=0)]
    assert chosen == list(backbone.decoder_layers)


def test_the_last_layer_modules_exist_for_every_family() -> None:
    for backbone_id in TINY:
        backbone = build(backbone_id)
        embedding, layer, head = backbone.last_layer_finetune_modules
        assert embedding is backbone.llm.model.embed_tokens
        assert layer is backbone.llm.model.layers[-1]
        assert head is backbone.llm.lm_head


@pytest.mark.parametrize("name", CLASSES)
def test_a_folders_logits_are_those_of_stock_transformers(kit: Path, name: str) -> None:
    folder = kit / "models" / f"stories260K-{name}"
    backbone = build(f"hf:{folder}").eval()
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    ids = torch.tensor(
        [PreTrainedTokenizerFast.from_pretrained(folder)("Once upon a time, there was a cat.").input_ids]
    )
    assert backbone.tokenizer("Once upon a time, there was a cat.").input_ids == ids[0].tolist()
    with torch.no_grad():
        ours, theirs = backbone(input_ids=ids).logits, stock(input_ids=ids).logits
    torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs, rtol=0, atol=1e-6)
    assert (backbone.tokenizer_rows.total, backbone.pad_token_id) == (576, 512)


def test_a_foreign_tokenizer_beside_a_qwen2_config_is_read_from_its_file(kit: Path) -> None:
    backbone = build(f"hf:{kit}/models/stories260K-qwen2")
    assert backbone.loaded_tokenizer.reading.startswith("tokenizer.json; AutoTokenizer (Qwen2Tokenizer)")
    assert build(f"hf:{kit}/models/stories260K-llama").loaded_tokenizer.reading.startswith("AutoTokenizer")


def test_the_codec_of_a_spec_is_the_codec_of_its_backbone() -> None:
    for backbone_id in TINY:
        codec = load_codec(get_spec(backbone_id), max_length=128)
        assert codec.fingerprint == build(backbone_id, max_length=128).codec.fingerprint


def _llama_with_32000_rows(kit: Path, folder: Path) -> Path:
    """A small Llama beside the real Llama-2 tokenizer."""
    folder.mkdir()
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=32000
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in (kit / "tokenizers" / "llama2").glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder


def test_llama2_gets_pad_32000_and_32064_rows_as_upstream(kit: Path, tmp_path: Path) -> None:
    folder = _llama_with_32000_rows(kit, tmp_path / "llama2")
    official = get_spec("llama2-7b-pure")
    register(replace(official, backbone_id="llama2-in-a-folder", hf_hub_path=str(folder)))
    backbone = LLaMa2LLMBackbone("llama2-in-a-folder", llm_max_length=128)
    assert (backbone.tokenizer.pad_token, backbone.pad_token_id) == ("<PAD>", 32000)
    assert backbone.llm.get_input_embeddings().weight.shape[0] == backbone.llm.config.vocab_size == 32064
    assert backbone.prompt_builder_fn.__name__ == "PurePromptBuilder"
    assert backbone.tokenizer.model_max_length == 128
    codec = load_codec(replace(official, hf_hub_path=str(folder)), max_length=128)
    assert codec.encode_prompt([("user", "Q")])[0] == 1
    by_reference = build(f"hf:{folder}")
    assert (by_reference.pad_token_id, by_reference.tokenizer_rows.total) == (32000, 32064)
    assert by_reference.tokenizer_rows.padded == 63


def test_upstreams_rule_drops_rows_that_the_standard_rule_keeps(kit: Path, tmp_path: Path) -> None:
    folder = _copy_model(kit / "models" / "stories260K-llama", tmp_path / "wide")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 700}
    weights = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    weights[name] = torch.cat([weights[name], torch.zeros(188, 64)])
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    kept = build(f"hf:{folder}")
    assert (kept.tokenizer_rows.total, kept.effective_vocab_size) == (704, 513)
    legacy = replace(get_spec("llama2-7b-pure"), backbone_id="wide-legacy", hf_hub_path=str(folder))
    assert build(register(legacy).backbone_id).tokenizer_rows.total == 576


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_that_do_not_fill_the_model_are_refused(kit: Path, tmp_path: Path, change: str) -> None:
    folder = _copy_model(kit / "models" / "stories260K-llama", tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    if change == "missing":
        del weights["model.norm.weight"]
    else:
        weights["model.extra.weight"] = torch.zeros(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"1 {change} keys in the weights: model"):
        build(f"hf:{folder}")


def test_a_checkpoint_of_another_class_is_refused(kit: Path, tmp_path: Path) -> None:
    folder = _copy_model(kit / "models" / "stories260K-mistral", tmp_path / "mistral")
    register(replace(get_spec("llama2-7b-pure"), backbone_id="wrong-class", hf_hub_path=str(folder)))
    with pytest.raises(WeightsError, match="MistralForCausalLM, but the backbone loads it as LlamaForCausalLM"):
        build("wrong-class")


def test_a_class_that_transformers_does_not_have_is_refused(kit: Path, tmp_path: Path) -> None:
    folder = _copy_model(kit / "models" / "stories260K-llama", tmp_path / "future")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["Llama9ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidReferenceError, match="has no causal language model Llama9ForCausalLM"):
        build(f"hf:{folder}")


class _OutOfTreeBackbone(HFCausalLLMBackbone):
    """What a user of Prismatic writes: a constructor call and a prompt format; our registry knows nothing of it."""

    @property
    def prompt_builder_fn(self) -> type:
        raise NotImplementedError


class _WithoutBos(_OutOfTreeBackbone):
    requires_bos = False


def test_a_tokenizer_without_bos_fails_with_upstreams_text_unless_the_class_says_so(kit: Path, tmp_path: Path) -> None:
    folder = _copy_model(kit / "models" / "stories260K-llama", tmp_path / "no-bos")
    state = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    arguments = {"llm_family": "mine", "llm_cls": LlamaForCausalLM, "hf_hub_path": str(folder)}
    with pytest.raises(AssertionError) as caught:
        _OutOfTreeBackbone("mine", **arguments)
    assert str(caught.value).startswith("Default Tokenizer of type `")
    assert str(caught.value).endswith(
        "` does not automatically prefix inputs with BOS token!\n"
        "Please read the comment in `base_llm.py` for more information!"
    )
    assert _WithoutBos("mine", **arguments).llm_family == "mine"


def test_layers_of_an_unexpected_class_are_not_taken_for_decoder_layers() -> None:
    backbone = build("tiny-llama2")
    backbone.decoder_layer_cls = "MistralDecoderLayer"
    with pytest.raises(WeightsError, match="no list of 3 layers of class MistralDecoderLayer"):
        _ = backbone.transformer_layer_cls
