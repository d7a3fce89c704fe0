"""The fourteen points of OpenVLA's and Prismatic's contract, for each of their nine ids.

Each id is built from its own spec, but for the folder: a small random model of its class beside a real tokenizer.
"""

import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from small_models import make_small_folder, small_spec
from test_prompt_builders import SYSTEMS, TURNS, golden
from torch.distributed.fsdp.wrap import _or_policy

from backbones import get_spec, prismatic, register
from backbones.hf_causal import HFCausalLLMBackbone
from backbones.tokenizer import make_codec

# id: class, family, class of transformers, hub path, prompt builder
NINE = {
    "llama2-7b-pure": ("LLaMa2", "llama2", "Llama", "meta-llama/Llama-2-7b-hf", "Pure"),
    "llama2-13b-pure": ("LLaMa2", "llama2", "Llama", "meta-llama/Llama-2-13b-hf", "Pure"),
    "llama2-7b-chat": ("LLaMa2", "llama2", "Llama", "meta-llama/Llama-2-7b-chat-hf", "LLaMa2Chat"),
    "llama2-13b-chat": ("LLaMa2", "llama2", "Llama", "meta-llama/Llama-2-13b-chat-hf", "LLaMa2Chat"),
    "vicuna-v15-7b": ("LLaMa2", "llama2", "Llama", "lmsys/vicuna-7b-v1.5", "VicunaV15Chat"),
    "vicuna-v15-13b": ("LLaMa2", "llama2", "Llama", "lmsys/vicuna-13b-v1.5", "VicunaV15Chat"),
    "mistral-v0.1-7b-pure": ("Mistral", "mistral", "Mistral", "mistralai/Mistral-7B-v0.1", "Pure"),
    "mistral-v0.1-7b-instruct": (
        "Mistral",
        "mistral",
        "Mistral",
        "mistralai/Mistral-7B-Instruct-v0.1",
        "MistralInstruct",
    ),
    "phi-2-3b": ("Phi", "phi", "Phi", "microsoft/phi-2", "Phi"),
}
KIT_TOKENIZERS = {"llama2": "llama2", "mistral": "mistral-v1", "phi": "gpt2"}
PHI_2_ROWS = 51200
nine = pytest.mark.parametrize("backbone_id", NINE)

Build = Callable[..., HFCausalLLMBackbone]


@pytest.fixture(scope="module")
def folders(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("small")
    representatives = ("llama2-7b-pure", "mistral-v0.1-7b-pure", "phi-2-3b")
    return {
        spec.family: make_small_folder(
            spec,
            folder / spec.family,
            kit / "tokenizers" / KIT_TOKENIZERS[spec.family],
            rows=PHI_2_ROWS if spec.family == "phi" else None,
        )
        for spec in map(get_spec, representatives)
    }


@pytest.fixture(scope="module")
def backbone_of(folders: dict[str, Path]) -> Build:
    """The backbone of an id, made by the factory; each is registered once, under a name of its own, and kept."""
    built: dict[str, HFCausalLLMBackbone] = {}

    def make(backbone_id: str) -> HFCausalLLMBackbone:
        if backbone_id not in built:
            spec = get_spec(backbone_id)
            small_id = register(small_spec(spec, f"conformance-{backbone_id}", folders[spec.family])).backbone_id
            with pytest.MonkeyPatch.context() as patch:  # as a user of Prismatic adds a backbone
                patch.setitem(prismatic.LLM_BACKBONES, small_id, prismatic.LLM_BACKBONES[backbone_id])
                built[backbone_id], _ = prismatic.get_llm_backbone_and_tokenizer(small_id, llm_max_length=128)
        return built[backbone_id]

    return make


@nine
def test_01_the_id_has_upstreams_class_family_hub_path_and_arguments(backbone_id: str) -> None:
    family_class, family, llm, hub_path, _ = NINE[backbone_id]
    models = {"llama2": "LLAMA2_MODELS", "mistral": "MISTRAL_MODELS", "phi": "PHI_MODELS"}[family]
    llm_cls = getattr(transformers, f"{llm}ForCausalLM")
    assert getattr(prismatic, models)[backbone_id] == {
        "llm_family": family,
        "llm_cls": llm_cls,
        "hf_hub_path": hub_path,
    }
    expected = getattr(prismatic, f"{family_class}LLMBackbone")
    assert prismatic.LLM_BACKBONES[backbone_id] == {"cls": expected, "kwargs": {}}
    assert prismatic.LLM_BACKBONE_TO_HF_PATH[backbone_id] == hub_path
    assert prismatic.LLM_BACKBONE_TO_HF_METACLASS[backbone_id] == llm.lower()
    assert backbone_id in prismatic.VALID_LLM_BACKBONES


def test_02_every_name_that_upstream_exports_is_importable() -> None:
    upstream = [
        *("LLMBackbone", "HFCausalLLMBackbone", "LLaMa2LLMBackbone", "MistralLLMBackbone", "PhiLLMBackbone"),
        *("PromptBuilder", "PurePromptBuilder", "LLaMa2ChatPromptBuilder", "MistralInstructPromptBuilder"),
        *("PhiPromptBuilder", "VicunaV15ChatPromptBuilder", "get_llm_backbone_and_tokenizer"),
        *("LLAMA2_MODELS", "MISTRAL_MODELS", "PHI_MODELS", "LLM_BACKBONES"),
        *("LLM_BACKBONE_TO_HF_PATH", "LLM_BACKBONE_TO_HF_METACLASS", "VALID_LLM_BACKBONES"),
    ]
    assert set(upstream) <= set(prismatic.__all__)
    assert [name for name in prismatic.__all__ if not hasattr(prismatic, name)] == []


def test_03_the_factory_has_upstreams_signature() -> None:
    parameters = inspect.signature(prismatic.get_llm_backbone_and_tokenizer).parameters.values()
    assert [(each.name, each.default) for each in parameters] == [
        ("llm_backbone_id", inspect.Parameter.empty),
        ("llm_max_length", 2048),
        ("hf_token", None),
        ("inference_mode", False),
    ]


@nine
def test_03_the_constructor_and_the_factory_take_what_upstreams_take(backbone_of: Build, backbone_id: str) -> None:
    backbone = backbone_of(backbone_id)
    again = type(backbone)(backbone.identifier, 64, None, True, False)
    assert (again.llm_max_length, again.inference_mode, again.llm.config.use_cache) == (64, True, True)
    assert (backbone.llm_max_length, backbone.inference_mode, backbone.llm.config.use_cache) == (128, False, False)
    assert backbone.llm_family == NINE[backbone_id][1]
    assert backbone.get_tokenizer() is backbone.tokenizer
    assert backbone.tokenizer.model_max_length == 128


def test_04_errors_have_upstreams_texts() -> None:
    with pytest.raises(ValueError, match=r"^LLM Backbone `llama9` is not supported!$"):
        prismatic.get_llm_backbone_and_tokenizer("llama9")
    with pytest.raises(ValueError, match=r"^LLM backbone `llama9` not in VALID_LLM_BACKBONES = \{'"):
        prismatic.validate_llm_backbone_id("llama9")
    for backbone_id in NINE:
        prismatic.validate_llm_backbone_id(backbone_id)


@nine
def test_04_an_id_without_a_prompt_builder_fails_with_upstreams_text(backbone_of: Build, backbone_id: str) -> None:
    spec = replace(get_spec(backbone_id), prompt_builder="None")
    with pytest.raises(ValueError, match=f"^No PromptBuilder defined for LLM Backbone `{backbone_id}`"):
        make_codec(spec, backbone_of(backbone_id).tokenizer, 128)


@nine
@pytest.mark.parametrize("system", SYSTEMS)
def test_05_the_ids_prompt_builder_writes_upstreams_bytes(backbone_of: Build, backbone_id: str, system: str) -> None:
    builder_class = backbone_of(backbone_id).prompt_builder_fn
    assert builder_class is getattr(prismatic, f"{NINE[backbone_id][4]}PromptBuilder")
    family, own = ("other", SYSTEMS[system]) if SYSTEMS[system] else (system, None)
    *pieces, one_turn_prompt = golden(builder_class, own)
    builder, asked = builder_class(family, own), builder_class(family, own)
    assert [builder.add_turn(role, message) for role, message in TURNS] == pieces
    asked.add_turn("human", "Q")
    assert asked.get_prompt() == one_turn_prompt


@nine
def test_06_pad_rows_and_config_are_upstreams(backbone_of: Build, backbone_id: str) -> None:
    backbone = backbone_of(backbone_id)
    pad, pad_id, rows = ("<|pad|>", 50257, 50304) if backbone_id == "phi-2-3b" else ("<PAD>", 32000, 32064)
    assert (backbone.tokenizer.pad_token, backbone.pad_token_id) == (pad, pad_id)
    assert backbone.llm.config.pad_token_id == backbone.llm.generation_config.pad_token_id == pad_id
    assert len(backbone.llm.get_input_embeddings().weight) == len(backbone.llm.get_output_embeddings().weight) == rows
    assert backbone.llm.config.vocab_size == backbone.tokenizer_rows.total == rows
    assert backbone.tokenizer.padding_side == "right"


@nine
def test_07_every_key_of_the_state_begins_with_llm(backbone_of: Build, backbone_id: str) -> None:
    backbone = backbone_of(backbone_id)
    assert list(backbone.state_dict()) == [f"llm.{name}" for name in backbone.llm.state_dict()]


@nine
def test_08_forward_takes_upstreams_ten_arguments(backbone_of: Build, backbone_id: str) -> None:
    backbone = backbone_of(backbone_id)
    names = list(inspect.signature(backbone.forward).parameters)
    ids = torch.tensor([[5, 6, 7, 8]])
    given = dict.fromkeys(names)
    given |= {"attention_mask": torch.ones_like(ids), "inputs_embeds": backbone.embed_input_ids(ids), "labels": ids}
    given |= {"use_cache": False, "output_hidden_states": True, "return_dict": True}
    output = backbone(**given)
    assert len(names) == 10
    assert output.logits.shape == (1, 4, backbone.tokenizer_rows.total)
    assert output.hidden_states[0].shape == (1, 4, backbone.embed_dim)
    torch.testing.assert_close(output.logits, backbone(input_ids=ids).logits)


@nine
def test_09_the_wrapping_policy_joins_others_and_takes_the_decoder_layers(backbone_of: Build, backbone_id: str) -> None:
    backbone = backbone_of(backbone_id)
    never = lambda module, recurse, nonwrapped_numel: False  # noqa: E731
    policy = partial(_or_policy, policies=[never, backbone.get_fsdp_wrapping_policy()])
    wrapped = [each for each in backbone.modules() if policy(module=each, recurse=False, nonwrapped_numel=0)]
    assert wrapped == list(backbone.llm.model.layers)
    assert type(wrapped[0]) is backbone.transformer_layer_cls
    assert backbone.transformer_layer_cls.__name__ == f"{NINE[backbone_id][2]}DecoderLayer"


@nine
def test_10_half_precision_is_bfloat16_and_training_weights_are_fp32(backbone_of: Build, backbone_id: str) -> None:
    backbone = backbone_of(backbone_id)
    assert backbone.half_precision_dtype is torch.bfloat16
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


@nine
def test_11_the_last_layer_is_embedding_last_layer_and_head(backbone_of: Build, backbone_id: str) -> None:
    backbone = backbone_of(backbone_id)
    llm = backbone.llm
    assert backbone.last_layer_finetune_modules == (llm.model.embed_tokens, llm.model.layers[-1], llm.lm_head)


@nine
def test_12_a_checkpoint_is_written_and_read_as_prismatics(
    backbone_of: Build, tmp_path: Path, backbone_id: str
) -> None:
    backbone = backbone_of(backbone_id)
    path = tmp_path / "step-000001-epoch-00-loss=1.0000.pt"
    prismatic.save_checkpoint(backbone, path, {"projector": {"fc.weight": torch.ones(2)}})
    stored = torch.load(path, weights_only=True)["model"]
    assert set(stored) == {"projector", "llm_backbone"}
    assert list(stored["llm_backbone"]) == list(backbone.state_dict())
    empty = type(backbone)(backbone.identifier, inference_mode=True)
    assert not torch.equal(empty.llm.lm_head.weight, backbone.llm.lm_head.weight)
    prismatic.load_checkpoint(empty, path)
    for name, tensor in empty.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[name])


def test_12_a_file_that_is_no_checkpoint_is_refused_and_never_executed(backbone_of: Build, tmp_path: Path) -> None:
    backbone = backbone_of("llama2-7b-pure")
    path = tmp_path / "other.pt"
    torch.save({"model": {"projector": {}}}, path)
    with pytest.raises(ValueError, match=r"holds model/llm_backbone; this one holds \['projector'\]"):
        prismatic.load_checkpoint(backbone, path)
    torch.save({"model": {"llm_backbone": {"llm.lm_head.weight": torch.zeros(1)}}}, path)
    with pytest.raises(RuntimeError, match="Missing key"):
        prismatic.load_checkpoint(backbone, path)

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"model": {"llm_backbone": Payload()}}, path)
    with pytest.raises(pickle.UnpicklingError):
        prismatic.load_checkpoint(backbone, path)
    assert not (tmp_path / "executed").exists()


@nine
def test_13_bos_is_demanded_of_all_but_phi_unless_the_spec_says_otherwise(
    backbone_of: Build, folders: dict[str, Path], backbone_id: str
) -> None:
    backbone = backbone_of(backbone_id)
    assert backbone.requires_bos == (backbone_id != "phi-2-3b")
    no_bos = replace(backbone.spec, hf_hub_path=str(folders["phi"]), llm_cls="PhiForCausalLM", decoder_layer_cls=None)
    demanding = register(replace(no_bos, backbone_id=f"demanding-{backbone_id}", requires_bos=True))
    with pytest.raises(AssertionError, match="does not automatically prefix inputs with BOS token!\nPlease read"):
        type(backbone)(demanding.backbone_id, inference_mode=True)
    lenient = register(replace(no_bos, backbone_id=f"lenient-{backbone_id}", requires_bos=False))
    assert not type(backbone)(lenient.backbone_id, inference_mode=True).requires_bos


@nine
def test_14_the_variant_chooses_between_upstreams_faults_and_their_repair(backbone_of: Build, backbone_id: str) -> None:
    legacy = backbone_of(backbone_id)
    standard = type(legacy)(
        register(replace(legacy.spec, backbone_id=f"standard-{backbone_id}", prompt_variant="standard")).backbone_id,
        inference_mode=True,
    )
    prompts = [each.codec.tokenizer.decode(each.codec.encode_prompt([("user", "Q")])) for each in (legacy, standard)]
    builder = NINE[backbone_id][4]
    if builder == "LLaMa2Chat":
        assert ["<<SYS>\n" in prompt for prompt in prompts] == [True, False]
        assert prompts[0].replace("<<SYS>\n", "<<SYS>>\n") == prompts[1]
    elif builder == "Phi":
        assert prompts[0] == prompts[1] + " "  # the space opens the answer instead of ending the prompt
        assert (legacy.tokenizer_rows.total, standard.tokenizer_rows.total) == (50304, PHI_2_ROWS)
        assert standard.prompt_builder_fn("prismatic").get_potential_prompt("Q").startswith("<|endoftext|>")
    else:
        assert prompts[0] == prompts[1]
    assert (legacy.codec.variant, standard.codec.variant) == ("legacy", "standard")
    assert legacy.codec.fingerprint != standard.codec.fingerprint


def test_14_a_repaired_id_is_registered_wherever_upstream_has_a_fault() -> None:
    for backbone_id in ("llama2-7b-chat", "llama2-13b-chat", "phi-2-3b"):
        repaired = replace(get_spec(backbone_id), backbone_id=f"{backbone_id}-fixed", prompt_variant="standard")
        assert get_spec(f"{backbone_id}-fixed") == repaired
