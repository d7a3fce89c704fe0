"""`adapt_vlm`: upstream's vision-language class generates on transformers 5 what its language model would."""

import inspect
from functools import cache
from typing import Any

import pytest
import small_vlm
import torch
from small_vlm import PIXELS, VLM, VisionBackbone
from torch import nn
from transformers import DynamicCache, GenerationMixin, LlamaForCausalLM

from backbones import LLMBackbone, build
from backbones.prismatic import adapt_vlm

PROMPT = "In: What is in this image?\nOut:"
GREEDY = pytest.param({}, id="greedy")
BEAMS = pytest.param({"num_beams": 3}, id="beams")
UNCACHED = pytest.param({"use_cache": False}, id="uncached")
MENDED = ("get_experts_implementation", "set_experts_implementation", "prepare_inputs_for_generation", "_reorder_cache")


def _classes() -> tuple[type, type]:
    """PrismaticVLM and OpenVLA as nobody has adapted them: what a test does to them stays with them."""

    class PrismaticVLM(small_vlm.PrismaticVLM):
        pass

    class OpenVLA(PrismaticVLM):
        def __init__(self, *args: Any, norm_stats: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.norm_stats = norm_stats

    return PrismaticVLM, OpenVLA


@cache
def _backbone(backbone_id: str) -> LLMBackbone:
    """A random model whose text depends on what it is shown."""
    backbone = build(backbone_id, inference_mode=True).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return backbone


def _make(vlm_cls: type, backbone_id: str = "tiny-llama2") -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return vlm_cls("a model", VisionBackbone(), _backbone(backbone_id)).eval().requires_grad_(False)


def _image(seed: int) -> torch.Tensor:
    return torch.rand(3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed)) * 4


def _text_of_the_language_model(vlm: Any, image: torch.Tensor, **options: Any) -> str:
    """Its own `generate` on the embeddings that the vision-language model gives it."""
    tokenizer = vlm.llm_backbone.tokenizer
    embeddings = vlm.embed(tokenizer(PROMPT, return_tensors="pt").input_ids, image[None])
    seen = torch.ones(embeddings.shape[:2], dtype=torch.long)
    ids = vlm.llm_backbone.llm.generate(inputs_embeds=embeddings, attention_mask=seen, max_new_tokens=12, **options)
    return tokenizer.decode(ids[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize("options", [GREEDY, BEAMS, UNCACHED])
@pytest.mark.parametrize("backbone_id", ["tiny-llama2", "tiny-mistral", "tiny-qwen"])
def test_the_text_is_that_of_the_language_model_on_the_same_embeddings(
    backbone_id: str, options: dict[str, Any]
) -> None:
    prismatic, _ = _classes()
    vlm = _make(adapt_vlm(prismatic), backbone_id)
    texts = [vlm.generate(_image(seed), PROMPT, max_new_tokens=12, **options) for seed in (1, 2)]
    assert texts == [_text_of_the_language_model(vlm, _image(seed), **options) for seed in (1, 2)]
    assert texts[0] != texts[1]


def test_without_the_mends_generate_and_beam_search_break() -> None:
    vlm = _make(_classes()[0])
    with pytest.raises(AttributeError, match="get_experts_implementation"):
        vlm.generate(_image(1), PROMPT, max_new_tokens=12)
    with pytest.raises(AttributeError, match="_reorder_cache"):
        vlm.generate(_image(1), PROMPT, max_new_tokens=12, num_beams=3)


def test_with_the_first_mend_alone_the_image_and_the_prompt_are_dropped_without_an_error() -> None:
    prismatic, _ = _classes()
    vlm = _make(type("Half", (prismatic,), {"get_experts_implementation": lambda self: {}}))
    texts = {vlm.generate(_image(seed), PROMPT, max_new_tokens=12) for seed in (1, 2)}
    assert len(texts) == 1
    assert texts != {_text_of_the_language_model(vlm, _image(1))}
    assert texts == {vlm.generate(_image(1), PROMPT.replace("this", "that"), max_new_tokens=12)}


@pytest.mark.parametrize("adapted", [0, 1], ids=["PrismaticVLM", "OpenVLA"])
def test_a_derived_class_is_adapted_with_its_base_or_by_itself(adapted: int) -> None:
    classes = _classes()
    adapt_vlm(classes[adapted])
    vlm = _make(classes[1])
    assert vlm.generate(_image(1), PROMPT, max_new_tokens=12) == _text_of_the_language_model(vlm, _image(1))
    assert hasattr(classes[0], "get_experts_implementation") == (adapted == 0)


def test_a_class_that_prepares_its_steps_by_itself_can_be_adapted_after_its_base() -> None:
    prismatic, _ = _classes()
    adapt_vlm(prismatic)
    vlm_cls = type(
        "Fork",
        (prismatic,),
        {"prepare_inputs_for_generation": small_vlm.PrismaticVLM.prepare_inputs_for_generation},
    )
    vlm = _make(adapt_vlm(vlm_cls))
    assert vlm.generate(_image(1), PROMPT, max_new_tokens=12) == _text_of_the_language_model(vlm, _image(1))


def test_adapting_again_changes_nothing() -> None:
    prismatic, open_vla = _classes()
    assert adapt_vlm(prismatic) is prismatic
    methods = [getattr(prismatic, name) for name in MENDED]
    adapt_vlm(adapt_vlm(prismatic))
    adapt_vlm(open_vla)
    assert [getattr(prismatic, name) for name in MENDED] == methods
    assert [getattr(open_vla, name) for name in MENDED] == methods
    assert not set(vars(open_vla)) & set(MENDED)


def test_the_base_class_keeps_its_own_methods_and_signatures_stay() -> None:
    prismatic, _ = _classes()
    before = {name: inspect.signature(getattr(prismatic, name)) for name in MENDED[2:]}
    adapt_vlm(prismatic)
    assert {name: inspect.signature(getattr(prismatic, name)) for name in MENDED[2:]} == before
    assert not hasattr(VLM, "get_experts_implementation")
    with pytest.raises(ValueError, match="not used by the model: \\['pixel_value'\\]"):
        _make(prismatic).generate(_image(1), PROMPT, pixel_value=1)


def test_the_experts_are_the_language_models() -> None:
    vlm = _make(adapt_vlm(_classes()[0]))
    assert vlm.get_experts_implementation() == vlm.llm_backbone.llm.get_experts_implementation()
    vlm.set_experts_implementation(vlm.get_experts_implementation())


def test_an_empty_cache_reaches_the_forward_pass_and_a_full_one_shortens_the_step() -> None:
    vlm = _make(adapt_vlm(_classes()[0]))
    ids, image = torch.tensor([[1, 5, 6, 7]]), _image(1)[None]
    cache = DynamicCache(config=vlm.config)
    inputs = vlm.prepare_inputs_for_generation(ids, pixel_values=image, past_key_values=cache, use_cache=True)
    assert inputs["past_key_values"] is cache
    assert torch.equal(inputs["input_ids"], ids)
    vlm(**inputs)
    assert cache.get_seq_length() == ids.shape[1] + (PIXELS // small_vlm.PATCH) ** 2
    later = vlm.prepare_inputs_for_generation(ids, pixel_values=image, past_key_values=cache, use_cache=True)
    assert torch.equal(later["input_ids"], ids[:, -1:])
    embedded = vlm.prepare_inputs_for_generation(ids, inputs_embeds=image, past_key_values=DynamicCache())
    assert "inputs_embeds" in embedded and "input_ids" not in embedded


def test_a_prompt_of_one_token_does_not_lose_its_image_silently() -> None:
    vlm = _make(adapt_vlm(_classes()[0]))
    with pytest.raises(RuntimeError, match="at least two tokens"):
        vlm.generate(_image(1), "", max_new_tokens=2)


def test_caches_of_other_libraries_are_reordered_as_before() -> None:
    prismatic, _ = _classes()
    prismatic._reorder_cache = lambda self, past_key_values, beam_idx: (past_key_values, beam_idx)
    assert _make(adapt_vlm(prismatic))._reorder_cache("cache", [1]) == ("cache", [1])


class _Generates(nn.Module, GenerationMixin):
    """Neither is it made of upstream's parts, nor does it take an image."""


class _TakesNoImage(small_vlm.PrismaticVLM):
    def forward(self, input_ids: Any = None) -> Any: ...


@pytest.mark.parametrize(
    ("vlm_cls", "reason"),
    [
        (LlamaForCausalLM, "LlamaForCausalLM is not made of a vision_backbone and an llm_backbone"),
        (_Generates, "_Generates is not made of a vision_backbone and an llm_backbone"),
        (_TakesNoImage, "_TakesNoImage.forward takes no pixel_values"),
        (VLM, "VLM.prepare_inputs_for_generation takes no pixel_values"),
        (nn.Linear, "is no torch module that generates"),
        (dict, "is no torch module that generates"),
        ("PrismaticVLM", "'PrismaticVLM' is no torch module that generates"),
    ],
)
def test_a_class_that_is_no_prismatic_vlm_is_refused_untouched(vlm_cls: Any, reason: str) -> None:
    before = dict(vars(vlm_cls)) if isinstance(vlm_cls, type) else {}
    with pytest.raises(TypeError, match=f"{reason}; pass PrismaticVLM of prismatic.models.vlms"):
        adapt_vlm(vlm_cls)
    assert not before or dict(vars(vlm_cls)) == before
