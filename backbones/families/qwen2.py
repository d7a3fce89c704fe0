"""Qwen2.5: base models and their Instruct versions.

Sizes: arXiv:2412.15115 and the models' config.json. The tokenizer has no BOS. A base model's PAD is its EOS, so one is
added; an Instruct model's is not. The models have more rows (151936, 152064) than their tokenizer has tokens (151665),
and keep them. Contexts are those without YaRN.

The `qwen25-` ids are those of Prismatic's forks (Stanford-ILIAD/openvla-mini, InternRobotics/InstructVLA and others):
base models that speak ChatML, whose rows shrink to what the tokenizer needs (151680), and one with 256 tokens for
actions, whose ids and rows (151936) are the forks'. The forks' PAD is the EOS; here it is another token that the
tokenizer has, so that no id moves and the end of a text stays visible.
"""

from typing import Any

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec

# size: (hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied), parameters, licence
_SIZES = {
    "0.5B": (Architecture(896, 4864, 24, 14, 2, 64, 151936, True), 494_032_768, "apache-2.0"),
    "1.5B": (Architecture(1536, 8960, 28, 12, 2, 128, 151936, True), 1_543_714_304, "apache-2.0"),
    "3B": (Architecture(2048, 11008, 36, 16, 2, 128, 151936, True), 3_085_938_688, "qwen-research"),
    "7B": (Architecture(3584, 18944, 28, 28, 4, 128, 152064, False), 7_615_616_512, "apache-2.0"),
    "14B": (Architecture(5120, 13824, 48, 40, 8, 128, 152064, False), 14_770_033_664, "apache-2.0"),
    "32B": (Architecture(5120, 27648, 64, 40, 8, 128, 152064, False), 32_763_876_352, "apache-2.0"),
    "72B": (Architecture(8192, 29568, 80, 64, 8, 128, 152064, False), 72_706_203_648, "qwen"),
}
# name on the hub, size, prompt, revision
_MODELS = [
    ("0.5B", "0.5B", PURE, "060db6499f32faf8b98477b0a26969ef7d8b9987"),
    ("0.5B-Instruct", "0.5B", CHAT, "7ae557604adf67be50417f59c2c2f167def9a775"),
    ("1.5B", "1.5B", PURE, "8faed761d45a263340a0528343f099c05c9a4323"),
    ("1.5B-Instruct", "1.5B", CHAT, "989aa7980e4cf806f80c7fef2b1adb7bc71aa306"),
    ("3B", "3B", PURE, "3aab1f1954e9cc14eb9509a215f9e5ca08227a9b"),
    ("3B-Instruct", "3B", CHAT, "aa8e72537993ba99e69dfaafa59ed015b17504d1"),
    ("7B", "7B", PURE, "d149729398750b98c0af14eb82c78cfe92750796"),
    ("7B-Instruct", "7B", CHAT, "a09a35458c702b33eeacc393d103063234e8bc28"),
    ("14B", "14B", PURE, "97e1e76335b7017d8f67c08a19d103c0504298c9"),
    ("14B-Instruct", "14B", CHAT, "cf98f3b3bbb457ad9e2bb7baf9a0125b6b88caa8"),
    ("32B", "32B", PURE, "1818d35814b8319459f4bd55ed1ac8709630f003"),
    ("32B-Instruct", "32B", CHAT, "5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd"),
    ("72B", "72B", PURE, "587cc4061cf6a7cc0d429d05c109447e5cf063af"),
    ("72B-Instruct", "72B", CHAT, "495f39366efef23836d0cfae4fbe635880d2be31"),
]

for _name, _size, _prompt, _revision in _MODELS:
    _sizes, _parameters, _licence = _SIZES[_size]
    register(
        BackboneSpec(
            backbone_id=f"qwen2.5-{_name.lower()}",
            family="qwen2",
            hf_hub_path=f"Qwen/Qwen2.5-{_name}",
            revision=_revision,
            parameters=_parameters,
            prompt_builder=_prompt,
            context_length=32768,
            licence=_licence,
            llm_cls="Qwen2ForCausalLM",
            decoder_layer_cls="Qwen2DecoderLayer",
            architecture=_sizes,
        )
    )

# id, size, tokens for actions
_FORKS = [
    ("qwen25-0_5b-pure", "0.5B", 0),
    ("qwen25-0_5b-extra", "0.5B", 256),
    ("qwen25-1_5b-pure", "1.5B", 0),
    ("qwen25-3b-pure", "3B", 0),
    ("qwen25-7b-pure", "7B", 0),
]
_REVISIONS = {name: revision for name, _, _, revision in _MODELS}

for _name, _size, _extra in _FORKS:
    _sizes, _parameters, _licence = _SIZES[_size]
    register(
        BackboneSpec(
            backbone_id=_name,
            family="qwen2",
            hf_hub_path=f"Qwen/Qwen2.5-{_size}",
            revision=_REVISIONS[_size],
            parameters=_parameters,
            prompt_builder="QwenPromptBuilder",
            prompt_variant="legacy",
            context_length=32768,
            licence=_licence,
            pad_token="<|vision_pad|>",
            llm_cls="Qwen2ForCausalLM",
            decoder_layer_cls="Qwen2DecoderLayer",
            backbone_cls="backbones.families.qwen2:Qwen25LLMBackbone",
            architecture=_sizes,
            extra_tokens=_extra,
        )
    )


def __getattr__(name: str) -> Any:
    """The forks' class, imported on request: it needs torch, the specs above do not."""
    if name == "Qwen25LLMBackbone":
        from backbones.causal_lm import Qwen25LLMBackbone

        return Qwen25LLMBackbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
