"""Pythia, the GPT-NeoX models of eight sizes that saw the same data in the same order: base models only.

Sizes: arXiv:2304.01373 and the models' config.json. Embeddings are not tied, a quarter of each head is rotated, and
attention and MLP read the same input. The tokenizer adds no BOS and has no PAD; the models have rows to spare.
"""

from backbones.registry import register
from backbones.spec import PURE, Architecture, BackboneSpec

# name on the hub: (hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied), parameters
_SIZES = {
    "70m": (Architecture(512, 2048, 6, 8, 8, 64, 50304, False), 70_426_624),
    "160m": (Architecture(768, 3072, 12, 12, 12, 64, 50304, False), 162_322_944),
    "410m": (Architecture(1024, 4096, 24, 16, 16, 64, 50304, False), 405_334_016),
    "1b": (Architecture(2048, 8192, 16, 8, 8, 256, 50304, False), 1_011_781_632),
    "1.4b": (Architecture(2048, 8192, 24, 16, 16, 128, 50304, False), 1_414_647_808),
    "2.8b": (Architecture(2560, 10240, 32, 32, 32, 80, 50304, False), 2_775_208_960),
    "6.9b": (Architecture(4096, 16384, 32, 32, 32, 128, 50432, False), 6_857_302_016),
    "12b": (Architecture(5120, 20480, 36, 40, 40, 128, 50688, False), 11_846_072_320),
}
_REVISIONS = {
    "70m": "a39f36b100fe8a5377810d56c3f4789b9c53ac42",
    "160m": "50f5173d932e8e61f858120bcb800b97af589f46",
    "410m": "9879c9b5f8bea9051dcb0e68dff21493d67e9d4f",
    "1b": "f73d7dcc545c8bd326d8559c8ef84ffe92fea6b2",
    "1.4b": "fedc38a16eea3bd36a96b906d78d11d2ce18ed79",
    "2.8b": "2a259cdd96a4beb1cdf467512e3904197345f6a9",
    "6.9b": None,
    "12b": None,
}

for _name, (_sizes, _parameters) in _SIZES.items():
    register(
        BackboneSpec(
            backbone_id=f"pythia-{_name}",
            family="neox",
            hf_hub_path=f"EleutherAI/pythia-{_name}",
            revision=_REVISIONS[_name],
            parameters=_parameters,
            prompt_builder=PURE,
            context_length=2048,
            licence="apache-2.0",
            llm_cls="GPTNeoXForCausalLM",
            decoder_layer_cls="GPTNeoXLayer",
            architecture=_sizes,
            config=(("rotary_pct", 0.25), ("use_parallel_residual", True)),
        )
    )
