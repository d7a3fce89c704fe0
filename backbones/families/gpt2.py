"""GPT-2 in its four sizes: base models only.

Sizes: the models' config.json. Positions are learned, so nothing longer than 1024 tokens fits. BOS and EOS are one
token, which the tokenizer does not add, and there is no PAD: one is added, which makes 50304 rows of 50257.
"""

from backbones.registry import register
from backbones.spec import PURE, Architecture, BackboneSpec

# name on the hub: (hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied), parameters
_SIZES = {
    "gpt2": (Architecture(768, 3072, 12, 12, 12, 64, 50257, True), 124_439_808),
    "gpt2-medium": (Architecture(1024, 4096, 24, 16, 16, 64, 50257, True), 354_823_168),
    "gpt2-large": (Architecture(1280, 5120, 36, 20, 20, 64, 50257, True), 774_030_080),
    "gpt2-xl": (Architecture(1600, 6400, 48, 25, 25, 64, 50257, True), 1_557_611_200),
}
_REVISIONS = {
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}

for _name, (_sizes, _parameters) in _SIZES.items():
    register(
        BackboneSpec(
            backbone_id=_name,
            family="gpt2",
            hf_hub_path=f"openai-community/{_name}",
            revision=_REVISIONS[_name],
            parameters=_parameters,
            prompt_builder=PURE,
            context_length=1024,
            licence="mit",
            llm_cls="GPT2LMHeadModel",
            decoder_layer_cls="GPT2Block",
            architecture=_sizes,
            config=(("n_inner", _sizes.intermediate_size),),
        )
    )
