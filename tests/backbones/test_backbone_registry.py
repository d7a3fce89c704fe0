import inspect
import subprocess
import sys
from dataclasses import replace

import pytest

from backbones import (
    LLaMa2LLMBackbone,
    MistralLLMBackbone,
    PhiLLMBackbone,
    UnknownBackboneError,
    backbone_ids,
    get_spec,
    register,
)
from backbones.contract import LLMBackbone
from backbones.hf_causal import HFCausalLLMBackbone

OPENVLA_IDS = {
    "llama2-7b-pure": ("meta-llama/Llama-2-7b-hf", "PurePromptBuilder", "LLaMa2LLMBackbone"),
    "llama2-13b-pure": ("meta-llama/Llama-2-13b-hf", "PurePromptBuilder", "LLaMa2LLMBackbone"),
    "llama2-7b-chat": ("meta-llama/Llama-2-7b-chat-hf", "LLaMa2ChatPromptBuilder", "LLaMa2LLMBackbone"),
    "llama2-13b-chat": ("meta-llama/Llama-2-13b-chat-hf", "LLaMa2ChatPromptBuilder", "LLaMa2LLMBackbone"),
    "vicuna-v15-7b": ("lmsys/vicuna-7b-v1.5", "VicunaV15ChatPromptBuilder", "LLaMa2LLMBackbone"),
    "vicuna-v15-13b": ("lmsys/vicuna-13b-v1.5", "VicunaV15ChatPromptBuilder", "LLaMa2LLMBackbone"),
    "mistral-v0.1-7b-pure": ("mistralai/Mistral-7B-v0.1", "PurePromptBuilder", "MistralLLMBackbone"),
    "mistral-v0.1-7b-instruct": (
        "mistralai/Mistral-7B-Instruct-v0.1",
        "MistralInstructPromptBuilder",
        "MistralLLMBackbone",
    ),
    "phi-2-3b": ("microsoft/phi-2", "PhiPromptBuilder", "PhiLLMBackbone"),
}
FAMILIES = {"LLaMa2LLMBackbone": "llama2", "MistralLLMBackbone": "mistral", "PhiLLMBackbone": "phi"}


@pytest.mark.parametrize("backbone_id", OPENVLA_IDS)
def test_the_nine_ids_of_openvla_are_registered_as_upstream_has_them(backbone_id: str) -> None:
    spec = get_spec(backbone_id)
    class_name = spec.backbone_cls.partition(":")[2]
    assert (spec.hf_hub_path, spec.prompt_builder, class_name) == OPENVLA_IDS[backbone_id]
    assert spec.family == FAMILIES[class_name]
    assert spec.prompt_variant == "legacy"
    assert spec.pad_token == ("<|pad|>" if spec.family == "phi" else "<PAD>")
    assert spec.requires_bos == (spec.family != "phi")
    assert spec.decoder_layer_cls == spec.llm_cls.removesuffix("ForCausalLM") + "DecoderLayer"


@pytest.mark.parametrize("family_class", [LLaMa2LLMBackbone, MistralLLMBackbone, PhiLLMBackbone])
def test_family_constructors_have_upstreams_signature(family_class: type) -> None:
    parameters = inspect.signature(family_class).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("llm_backbone_id", inspect.Parameter.empty),
        ("llm_max_length", 2048),
        ("hf_token", None),
        ("inference_mode", False),
        ("use_flash_attention_2", True),
    ]


def test_the_base_constructor_and_forward_have_upstreams_signatures() -> None:
    parameters = inspect.signature(HFCausalLLMBackbone).parameters.values()
    assert [(p.name, p.default) for p in parameters][:4] == [
        (name, inspect.Parameter.empty) for name in ("llm_backbone_id", "llm_family", "llm_cls", "hf_hub_path")
    ]
    assert [(p.name, p.default) for p in parameters][4:] == [
        ("llm_max_length", 2048),
        ("hf_token", None),
        ("inference_mode", False),
        ("use_flash_attention_2", False),
    ]
    forward = list(inspect.signature(HFCausalLLMBackbone.forward).parameters)
    assert forward == list(inspect.signature(LLMBackbone.forward).parameters)
    assert forward[1:] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "inputs_embeds",
        "labels",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    ]


def test_family_classes_can_be_imported_from_their_family() -> None:
    from backbones.families.llama2 import LLaMa2LLMBackbone as from_family

    assert from_family is LLaMa2LLMBackbone


def test_ids_and_specs_load_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, backbones, backbones.registry\n"
        "assert 'tiny-qwen' in backbones.backbone_ids()\n"
        "assert backbones.get_spec('tiny-qwen').weights_digest\n"
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_an_unknown_id_names_the_nearest_the_families_and_the_command_that_lists_all() -> None:
    with pytest.raises(UnknownBackboneError) as caught:
        get_spec("llama2-7b-puer")
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message.startswith("LLM Backbone `llama2-7b-puer` is not supported! Did you mean `llama2-7b-pure`")
    assert f"`backbone list` shows all {len(backbone_ids())} ids" in message and len(message) < 600
    assert all(get_spec(backbone_id).family in message for backbone_id in backbone_ids())
    with pytest.raises(UnknownBackboneError, match="Did you mean `llama2-7b-pure` or `llama2-7b-chat`"):
        get_spec("llama2-7b")
    with pytest.raises(UnknownBackboneError, match="Did you mean `hf:Qwen/Qwen3-8B`"):
        get_spec("Qwen/Qwen3-8B")
    with pytest.raises(UnknownBackboneError, match=r"^LLM Backbone `zzz` is not supported! `backbone list` shows"):
        get_spec("zzz")


def test_an_id_is_registered_once_and_never_looks_like_a_reference() -> None:
    spec = get_spec("tiny-llama2")
    with pytest.raises(ValueError, match="registered twice"):
        register(spec)
    with pytest.raises(ValueError, match="hf:"):
        register(replace(spec, backbone_id="hf:x"))
