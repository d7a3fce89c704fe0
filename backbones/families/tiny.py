"""Three tiny random models, one per kind of tokenizer: for tests, demos and clusters without a GPU.

They differ where real backbones differ: BOS or none, bytes or BPE, grouped queries, tied embeddings, prompt format.
Their embeddings already have the rows that PAD needs.
"""

from dataclasses import replace

from backbones.registry import register
from backbones.spec import CHAT, PURE, Architecture, BackboneSpec

_LLAMA2 = BackboneSpec(
    backbone_id="tiny-llama2",
    family="tiny",
    hf_hub_path="builtin:tiny-llama2",
    parameters=436_896,
    prompt_builder=PURE,
    context_length=1024,
    licence="mit",
    pad_token="<PAD>",
    requires_bos=True,
    llm_cls="LlamaForCausalLM",
    decoder_layer_cls="LlamaDecoderLayer",
    backbone_cls="backbones.random_init:RandomInitBackbone",
    architecture=Architecture(
        hidden_size=96,
        intermediate_size=256,
        num_layers=3,
        num_heads=3,
        num_kv_heads=3,
        head_dim=32,
        vocab_size=1088,
        tied_embeddings=True,
    ),
)

register(_LLAMA2)
register(
    replace(
        _LLAMA2,
        backbone_id="tiny-mistral",
        hf_hub_path="builtin:tiny-mistral",
        parameters=357_024,
        prompt_builder="MistralInstructPromptBuilder",
        llm_cls="MistralForCausalLM",
        decoder_layer_cls="MistralDecoderLayer",
        architecture=replace(_LLAMA2.architecture, num_kv_heads=1, vocab_size=320, tied_embeddings=False),
    )
)
register(
    replace(
        _LLAMA2,
        backbone_id="tiny-qwen",
        hf_hub_path="builtin:tiny-qwen",
        parameters=399_968,
        prompt_builder=CHAT,
        requires_bos=False,
        llm_cls="Qwen3ForCausalLM",
        decoder_layer_cls="Qwen3DecoderLayer",
        architecture=replace(_LLAMA2.architecture, num_layers=2, num_kv_heads=1, vocab_size=2112),
    )
)
