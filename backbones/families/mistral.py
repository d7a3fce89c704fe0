"""Mistral 7B v0.1 to v0.3 and Mistral Nemo 12B. The v0.1 ids are those that OpenVLA and Prismatic ship.

Sizes: arXiv:2310.06825 and the models' config.json. Only v0.1 sees a window of 4096 tokens. The tokenizers add BOS and
have no PAD: one is added. There is no v0.2 base model on the hub.
"""

from dataclasses import replace
from typing import Any

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec

_V1 = BackboneSpec(
    backbone_id="mistral-v0.1-7b-pure",
    family="mistral",
    hf_hub_path="mistralai/Mistral-7B-v0.1",
    revision="27d67f1b5f57dc0953326b2601d68371d40ea8da",
    parameters=7_241_732_096,
    prompt_builder=PURE,
    prompt_variant="legacy",
    context_length=32768,
    licence="apache-2.0",
    pad_token="<PAD>",
    requires_bos=True,
    llm_cls="MistralForCausalLM",
    decoder_layer_cls="MistralDecoderLayer",
    backbone_cls="backbones.families.mistral:MistralLLMBackbone",
    architecture=Architecture(
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=32000,
        tied_embeddings=False,
    ),
    config=(("sliding_window", 4096),),
    gated=True,
)

register(_V1)
register(
    replace(
        _V1,
        backbone_id="mistral-v0.1-7b-instruct",
        hf_hub_path="mistralai/Mistral-7B-Instruct-v0.1",
        revision="ec5deb64f2c6e6fa90c1abf74a91d5c93a9669ca",
        prompt_builder="MistralInstructPromptBuilder",
    )
)

_V2 = _V1.architecture
_V3 = replace(_V2, vocab_size=32768)
_NEMO = replace(_V2, hidden_size=5120, num_layers=40, vocab_size=131072)

# sizes: parameters, context
_FACTS = {_V2: (7_241_732_096, 32768), _V3: (7_248_023_552, 32768), _NEMO: (12_247_782_400, 131072)}

# id, sizes, name on the hub, prompt, revision
_MODELS = [
    ("v0.2-7b-instruct", _V2, "7B-Instruct-v0.2", CHAT, "63a8b081895390a26e140280378bc85ec8bce07a"),
    ("v0.3-7b", _V3, "7B-v0.3", PURE, "caa1feb0e54d415e2df31207e5f4e273e33509b1"),
    ("v0.3-7b-instruct", _V3, "7B-Instruct-v0.3", CHAT, "c170c708c41dac9275d15a8fff4eca08d52bab71"),
    ("nemo-12b", _NEMO, "Nemo-Base-2407", PURE, "d613c787305d2300f41ad94abaec338411fbbecf"),
    ("nemo-12b-instruct", _NEMO, "Nemo-Instruct-2407", CHAT, "04d8a90549d23fc6bd7f642064003592df51e9b3"),
]

for _name, _sizes, _hub, _prompt, _revision in _MODELS:
    _parameters, _context = _FACTS[_sizes]
    register(
        BackboneSpec(
            backbone_id=f"mistral-{_name}",
            family="mistral",
            hf_hub_path=f"mistralai/Mistral-{_hub}",
            revision=_revision,
            parameters=_parameters,
            prompt_builder=_prompt,
            context_length=_context,
            licence="apache-2.0",
            gated=True,
            requires_bos=True,
            llm_cls="MistralForCausalLM",
            decoder_layer_cls="MistralDecoderLayer",
            architecture=_sizes,
            config=(("sliding_window", None),),
        )
    )


def __getattr__(name: str) -> Any:
    """The family's class, imported on request: it needs torch, the specs above do not."""
    if name == "MistralLLMBackbone":
        from backbones.causal_lm import MistralLLMBackbone

        return MistralLLMBackbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
