"""Qwen3, the dense models: base models and the chat models that carry the plain names. There is no 32B base.

Sizes: arXiv:2505.09388 and the models' config.json. The tokenizer has no BOS. A base model's PAD is its EOS, so one is
added; a chat model's is not. The models have more rows (151936) than their tokenizer has tokens (151669), and keep
them. Contexts are those without YaRN. Left out: the mixtures of experts.
"""

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec

# size: (hidden, intermediate, layers, heads, key-value heads, head, vocabulary, tied), parameters
_SIZES = {
    "0.6B": (Architecture(1024, 3072, 28, 16, 8, 128, 151936, True), 596_049_920),
    "1.7B": (Architecture(2048, 6144, 28, 16, 8, 128, 151936, True), 1_720_574_976),
    "4B": (Architecture(2560, 9728, 36, 32, 8, 128, 151936, True), 4_022_468_096),
    "8B": (Architecture(4096, 12288, 36, 32, 8, 128, 151936, False), 8_190_735_360),
    "14B": (Architecture(5120, 17408, 40, 40, 8, 128, 151936, False), 14_768_307_200),
    "32B": (Architecture(5120, 25600, 64, 64, 8, 128, 151936, False), 32_762_123_264),
}
# name on the hub, size, prompt, revision
_MODELS = [
    ("0.6B-Base", "0.6B", PURE, "da87bfb608c14b7cf20ba1ce41287e8de496c0cd"),
    ("0.6B", "0.6B", CHAT, "c1899de289a04d12100db370d81485cdf75e47ca"),
    ("1.7B-Base", "1.7B", PURE, "ea980cb0a6c2ae4b936e82123acc929f1cec04c1"),
    ("1.7B", "1.7B", CHAT, "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e"),
    ("4B-Base", "4B", PURE, "906bfd4b4dc7f14ee4320094d8b41684abff8539"),
    ("4B", "4B", CHAT, "1cfa9a7208912126459214e8b04321603b3df60c"),
    ("8B-Base", "8B", PURE, "49e3418fbbbca6ecbdf9608b4d22e5a407081db4"),
    ("8B", "8B", CHAT, "b968826d9c46dd6066d109eabc6255188de91218"),
    ("14B-Base", "14B", PURE, None),
    ("14B", "14B", CHAT, "40c069824f4251a91eefaf281ebe4c544efd3e18"),
    ("32B", "32B", CHAT, "9216db5781bf21249d130ec9da846c4624c16137"),
]

for _name, _size, _prompt, _revision in _MODELS:
    _sizes, _parameters = _SIZES[_size]
    register(
        BackboneSpec(
            backbone_id=f"qwen3-{_name.lower()}",
            family="qwen3",
            hf_hub_path=f"Qwen/Qwen3-{_name}",
            revision=_revision,
            parameters=_parameters,
            prompt_builder=_prompt,
            context_length=32768,
            licence="apache-2.0",
            llm_cls="Qwen3ForCausalLM",
            decoder_layer_cls="Qwen3DecoderLayer",
            architecture=_sizes,
        )
    )
