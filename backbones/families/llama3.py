"""Llama 3, 3.1, 3.2 and 3.3: base models and their Instruct versions.

Sizes: arXiv:2407.21783 and the models' config.json. The tokenizer puts `<|begin_of_text|>` in front of a text and has
no PAD: one is added, which makes 128320 rows of 128256. Left out: the multimodal 3.2 (11B, 90B) and the 405B.
"""

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec, ConfigValue

# hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied
_1B = Architecture(2048, 8192, 16, 32, 8, 64, 128256, True)
_3B = Architecture(3072, 8192, 28, 24, 8, 128, 128256, True)
_8B = Architecture(4096, 14336, 32, 32, 8, 128, 128256, False)
_70B = Architecture(8192, 28672, 80, 64, 8, 128, 128256, False)

_PARAMETERS = {_1B: 1_235_814_400, _3B: 3_212_749_824, _8B: 8_030_261_248, _70B: 70_553_706_496}

# release: licence, context, factor by which its rotary embedding is stretched
_RELEASES = {"3": ("llama3", 8192, None), "3.1": ("llama3.1", 131072, 8.0)}
_RELEASES |= {"3.2": ("llama3.2", 131072, 32.0), "3.3": ("llama3.3", 131072, 8.0)}

# release, size in the id, sizes, name on the hub, prompt, revision
_MODELS = [
    ("3", "8b", _8B, "Meta-Llama-3-8B", PURE, "8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920"),
    ("3", "8b-instruct", _8B, "Meta-Llama-3-8B-Instruct", CHAT, "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2"),
    ("3", "70b", _70B, "Meta-Llama-3-70B", PURE, None),
    ("3", "70b-instruct", _70B, "Meta-Llama-3-70B-Instruct", CHAT, None),
    ("3.1", "8b", _8B, "Llama-3.1-8B", PURE, "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b"),
    ("3.1", "8b-instruct", _8B, "Llama-3.1-8B-Instruct", CHAT, "0e9e39f249a16976918f6564b8830bc894c89659"),
    ("3.1", "70b", _70B, "Llama-3.1-70B", PURE, "349b2ddb53ce8f2849a6c168a81980ab25258dac"),
    ("3.1", "70b-instruct", _70B, "Llama-3.1-70B-Instruct", CHAT, "1605565b47bb9346c5515c34102e054115b4f98b"),
    ("3.2", "1b", _1B, "Llama-3.2-1B", PURE, "4e20de362430cd3b72f300e6b0f18e50e7166e08"),
    ("3.2", "1b-instruct", _1B, "Llama-3.2-1B-Instruct", CHAT, "9213176726f574b556790deb65791e0c5aa438b6"),
    ("3.2", "3b", _3B, "Llama-3.2-3B", PURE, "13afe5124825b4f3751f836b40dafda64c1ed062"),
    ("3.2", "3b-instruct", _3B, "Llama-3.2-3B-Instruct", CHAT, "0cb88a4f764b7a12671c53f0838cd831a0843b95"),
    ("3.3", "70b-instruct", _70B, "Llama-3.3-70B-Instruct", CHAT, "6f6073b423013f6a7d4d9f39144961bfbfbc386b"),
]


def _rope(factor: float | None) -> tuple[tuple[str, ConfigValue], ...]:
    base: tuple[tuple[str, ConfigValue], ...] = (("rope_theta", 500000.0),)
    if factor is None:
        return (*base, ("rope_type", "default"))
    scaling = (("low_freq_factor", 1.0), ("high_freq_factor", 4.0), ("original_max_position_embeddings", 8192))
    return (*base, ("rope_type", "llama3"), ("factor", factor), *scaling)


for _release, _name, _sizes, _hub, _prompt, _revision in _MODELS:
    _licence, _context, _factor = _RELEASES[_release]
    register(
        BackboneSpec(
            backbone_id=f"llama{_release}-{_name}",
            family="llama3",
            hf_hub_path=f"meta-llama/{_hub}",
            revision=_revision,
            parameters=_PARAMETERS[_sizes],
            prompt_builder=_prompt,
            context_length=_context,
            licence=_licence,
            gated=True,
            requires_bos=True,
            llm_cls="LlamaForCausalLM",
            decoder_layer_cls="LlamaDecoderLayer",
            architecture=_sizes,
            config=(("rope_parameters", _rope(_factor)),),
        )
    )
