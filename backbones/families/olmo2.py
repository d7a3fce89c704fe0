"""OLMo 2: base models and their Instruct versions.

Sizes: arXiv:2501.00656 and the models' config.json. Queries and keys are normalised over all heads at once. The
tokenizer has a PAD of its own and adds no BOS.
"""

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec

# size: release, (hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied), parameters
_SIZES = {
    "1B": ("0425", Architecture(2048, 8192, 16, 16, 16, 128, 100352, False), 1_484_916_736),
    "7B": ("1124", Architecture(4096, 11008, 32, 32, 32, 128, 100352, False), 7_298_617_344),
    "13B": ("1124", Architecture(5120, 13824, 40, 40, 40, 128, 100352, False), 13_716_198_400),
    "32B": ("0325", Architecture(5120, 27648, 64, 40, 8, 128, 100352, False), 32_234_279_936),
}
# name on the hub, size, prompt, revision
_MODELS = [
    ("1B", "1B", PURE, "a1847dff35000b4271fa70afc5db10fd29fedbdf"),
    ("1B-Instruct", "1B", CHAT, "48d788eca847d4d7548f375ad03d3c9312f6139e"),
    ("7B", "7B", PURE, "7df9a82518afdecae4e8c026b27adccc8c1f0032"),
    ("7B-Instruct", "7B", CHAT, "470b1fba1ae01581f270116362ee4aa1b97f4c84"),
    ("13B", "13B", PURE, None),
    ("13B-Instruct", "13B", CHAT, None),
    ("32B", "32B", PURE, None),
    ("32B-Instruct", "32B", CHAT, None),
]

for _name, _size, _prompt, _revision in _MODELS:
    _release, _sizes, _parameters = _SIZES[_size]
    register(
        BackboneSpec(
            backbone_id=f"olmo-2-{_name.lower()}",
            family="olmo2",
            hf_hub_path=f"allenai/OLMo-2-{_release}-{_name}",
            revision=_revision,
            parameters=_parameters,
            prompt_builder=_prompt,
            context_length=4096,
            licence="apache-2.0",
            llm_cls="Olmo2ForCausalLM",
            decoder_layer_cls="Olmo2DecoderLayer",
            architecture=_sizes,
        )
    )
