"""Phi-3, Phi-3.5 and Phi-4, which share a class. All but Phi-4 itself are chat models, and it is one too.

Sizes: arXiv:2404.14219, arXiv:2412.08905, arXiv:2503.01743 and the models' config.json, which also holds what the long
contexts need (longrope factors). The repositories bring Python code of their own; transformers' class is used instead.
Where PAD is the token that ends a text, one is added; Phi-3 has rows to spare for it.
"""

from backbones.registry import register
from backbones.spec import CHAT, Architecture, BackboneSpec, ConfigValue

# hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied
_MINI = Architecture(3072, 8192, 32, 32, 32, 96, 32064, False)
_MEDIUM = Architecture(5120, 17920, 40, 40, 10, 128, 32064, False)
_PHI_4 = Architecture(5120, 17920, 40, 40, 10, 128, 100352, False)
_PHI_4_MINI = Architecture(3072, 8192, 32, 24, 8, 128, 200064, True)

_PARAMETERS = {_MINI: 3_821_079_552, _MEDIUM: 13_960_238_080, _PHI_4: 14_659_507_200, _PHI_4_MINI: 3_836_021_760}
_CONFIG: dict[Architecture, tuple[tuple[str, ConfigValue], ...]] = {_PHI_4_MINI: (("partial_rotary_factor", 0.75),)}

_MODELS = [
    ("Phi-3-mini-4k-instruct", _MINI, 4096, "0a67737cc96d2554230f90338b163bc6380a2a85"),
    ("Phi-3-mini-128k-instruct", _MINI, 131072, None),
    ("Phi-3.5-mini-instruct", _MINI, 131072, "2fe192450127e6a83f7441aef6e3ca586c338b77"),
    ("Phi-3-medium-4k-instruct", _MEDIUM, 4096, "d194e4e74ffad5a5e193e26af25bcfc80c7f1ffc"),
    ("Phi-3-medium-128k-instruct", _MEDIUM, 131072, None),
    ("phi-4", _PHI_4, 16384, "187ef0342fff0eb3333be9f00389385e95ef0b61"),
    ("Phi-4-mini-instruct", _PHI_4_MINI, 131072, "cfbefacb99257ffa30c83adab238a50856ac3083"),
]

for _name, _sizes, _context, _revision in _MODELS:
    register(
        BackboneSpec(
            backbone_id=_name.lower(),
            family="phi3",
            hf_hub_path=f"microsoft/{_name}",
            revision=_revision,
            parameters=_PARAMETERS[_sizes],
            prompt_builder=CHAT,
            context_length=_context,
            licence="mit",
            llm_cls="Phi3ForCausalLM",
            decoder_layer_cls="Phi3DecoderLayer",
            architecture=_sizes,
            config=_CONFIG.get(_sizes, ()),
        )
    )
