"""SmolLM2: base models and their Instruct versions.

Sizes: arXiv:2502.02737 and the models' config.json. The tokenizer adds no BOS. An Instruct model's PAD is its EOS and a
base model has none, so one is added.
"""

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec

# size: (hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied), parameters
_SIZES = {
    "135M": (Architecture(576, 1536, 30, 9, 3, 64, 49152, True), 134_515_008),
    "360M": (Architecture(960, 2560, 32, 15, 5, 64, 49152, True), 361_821_120),
    "1.7B": (Architecture(2048, 8192, 24, 32, 32, 64, 49152, True), 1_711_376_384),
}
# name on the hub, size, prompt, revision
_MODELS = [
    ("135M", "135M", PURE, "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"),
    ("135M-Instruct", "135M", CHAT, "12fd25f77366fa6b3b4b768ec3050bf629380bac"),
    ("360M", "360M", PURE, "f8027fd0eaeea54caa13c31d31b9fdc459c38b49"),
    ("360M-Instruct", "360M", CHAT, "a10cc1512eabd3dde888204e902eca88bddb4951"),
    ("1.7B", "1.7B", PURE, "effd688a12921b4cc83e3312b6feb579f70f9c71"),
    ("1.7B-Instruct", "1.7B", CHAT, "31b70e2e869a7173562077fd711b654946d38674"),
]

for _name, _size, _prompt, _revision in _MODELS:
    _sizes, _parameters = _SIZES[_size]
    register(
        BackboneSpec(
            backbone_id=f"smollm2-{_name.lower()}",
            family="smollm2",
            hf_hub_path=f"HuggingFaceTB/SmolLM2-{_name}",
            revision=_revision,
            parameters=_parameters,
            prompt_builder=_prompt,
            context_length=8192,
            licence="apache-2.0",
            llm_cls="LlamaForCausalLM",
            decoder_layer_cls="LlamaDecoderLayer",
            architecture=_sizes,
        )
    )
