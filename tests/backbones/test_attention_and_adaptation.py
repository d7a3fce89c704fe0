from importlib.util import find_spec

import pytest
import torch
from transformers import BloomForCausalLM, LlamaForCausalLM

from backbones import AttentionUnavailableError, apply_adaptation, build, resolve_attention
from backbones.contract import LLMBackbone

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can run it")


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_auto_takes_sdpa_and_says_why_not_flash_attention() -> None:
    choice = resolve_attention("auto", llm_cls=LlamaForCausalLM)
    assert (choice.kernel, choice.requested) == ("sdpa", "auto")
    assert "flash_attn is not installed" in choice.reason


def test_auto_passes_over_varlen_for_a_backbone_that_generates_as_openvla_uses_it() -> None:
    assert "takes neither padding masks nor caches" in build("tiny-llama2").attention.reason
    built = build("tiny-llama2", inference_mode=True, compute_dtype=torch.bfloat16)
    assert "takes neither padding masks nor caches" in built.attention.reason


def test_auto_takes_eager_for_a_class_with_nothing_else() -> None:
    assert not BloomForCausalLM._supports_sdpa
    assert resolve_attention("auto", llm_cls=BloomForCausalLM).kernel == "eager"
    with pytest.raises(AttentionUnavailableError, match="BloomForCausalLM does not support it; choose eager"):
        resolve_attention("sdpa", llm_cls=BloomForCausalLM)


@needs_no_gpu
@pytest.mark.parametrize("request_", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_an_explicit_kernel_that_cannot_run_raises_with_the_remedy(request_: str) -> None:
    with pytest.raises(AttentionUnavailableError, match=rf"{request_} cannot run here: .*; .*, or choose auto"):
        resolve_attention(request_)
    with pytest.raises(AttentionUnavailableError, match="cannot run here"):
        build("tiny-llama2", attention=request_)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(AttentionUnavailableError, match="choose one of auto, eager, sdpa"):
        resolve_attention("flash")


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_the_kernel_that_was_asked_for_is_the_one_that_runs(kernel: str) -> None:
    backbone = build("tiny-llama2", attention=kernel)
    assert backbone.llm.config._attn_implementation == kernel == backbone.attention.kernel


def _trainable(backbone: LLMBackbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_full_adaptation_trains_everything() -> None:
    backbone = build("tiny-llama2")
    assert apply_adaptation(backbone, "full") == backbone.spec.parameters
    assert _trainable(backbone) == {name for name, _ in backbone.named_parameters()}


def test_last_layer_trains_embedding_last_layer_and_head_only() -> None:
    backbone = build("tiny-mistral")
    apply_adaptation(backbone, "last_layer")
    names = _trainable(backbone)
    assert {"llm.model.embed_tokens.weight", "llm.lm_head.weight"} < names
    assert {name for name in names if ".layers." in name} == {
        name for name, _ in backbone.named_parameters() if ".layers.2." in name
    }


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("bias_only", "nothing of tiny-llama2 would learn"), ("x", "unknown")],
)
def test_an_adaptation_that_would_do_nothing_is_refused(kind: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        apply_adaptation(build("tiny-llama2"), kind)


def test_bias_only_trains_the_biases() -> None:
    from pathlib import Path

    folder = Path(__file__).parents[2].parent / "shared" / "kit" / "models" / "stories260K-qwen2"
    if not folder.is_dir():
        pytest.skip("needs the kit's model with biases")
    backbone = build(f"hf:{folder}")
    assert apply_adaptation(backbone, "bias_only") == 5 * (64 + 32 + 32)
    assert all(name.endswith(".bias") for name in _trainable(backbone))
